"""Read and write the textfiles of node_exporter. They are the only state of the counters."""

from collections.abc import Iterable, Iterator
from typing import Any

from jobcache.diagnostics.metric_families import Family, Samples, key
from jobcache.system import files

_LONGEST = 4 << 20  # bytes of a previous textfile; labels with every user's name can make it longer


def read(path: str) -> Samples:
    """Return the metrics of a textfile; {} if it is missing or damaged, so that counters begin again at 0."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        text = files.read_text(path, _LONGEST, follow=False)
        families = list(text_string_to_metric_families(text[: text.rfind("\n") + 1]))
    except (OSError, ValueError):
        return {}
    return {(one.name, key(one.labels)): one.value for family in families for one in family.samples if one.value >= 0}


def write(path: str, families: Iterable[Family]) -> None:
    """Replace a textfile. Every user can read it: node_exporter does not run as root. Raise OSError."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    kinds: dict[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}

    class Collector:
        def collect(self) -> Iterator[Any]:
            for kind, name, about, samples in families:
                if samples:
                    family = kinds[kind](name, about, labels=list(samples[0][0]))
                    for labels, value in samples:
                        family.add_metric(list(labels.values()), value)
                    yield family

    registry = CollectorRegistry(auto_describe=False)
    families = list(families)
    registry.register(Collector())  # type: ignore[arg-type, unused-ignore]
    files.replace_file(path, generate_latest(registry), 0o644)
