"""The configuration file: valid values, messages about invalid ones, and the texts generated from the schema."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobcache.config import configuration, errors, keys, notation, reference, validation

ROOT = pathlib.Path(__file__).resolve().parents[2]

DEFAULTS = {
    "mode": "on",
    "path": "/scratch/gpfs/{user}/.cache/hf-datasets-{job_id}",
    "cluster": None,
    "scope": "job",
    "exports": {"HF_DATASETS_CACHE": "{cache}"},
    "exports_for": [],
    "inherit": "on",
    "inherit_max_builds": 2000,
    "history": "on",
    "offline": "inherit",
    "containers": {"apptainer": "bind"},
    "rules": [],
    "node_local": ["/local"],
    "min_uid": 1000,
    "run_dir": "/run/jobcache",
    "keep_failed": 0.0,
    "keep_max": 259200.0,
    "task_prolog": {"deadline": 5.0, "chain": None},
    "epilog": {"deadline": 30.0, "budget": 1.0},
    "sweep": {
        "grace": 3600.0,
        "confirm": 120.0,
        "unrecorded": "report",
        "max_deletes_per_second": None,
        "stray_processes": "report",
        "comment": "off",
    },
    "store": {"user": None, "site": None, "publish": "label", "max_size": 50 * 1024**3, "max_age": 2592000.0},
    "log": {"file": "/var/log/jobcache/events.jsonl", "syslog": True, "level": "info"},
    "metrics": {"textfile": None, "sizes": False, "by_user": False},
    "slurm": {"conf": None, "squeue": "squeue", "scontrol": "scontrol", "timeout": 60.0},
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Load a configuration from its text."""
    file = tmp_path_factory.mktemp("etc") / "jobcache.yaml"

    def load_text(text):
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return configuration.load(str(file))

    return load_text


@pytest.fixture(scope="module")
def refuse(load):
    """Return the problems of an invalid text."""

    def problems_of(text):
        with pytest.raises(errors.ConfigError) as caught:
            load(text)
        return caught.value.problems

    return problems_of


def message(problem):
    return f"{problem.what}; {problem.remedy}"


# Valid files


@pytest.mark.parametrize(
    "text", ["", "\n", "# only a comment\n", "---\n", "~\n", "{}\n", "\ufeff# with a byte order mark\n", "sweep:\nlog:\n"]
)
def test_missing_keys_have_their_defaults(load, text):
    assert load(text).tree == DEFAULTS == configuration.defaults()


def test_defaults_returns_a_new_tree():
    configuration.defaults()["exports"]["X"] = "{cache}"
    configuration.defaults()["node_local"].append("/x")
    assert configuration.defaults() == DEFAULTS


def test_load_converts_every_key(load):
    tree = load(
        """
mode: observe
path: /local/{uid}/hf-{cluster}-{job_id}
cluster: tiger
scope: node
exports: {HF_DATASETS_CACHE: "{cache}/datasets", HF_MODULES_CACHE: "{cache}/a b/ü"}
exports_for: [triton, vllm]
inherit: off
inherit_max_builds: 7
history: off
offline: isolate
containers: {apptainer: off}
rules:
  - match: {partition: debug, account: [a, "b*"], qos: "[ab]?", user: ["*-svc"]}
    cache: off
  - match: {user: alice}
    cache: on
    mode: off
    path: /x/{user}/c-{job_id}
    scope: task
    exports: {A: "{cache}"}
    inherit: on
    offline: skip
    containers: {apptainer: bind}
node_local: []
min_uid: 500
run_dir: /var/run/jobcache
keep_failed: 1h30m
keep_max: 1d
task_prolog: {deadline: 500ms, chain: /etc/slurm/task_prolog}
epilog: {deadline: 2s, budget: 1999ms}
sweep: {grace: 1d2h3m4s5ms, confirm: 0s, unrecorded: reap, max_deletes_per_second: 2000, stray_processes: terminate}
store: {user: "/s/{user}", site: "/s/site-{cluster}", publish: all, max_size: 1TB, max_age: 90d}
log: {file: null, syslog: /run/log, level: debug}
metrics: {textfile: /var/lib/x.prom}
slurm: {conf: /etc/slurm.conf, squeue: /opt/slurm/bin/squeue, scontrol: scontrol-24.05, timeout: 2m}
"""
    ).tree
    assert tree == {
        "mode": "observe",
        "path": "/local/{uid}/hf-{cluster}-{job_id}",
        "cluster": "tiger",
        "scope": "node",
        "exports": {"HF_DATASETS_CACHE": "{cache}/datasets", "HF_MODULES_CACHE": "{cache}/a b/ü"},
        "exports_for": ["triton", "vllm"],
        "inherit": "off",
        "inherit_max_builds": 7,
        "history": "off",
        "offline": "isolate",
        "containers": {"apptainer": "off"},
        "rules": [
            {"match": {"partition": ["debug"], "account": ["a", "b*"], "qos": ["[ab]?"], "user": ["*-svc"]}, "cache": "off"},
            {
                "match": {"user": ["alice"]},
                "cache": "on",
                "mode": "off",
                "path": "/x/{user}/c-{job_id}",
                "scope": "task",
                "exports": {"A": "{cache}"},
                "inherit": "on",
                "offline": "skip",
                "containers": {"apptainer": "bind"},
            },
        ],
        "node_local": [],
        "min_uid": 500,
        "run_dir": "/var/run/jobcache",
        "keep_failed": 5400.0,
        "keep_max": 86400.0,
        "task_prolog": {"deadline": 0.5, "chain": "/etc/slurm/task_prolog"},
        "epilog": {"deadline": 2.0, "budget": 1.999},
        "sweep": {
            "grace": 93784.005,
            "confirm": 0.0,
            "unrecorded": "reap",
            "max_deletes_per_second": 2000,
            "stray_processes": "terminate",
            "comment": "off",
        },
        "store": {"user": "/s/{user}", "site": "/s/site-{cluster}", "publish": "all", "max_size": 10**12, "max_age": 7776000.0},
        "log": {"file": None, "syslog": "/run/log", "level": "debug"},
        "metrics": {"textfile": "/var/lib/x.prom", "sizes": False, "by_user": False},
        "slurm": {"conf": "/etc/slurm.conf", "squeue": "/opt/slurm/bin/squeue", "scontrol": "scontrol-24.05", "timeout": 120.0},
    }


@pytest.mark.parametrize("word", ["on", "off"])
def test_on_and_off_are_text(load, word):
    assert load(f"mode: {word}").tree["mode"] == word
    rules = load(f"rules: [{{match: {{user: a}}, cache: {word}}}]").tree["rules"]
    assert rules == [{"match": {"user": ["a"]}, "cache": word}]


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("/dev/log", "/dev/log")])
def test_syslog_accepts_a_boolean_or_a_socket(load, text, value):
    assert load(f"log: {{syslog: {text}}}").tree["log"]["syslog"] == value


@pytest.mark.parametrize("name", ["no", "yes", "0123", "1_000", "1:30", "y"])
def test_words_that_yaml_1_1_converts_stay_text(load, name):
    assert load(f"rules: [{{match: {{account: {name}}}, cache: off}}]").tree["rules"][0]["match"] == {"account": [name]}


def test_integers_in_float_notation_become_ints(load):
    tree = load("min_uid: 2000.0\nsweep: {max_deletes_per_second: 1e3}").tree
    assert [repr(tree["min_uid"]), repr(tree["sweep"]["max_deletes_per_second"])] == ["2000", "1000"]


def test_a_map_in_the_file_replaces_the_default_map(load):
    assert load('exports: {A: "{cache}"}').tree["exports"] == {"A": "{cache}"}


# Origins, and the output of show


def test_origins_name_the_line_of_each_key(load):
    loaded = load('mode: off\nsweep:\n  grace: 2h\nexports:\n  A: "{cache}"\nrules:\n- match: {user: [a, b]}\n  cache: off\n')
    given = {key: origin for key, origin in loaded.origins.items() if origin != "default"}
    assert given == {
        "mode": f"{loaded.file}:1",
        "sweep.grace": f"{loaded.file}:3",
        "exports": f"{loaded.file}:4",
        "exports.A": f"{loaded.file}:5",
        "rules": f"{loaded.file}:6",
        "rules[0]": f"{loaded.file}:7",
        "rules[0].match": f"{loaded.file}:7",
        "rules[0].match.user": f"{loaded.file}:7",
        "rules[0].match.user[0]": f"{loaded.file}:7",
        "rules[0].match.user[1]": f"{loaded.file}:7",
        "rules[0].cache": f"{loaded.file}:8",
    }
    assert set(load("").origins.values()) == {"default"}


def test_show_has_text_and_origin_of_every_key(load):
    loaded = load("sweep: {grace: 90m}\nrules:\n- {match: {user: '*-svc'}, cache: off}\n")
    rows = configuration.show(loaded)
    assert ("sweep.grace", "90m", f"{loaded.file}:1") in rows
    assert ("keep_max", "72h", "default") in rows
    assert ("rules[0]", '{match: {user: "*-svc"}, cache: off}', f"{loaded.file}:3") in rows
    assert ("store.max_size", "50GiB", "default") in rows
    assert ("path", DEFAULTS["path"], "default") in rows
    assert [key for key, _, _ in configuration.show(load(""))] == [key.name for key in keys.every_key()]


def test_show_json_has_converted_values(load):
    rows = {
        row["key"]: row
        for row in json.loads(json.dumps(configuration.show_json(load("rules: [{match: {user: a}, cache: off}]"))))
    }
    assert rows["sweep.grace"] == {"key": "sweep.grace", "value": 3600.0, "text": "1h", "origin": "default"}
    assert rows["store.max_size"]["value"] == 50 * 1024**3
    assert rows["rules[0]"]["value"] == {"match": {"user": ["a"]}, "cache": "off"}
    assert "rules" not in rows


def pasted(rows):
    """Return a file with the keys and values that `show` prints."""
    lines, section = [], ""
    for key, text, _ in rows:
        outer, _, inner = key.rpartition(".")
        if outer != section:
            section = outer
            lines += [f"{outer}:"] if outer else []
        if key == "rules[0]":
            lines.append("rules:")
        lines.append(f"- {text}" if key.startswith("rules[") else f"{'  ' if outer else ''}{inner}: {text}")
    return "\n".join(lines) + "\n"


PATTERNS = st.text(st.characters(blacklist_categories=["C", "Z"], blacklist_characters="["), min_size=1) | st.sampled_from(
    ["true", "12", "1e3", "null", "~", "2024-01-01", "on", "*", "a: b"]
)
DURATIONS = st.builds("{}{}".format, st.integers(1, 999), st.sampled_from(["ms", "s", "m", "h", "d"]))
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(["on", "observe", "off"]),
        "cluster": st.sampled_from(["tiger", "42", "null", "...", "-x", None]),
        "exports": st.dictionaries(
            st.sampled_from(["A", "B", "null", "on"]), st.sampled_from(["{cache}", '{cache}/"q" \\ # ü']), min_size=1
        ),
        "rules": st.lists(
            st.fixed_dictionaries(
                {
                    "match": st.dictionaries(
                        st.sampled_from(["user", "qos"]), PATTERNS | st.lists(PATTERNS, min_size=1), min_size=1
                    ),
                    "cache": st.sampled_from(["on", "off"]),
                }
            )
        ),
        "node_local": st.lists(st.sampled_from(["/local", "/a b", "/it's", "/ü: #"])),
        "sweep": st.none()
        | st.fixed_dictionaries({}, optional={"grace": DURATIONS, "max_deletes_per_second": st.none() | st.integers(1, 10**9)}),
        "log": st.fixed_dictionaries({}, optional={"syslog": st.booleans(), "file": st.none()}),
    },
)


@given(DOCUMENTS)
@settings(deadline=None)
def test_output_of_show_loads_as_the_same_configuration(load, document):
    first = load(json.dumps(document, ensure_ascii=False))
    again = load(pasted(configuration.show(first)))
    assert again.tree == first.tree
    assert again.texts == first.texts


# Durations and sizes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("2h", 7200), ("3d", 259200), ("500ms", 0.5), ("1h30m", 5400), ("5m5ms", 300.005), ("0s", 0)],
)
def test_parse_duration_returns_seconds(text, seconds):
    assert notation.parse_duration(text) == seconds
    assert isinstance(notation.parse_duration(text), float)


@pytest.mark.parametrize(
    "text", ["", "5", "5 m", "5min", "1.5h", "-5s", "m", "30m1h", "5s5s", "٣s", "5s\n", "1w", "1" * 10 + "s"]
)
def test_parse_duration_refuses_other_text(text):
    with pytest.raises(ValueError, match="is not a duration; write a duration such as"):
        notation.parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0B", 0),
        ("512MiB", 512 * 1024**2),
        ("50GiB", 50 * 1024**3),
        ("1TB", 10**12),
        ("10GB", 10**10),
        ("3kB", 3000),
        ("3KB", 3000),
        ("3KiB", 3072),
        ("2PiB", 2 * 1024**5),
        ("2PB", 2 * 10**15),
        ("7B", 7),
    ],
)
def test_parse_size_returns_bytes(text, size):
    assert notation.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5", "50G", "5 GB", "1.5GB", "-1B", "GB", "5gb", "5kiB", "1EB", "5B\n"])
def test_parse_size_refuses_other_text(text):
    with pytest.raises(ValueError, match="is not a size; write a size such as"):
        notation.parse_size(text)


# Files that cannot be read


@pytest.fixture
def disk(fs):
    fs.add_real_directory(ROOT / "hooks" / "jobcache" / "config" / "schema")
    return fs


def only_problem(path):
    with pytest.raises(errors.ConfigError) as caught:
        configuration.load(path)
    (problem,) = caught.value.problems
    assert str(problem) == str(caught.value)
    return str(problem)


def test_missing_file_is_reported(disk):
    assert only_problem("/etc/x.yaml") == (
        "/etc/x.yaml: the file does not exist; create it (an empty file gives the defaults), or name another file with --config"
    )


def test_directory_is_reported(disk):
    disk.create_dir("/etc/x.yaml")
    assert only_problem("/etc/x.yaml").startswith("/etc/x.yaml: cannot read the file: Is a directory; ")


def test_unreadable_file_is_reported(disk):
    from pyfakefs.helpers import set_uid

    disk.create_file("/etc/x.yaml", st_mode=0o100000)
    set_uid(1000)
    try:
        assert only_problem("/etc/x.yaml").startswith("/etc/x.yaml: cannot read the file: Permission denied; ")
    finally:
        set_uid(0)


def test_path_with_nul_is_reported():
    assert only_problem("/etc/\0").startswith("/etc/\\x00: cannot read the file: ")


def test_bytes_that_are_not_utf_8_are_reported(disk):
    disk.create_file("/etc/x.yaml", contents=b"mode: on\ncluster: M\xfcller\n")
    assert only_problem("/etc/x.yaml") == "/etc/x.yaml:2: the byte 0xfc is not UTF-8; save the file as UTF-8"


def test_file_above_1_mib_is_refused(disk):
    disk.create_file("/etc/x.yaml", contents=b"#" * 1024 * 1024)
    assert configuration.load("/etc/x.yaml").tree == DEFAULTS
    disk.create_file("/etc/y.yaml", contents=b"#" * (1024 * 1024 + 1))
    assert only_problem("/etc/y.yaml").startswith("/etc/y.yaml: the file is larger than 1 MiB; ")


# Syntax errors


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("mode: on\n\tpath: x", 2, "at column 1, a tab; indent with spaces"),
        ("rules:\n- match: {user: *}", 2, 'at column 17, a value begins with *; put it in quotes, such as "*-svc"'),
        ("rules:\n- match: {user: [*-svc]}", 2, 'a value begins with * or &; put it in quotes, such as "*-svc"'),
        ("mode: on\ncluster: &x a", 2, "a value begins with * or &"),
        ("cluster: & a", 1, "a value begins with &; put it in quotes"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", 1, "a value begins with * or &"),
        ("a: &a [*a]", 1, "a value begins with * or &"),
        ("cluster: %x", 1, "at column 10, a value begins with %, @ or `; put it in quotes"),
        ("cluster: @x", 1, "put it in quotes"),
        (
            "path: {user}/x",
            1,
            "does not continue the value before it; align the line, or put the whole value in quotes",
        ),
        ("sweep:\n  grace: 1h\n confirm: 1h", 3, "align the line"),
        ("cluster: it's: x", 1, "an unexpected `:`"),
        ("mode: on\n  path: x", 2, "an unexpected `:`; align the line"),
        ("mode: on\npath:/x\nscope: job", 2, "neither `key: value` nor `- item`; write a colon and a space after the key"),
        ("mode: on\nnode_local: [/a, /b\nscope: job\n", 2, "at column 13, a [ is not closed"),
        ("mode: on\nsweep: {grace: 1h\nscope: job\n", 2, "at column 8, a { is not closed"),
        ("mode: on\ncluster: 'x\nscope: job\n", 2, "at column 10, a quote is not closed; close it"),
        ('mode: on\ncluster: "x\nscope: job\n', 2, "a quote is not closed"),
        ('cluster: "\\d"', 1, "a backslash in double quotes begins no known escape; use single quotes"),
        ('cluster: "\\xZZ"', 1, "a backslash in double quotes"),
        ('mode: on\ncluster: "\\U00110000"', 2, "an escape or a number is out of range"),
        ('cluster: "\\UFFFFFFFF"', 1, "an escape or a number is out of range"),
        ("%YAML 1." + "9" * 5000 + "\n---\nmode: on", 1, ""),
        ("%YAML 2.0\n---\nmode: on", 1, "not YAML (found incompatible YAML document"),
        ("%X\nmode: on", 2, "a second document, or a line with %"),
        ("mode: on\n---\nmode: off", 2, "a second document; keep one"),
        ("mode: on\n...\nmode: off", 3, "a second document"),
        ("node_local: - /a", 1, "an unexpected `- `; begin the list on a new line"),
        ("mode: on\ncluster: ]", 2, "a bracket, a comma or the end in place of a value"),
        ("sweep: {", 1, "a bracket, a comma or the end in place of a value; write the value, and close open brackets"),
        ("cluster: !x!y z", 1, "a value begins with !; put it in quotes"),
        ("mode: on\ncluster: a\x07b", 2, "a control character, U+0007; remove it"),
        ("[" * 100_000, 1, "lists or maps are nested too deeply"),
        ("- " * 100_000, 1, "too deeply"),
        ("{a: " * 100_000, 1, "too deeply"),
    ],
)
def test_syntax_errors_have_line_fault_and_remedy(refuse, text, line, words):
    (problem,) = refuse(text)
    assert (problem.line, problem.key) == (line, "")
    assert words in message(problem)


# Invalid values: text, and (line, key, part of the message) of each problem

DURATION = "write a duration such as 5s, 2m, 1h or 3d"
CLEAN = "write an absolute path without placeholders, `.`, `..` or a slash at the end"
WRONG = [
    # the document
    ("- mode: on", [(1, "", "expected `key: value` lines, got a list; write `key: value`, with a space after the colon")]),
    ("mode:on", [(1, "", 'got the text "mode:on"; write `key: value`, with a space after the colon')]),
    ("42", [(1, "", "got a number")]),
    ("mode: on\nscope: job\nmode: off", [(3, "mode", "the key appears twice, first on line 1; remove one of them")]),
    ("sweep: {grace: 1h, grace: 2h}", [(1, "sweep.grace", "appears twice")]),
    ("? [a]\n: x", [(1, "", "a list or map in place of a key; put a value that begins with [ or { in quotes")]),
    (
        "cluster: !!python/object/apply:os.system [x]",
        [(1, "cluster", "the YAML tag !!python/object/apply:os.system is not supported; remove the tag")],
    ),
    ("cluster: !!python/name:os.system x", [(1, "cluster", "the YAML tag !!python/name:os.system is not supported")]),
    ("cluster: !x y", [(1, "cluster", "the YAML tag !x is not supported")]),
    ("min_uid: !!int x", [(1, "min_uid", "the YAML tag !!int is not supported")]),
    (
        "exports: !!set {A, B}",
        [
            (1, "exports", "the YAML tag !!set"),
            (1, "exports.A", "the value is missing"),
            (1, "exports.B", "the value is missing"),
        ],
    ),
    ("node_local: !!omap [/a]", [(1, "node_local", "the YAML tag !!omap is not supported")]),
    ("!!binary mode: on", [(1, "mode", "the YAML tag !!binary is not supported")]),
    # keys
    ("sweep:\n  grce: 1h", [(2, "sweep.grce", "unknown key; did you mean sweep.grace?")]),
    ("Mode: on", [(1, "Mode", "unknown key; did you mean mode?")]),
    ("min-uid: 5", [(1, "min-uid", "did you mean min_uid?")]),
    ("sweep.grace: 1h", [(1, '"sweep.grace"', "unknown key; write it as sweep: {grace: …}")]),
    ("grace: 1h", [(1, "grace", "did you mean sweep.grace?")]),
    ("deadline: 1s", [(1, "deadline", "did you mean task_prolog.deadline or epilog.deadline?")]),
    ("xyzzy: 1", [(1, "xyzzy", "unknown key; the keys allowed here are mode, path, cluster,")]),
    ("true: 1", [(1, "true", "unknown key")]),
    ('"": 1', [(1, '""', "unknown key")]),
    ("<<: {mode: on}", [(1, '"<<"', "unknown key")]),
    ('"a\\nb": 1', [(1, '"a\nb"', "unknown key")]),
    ("rules:\n- match: {usr: a}\n  cache: off", [(2, "rules[0].match.usr", "did you mean rules[0].match.user?")]),
    ("sweep: 1h", [(1, "sweep", 'expected keys, got the text "1h"; write its keys below it')]),
    ("sweep: [grace]", [(1, "sweep", "expected keys, got a list")]),
    # words
    ("mode: onn", [(1, "mode", 'expected on, observe or off, got "onn"; did you mean on?')]),
    ("mode: true", [(1, "mode", "expected on, observe or off, got true; did you mean on?")]),
    ("mode: no", [(1, "mode", "did you mean off?")]),
    ("mode:", [(1, "mode", "the value is missing; write on, observe or off")]),
    ("mode: xyzzy", [(1, "mode", "write on, observe or off")]),
    ("scope: [job]", [(1, "scope", 'expected job, node or task, got ["job"]; did you mean job?')]),
    ("scope: rank", [(1, "scope", 'expected job, node or task, got "rank"; write job, node or task')]),
    ("offline: 1", [(1, "offline", "expected inherit, skip or isolate, got 1")]),
    ("sweep: {unrecorded: delete}", [(1, "sweep.unrecorded", "expected report or reap, got")]),
    ("log: {level: warning}", [(1, "log.level", "expected info or debug, got")]),
    # text
    ("cluster: 42", [(1, "cluster", 'expected text, but 42 is a number; put it in quotes: "42"')]),
    ("cluster: 1.50", [(1, "cluster", 'put it in quotes: "1.50"')]),
    ("cluster: true", [(1, "cluster", '; put it in quotes: "true"')]),
    ("cluster: 2024-01-01", [(1, "cluster", '"2024-01-01" is a date in YAML; put it in quotes: "2024-01-01"')]),
    ("cluster: a/b", [(1, "cluster", "is not a cluster's name or null; write ClusterName of slurm.conf")]),
    ("cluster: ''", [(1, "cluster", "is not a cluster's name")]),
    ("cluster: ..", [(1, "cluster", "is not a cluster's name")]),
    ("cluster: {tiger}", [(1, "cluster", "got a map; put a value that begins with { in quotes")]),
    ('cluster: "a\\0b"', [(1, "cluster", "contains a control or invisible character, U+0000; remove it")]),
    ("run_dir: |\n  /run\n", [(1, "run_dir", "U+000A; remove it")]),
    ('path: "/x/{user}/\\e{job_id}"', [(1, "path", "U+001B; remove it")]),
    ('path: "/x/{user}/\\uD800{job_id}"', [(1, "path", "U+D800; remove it")]),
    ("run_dir: /run/\u00a0jobcache", [(1, "run_dir", "invisible character, U+00A0; remove it")]),
    ("rules: [{match: {user: ['a', \"b\\n\"]}, cache: off}]", [(1, "rules[0].match.user[1]", "U+000A")]),
    # durations and sizes
    ("task_prolog: {deadline: 5}", [(1, "task_prolog.deadline", f"5 has no unit; {DURATION}")]),
    ("keep_max: '5'", [(1, "keep_max", f'"5" has no unit; {DURATION}')]),
    ("keep_max: 1.5", [(1, "keep_max", f"1.5 has no unit; {DURATION}")]),
    ("keep_max: 5 min", [(1, "keep_max", f'"5 min" is not a duration; {DURATION}')]),
    ("keep_max: true", [(1, "keep_max", f"expected a duration, got a boolean; {DURATION}")]),
    ("keep_max:", [(1, "keep_max", f"the value is missing; {DURATION}")]),
    ("keep_max: [1h]", [(1, "keep_max", f"expected a duration, got a list; {DURATION}")]),
    ("task_prolog: {deadline: 0s}", [(1, "task_prolog.deadline", '"0s" is not a duration above zero')]),
    ("epilog: {deadline: 0ms}", [(1, "epilog.deadline", "is not a duration above zero")]),
    ("slurm: {timeout: 0s}", [(1, "slurm.timeout", "is not a duration above zero")]),
    ("store: {max_size: 50}", [(1, "store.max_size", "50 has no unit; write a size such as 512MiB, 50GiB or 1TB")]),
    ("store: {max_size: 50G}", [(1, "store.max_size", '"50G" is not a size; write a size such as')]),
    # numbers
    ("min_uid: '1000'", [(1, "min_uid", 'expected a whole number, got the text "1000"; write 1000, without quotes')]),
    ("min_uid: 01000", [(1, "min_uid", "write 1000, without quotes")]),
    ("min_uid: 1_000_", [(1, "min_uid", "write 1000, without quotes")]),
    ("min_uid: many", [(1, "min_uid", 'got the text "many"; write a uid from 1')]),
    ("min_uid: 0", [(1, "min_uid", "0 is out of range; write a uid from 1 to 4294967294")]),
    ("min_uid: -1", [(1, "min_uid", "-1 is out of range")]),
    ("min_uid: 4294967295", [(1, "min_uid", "4294967295 is out of range")]),
    ("min_uid: 1.5", [(1, "min_uid", "expected a whole number, got a number")]),
    ("min_uid: true", [(1, "min_uid", "expected a whole number, got a boolean")]),
    ("min_uid: " + "9" * 5000, [(1, "min_uid", "is too long for a number")]),
    ("min_uid: 1e999", [(1, "min_uid", "expected a whole number")]),
    ("sweep: {max_deletes_per_second: 0}", [(1, "sweep.max_deletes_per_second", "0 is out of range; write a number from 1")]),
    # paths
    ("run_dir: run", [(1, "run_dir", f'"run" is not an absolute path; {CLEAN}')]),
    ("run_dir: /", [(1, "run_dir", "is not an absolute path")]),
    ("run_dir: /run/", [(1, "run_dir", "is not an absolute path")]),
    ("run_dir: /run//x", [(1, "run_dir", "is not an absolute path")]),
    ("run_dir: /run/./x", [(1, "run_dir", "is not an absolute path")]),
    ("run_dir: 5", [(1, "run_dir", "expected an absolute path, got a number")]),
    ("log: {file: ../x}", [(1, "log.file", "is not an absolute path or null; write null, or an absolute path")]),
    ("log: {file: '/x/{user}'}", [(1, "log.file", "without placeholders")]),
    ("slurm: {conf: /x/..}", [(1, "slurm.conf", "is not an absolute path")]),
    ("metrics: {textfile: x.prom}", [(1, "metrics.textfile", "is not an absolute path")]),
    ("metrics: {textfile: /x/jobcache.txt}", [(1, "metrics.textfile", "that ends in .prom")]),
    ("metrics: {textfile: /x/.prom}", [(1, "metrics.textfile", "that ends in .prom")]),
    ("metrics: {textfile: /x/../a.prom}", [(1, "metrics.textfile", "is not an absolute path")]),
    ("task_prolog:\n  chain: task_prolog.sh", [(2, "task_prolog.chain", "is not an absolute path")]),
    (
        "node_local: /local",
        [(1, "node_local", 'expected a list of absolute paths, got the text "/local"; write a list such as [/local, /tmp]')],
    ),
    (
        "node_local:\n- /local\n- tmp\n- 5",
        [(3, "node_local[1]", "is not an absolute path"), (4, "node_local[2]", "got a number")],
    ),
    ("node_local: {/local: x}", [(1, "node_local", "expected a list of absolute paths, got a map")]),
    (
        "slurm: {squeue: bin/squeue}",
        [(1, "slurm.squeue", "is not a command's name or absolute path; write a name such as squeue")],
    ),
    ("slurm: {scontrol: -x}", [(1, "slurm.scontrol", "is not a command's name")]),
    ("slurm: {scontrol: ..}", [(1, "slurm.scontrol", "is not a command's name")]),
    ("log: {syslog: yes}", [(1, "log.syslog", '"yes" is text here; write true')]),
    ("log: {syslog: off}", [(1, "log.syslog", "write false")]),
    (
        "log: {syslog: local0}",
        [(1, "log.syslog", "is not true, false or an absolute path; write true, false, or the absolute path")],
    ),
    ("log: {syslog: 1}", [(1, "log.syslog", "expected true, false or an absolute path, got a number")]),
    # templates
    ("path: /x/{user}/cache", [(1, "path", "{job_id} has to stand once, in the last component; end it like")]),
    ("path: /x/{job_id}", [(1, "path", "neither {user} nor {uid} in a directory above")]),
    ("path: x/{user}/{job_id}", [(1, "path", "not an absolute path; begin it with /")]),
    ("path: /x/../{user}/{job_id}", [(1, "path", "an empty component, `.` or `..` in it")]),
    ("path: /x/{user}/{jobid}", [(1, "path", "unknown placeholder {jobid}; known are {user}")]),
    ("path: ''", [(1, "path", "not an absolute path")]),
    ("path: 5", [(1, "path", "expected a path template, got a number; write a path such as /scratch")]),
    ("path: {user}", [(1, "path", "put a value that begins with { in quotes")]),
    ("rules:\n- match: {user: a}\n  path: /x/{job_id}", [(3, "rules[0].path", "neither {user} nor {uid}")]),
    ("store: {user: /x/store}", [(1, "store.user", "neither {user} nor {uid} is in the path; give each user a separate store")]),
    (
        "store: {user: '/x/{user}/{job_id}'}",
        [(1, "store.user", "an unknown placeholder in the path of a store; use {user}, {uid} and {cluster} only")],
    ),
    ("store: {user: 'x/{user}'}", [(1, "store.user", "not an absolute path; write an absolute path without")]),
    ("store: {site: '/x/{node}'}", [(1, "store.site", "an unknown placeholder in the path of a store")]),
    ("store: {site: '/x/{user'}", [(1, "store.site", "an unknown placeholder in the path of a store")]),
    ("store: {site: /x/../y}", [(1, "store.site", "not an absolute path; write an absolute path without")]),
    ("store: {site: 5}", [(1, "store.site", "expected a path template or null, got a number")]),
    # containers
    ("containers: off", [(1, "containers", "write it as {apptainer: off}")]),
    ("containers: {}", [(1, "containers", "write it as {apptainer: off}")]),
    ("containers: {apptainer: on}", [(1, "containers.apptainer", 'expected bind or off, got "on"')]),
    ("containers: {podman: bind}", [(1, "containers.podman", "the keys allowed here are apptainer")]),
    # exports_for
    ("exports_for: [tritn]", [(1, "exports_for[0]", "did you mean triton?")]),
    ("exports_for: triton", [(1, "exports_for", "write a list")]),
    # exports
    ("exports: {}", [(1, "exports", 'the value is empty; write at least one, such as {HF_DATASETS_CACHE: "{cache}"}')]),
    ("exports:", [(1, "exports", "the value is missing; write at least one")]),
    ("exports: [A]", [(1, "exports", "expected a map of variables, got a list")]),
    (
        "exports:\n  HF_DATASETS_CACHE: {cache}",
        [(2, "exports.HF_DATASETS_CACHE", "got a map; put a value that begins with { in quotes")],
    ),
    ("exports: {A: /x}", [(1, "exports.A", '"/x" is not a path in the cache; write "{cache}", or a path below it')]),
    ("exports: {A: '{cache}x'}", [(1, "exports.A", "is not a path in the cache")]),
    ("exports: {A: '{cache}/'}", [(1, "exports.A", "is not a path in the cache")]),
    ("exports: {A: '{cache}/../x'}", [(1, "exports.A", "is not a path in the cache")]),
    ("exports: {A: '{cache}/x/./y'}", [(1, "exports.A", "is not a path in the cache")]),
    ("exports: {A: '{cache}/x//y'}", [(1, "exports.A", "is not a path in the cache")]),
    ("exports: {A: '{cache}/{user}'}", [(1, "exports.A", "is not a path in the cache")]),
    ('exports: {A: "{cache}/x\\ny"}', [(1, "exports.A", "U+000A")]),
    ("exports: {A: '{cache}/.jobcache/x'}", [(1, "exports.A", ".jobcache in a cache is reserved for jobcache's own files")]),
    ("exports: {1A: '{cache}'}", [(1, "exports.1A", '"1A" is not a variable\'s name; write a name of letters')]),
    ("exports: {A-B: '{cache}'}", [(1, "exports.A-B", "is not a variable's name")]),
    ("exports: {1A: /x}", [(1, "exports.1A", "is not a variable's name"), (1, "exports.1A", "is not a path in the cache")]),
    ("rules: [{match: {user: a}, exports: {PATH: '{cache}'}}]", [(1, "rules[0].exports.PATH", "a reserved variable")]),
    # rules
    ("rules: {match: {user: a}}", [(1, "rules", "expected a list of rules, got a map; write each as `- match:")]),
    ("rules: [debug]", [(1, "rules[0]", 'expected a rule, got the text "debug"; write it as `- match:')]),
    ("rules:\n- match: {user: a}", [(2, "rules[0]", "the only key is match; write it as `- match:")]),
    ("mode: on\nrules:\n- cache: off\n  scope: job", [(3, "rules[0]", "match is missing; write it as")]),
    ("rules: [{}]", [(1, "rules[0]", "match is missing")]),
    (
        "rules: [{match: {}, cache: off}]",
        [(1, "rules[0].match", "the value is empty; write at least one of partition, account, qos and user")],
    ),
    ("rules: [{match: , cache: off}]", [(1, "rules[0].match", "the value is missing; write at least one of partition")]),
    ("rules: [{match: debug, cache: off}]", [(1, "rules[0].match", 'expected a map of patterns, got the text "debug"')]),
    (
        "rules: [{match: {user: []}, cache: off}]",
        [(1, "rules[0].match.user", "value is empty; write a pattern such as debug")],
    ),
    (
        "rules: [{match: {user: ''}, cache: off}]",
        [(1, "rules[0].match.user", "value is empty; write a pattern such as debug")],
    ),
    ("rules: [{match: {user: [a, '']}, cache: off}]", [(1, "rules[0].match.user[1]", "the value is empty; write a pattern")]),
    (
        "rules: [{match: {account: 123}, cache: off}]",
        [(1, "rules[0].match.account", 'expected text, but 123 is a number; put it in quotes: "123"')],
    ),
    ("rules: [{match: {account: [123]}, cache: off}]", [(1, "rules[0].match.account[0]", 'put it in quotes: "123"')]),
    (
        "rules:\n- match: {user: ['svc-[$(id)]', a], qos: '[b'}\n  cache: off",
        [
            (2, "rules[0].match.user[0]", '"svc-[$(id)]" is not a shell-style pattern; use brackets only with'),
            (2, "rules[0].match.qos", '"[b"'),
        ],
    ),
    (
        "rules: [{match: {user: {a: b}}, cache: off}]",
        [(1, "rules[0].match.user", "expected a shell-style pattern or a list of them, got a map")],
    ),
    ("rules: [{match: {user: a}, cache: yes}]", [(1, "rules[0].cache", 'expected on or off, got "yes"; did you mean on?')]),
    (
        "rules: [{match: {user: a}, keep_max: 1h}]",
        [(1, "rules[0].keep_max", "unknown key; the keys allowed here are match, cache, mode, path,")],
    ),
    (
        "rules: [{user: a, cache: off}]",
        [(1, "rules[0]", "match is missing"), (1, "rules[0].user", "did you mean rules[0].match.user?")],
    ),
    # values against each other
    (
        "epilog:\n  budget: 30s",
        [(2, "epilog.budget", "epilog.budget (30s) must be less than epilog.deadline (30s); change one of them")],
    ),
    ("epilog:\n  deadline: 500ms", [(2, "epilog.deadline", "epilog.budget (1s) must be less than epilog.deadline (500ms)")]),
    ("epilog:\n  deadline: 10s\n  budget: 1m", [(3, "epilog.budget", "epilog.budget (1m) must be less than")]),
    ("epilog: {deadline: 0s, budget: 1m}", [(1, "epilog.deadline", "above zero")]),
    ("keep_failed: 4d", [(1, "keep_failed", "keep_failed (4d) must not be more than keep_max (72h)")]),
    ("keep_failed: 2h\nkeep_max: 1h", [(1, "keep_failed", "must not be more than keep_max (1h)")]),
    # several at once, in order of line
    (
        "keep_max: 5\nmode: onn\nlog:\n  fle: /x\nsweep: {grace: 1}\nrules:\n- cache: of\nmode: on\nmin_uid: 0\n",
        [
            (1, "keep_max", "has no unit"),
            (2, "mode", "did you mean on?"),
            (4, "log.fle", "did you mean log.file?"),
            (5, "sweep.grace", "has no unit"),
            (7, "rules[0]", "match is missing"),
            (7, "rules[0].cache", "did you mean off?"),
            (8, "mode", "appears twice"),
            (9, "min_uid", "out of range"),
        ],
    ),
]


@pytest.mark.parametrize(("text", "expected"), WRONG, ids=[text[:40] for text, _ in WRONG])
def test_every_invalid_value_is_reported_with_line_and_key(refuse, text, expected):
    problems = refuse(text)
    assert [(problem.line, problem.key) for problem in problems] == [(line, key) for line, key, _ in expected]
    for problem, (_, _, words) in zip(problems, expected):
        assert words in message(problem)


@pytest.mark.parametrize("text", ["keep_failed: 72h", "keep_failed: 0s\nkeep_max: 0s", "epilog: {budget: 0s}", "keep_max: 3d"])
def test_values_at_the_limit_load(load, text):
    load(text)


@pytest.mark.parametrize(
    "name",
    [
        "PATH",
        "IFS",
        "ENV",
        "BASH_ENV",
        "HOME",
        "USER",
        "SHELL",
        "SHELLOPTS",
        "PYTHONPATH",
        "LD_PRELOAD",
        "SLURM_CONF",
        "JOBCACHE",
        "JOBCACHE_DIR",
    ],
)
def test_reserved_variables_are_refused(refuse, name):
    (problem,) = refuse(f'exports: {{{name}: "{{cache}}"}}')
    assert (problem.key, problem.what) == (f"exports.{name}", "a reserved variable")


def test_a_problem_prints_as_one_line(load):
    with pytest.raises(errors.ConfigError) as caught:
        load('"a\\nb\\e\\uD800": 1\nmode: "x\\ny"\n')
    first, second = str(caught.value).split("\n")
    assert first.endswith(
        r'jobcache.yaml:1: "a\nb\x1b\ud800": unknown key; the keys allowed here are ' + first.rpartition("are ")[2]
    )
    assert second.endswith(r':2: mode: "x\ny" contains a control or invisible character, U+000A; remove it')
    first.encode()


def test_long_values_are_clipped(refuse):
    for text in ("mode: " + "x" * 5000, "a" * 900 + ": 1", "scope: [" + "x, " * 500 + "]", "cluster: !" + "x" * 900 + " y"):
        assert all(len(str(problem)) < 500 for problem in refuse(text))


# Arbitrary files


@given(st.text() | st.binary() | st.text(st.sampled_from(list("{}[]:,-&*!|>'\"%@`#? \n\tabon019~.<=")), max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_loads_or_is_refused(load, text):
    try:
        load(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    except errors.ConfigError as error:
        assert error.problems


KEYS = st.sampled_from(
    sorted({part for key in keys.every_key() for part in key.name.split(".")} | {"match", "user", "cache", "PATH"})
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["on", "5s", "/x", "{cache}", "2024-01-01"])
)
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(), inner, max_size=4))
JSONSCHEMAS_WORDS = re.compile(
    r"is not of type|does not match|valid under|dditional ?[pP]ropert|non-empty|is a required|is not one of|\^"
)


@given(st.dictionaries(KEYS, TREES, max_size=6))
@settings(max_examples=300, deadline=None)
def test_any_tree_loads_or_is_refused_without_words_of_jsonschema(load, tree):
    text = json.dumps(tree)
    try:
        load(text)
    except errors.ConfigError as error:
        for problem in error.problems:
            assert problem.remedy
            assert problem.line >= 1
            assert "\n" not in str(problem)
            if "^" not in text:
                assert not JSONSCHEMAS_WORDS.search(message(problem))


# The schema and the texts generated from it


def subschemas(schema):
    yield schema
    for name in ("properties", "definitions"):
        for inner in schema.get(name, {}).values():
            yield from subschemas(inner)
    for name in ("items", "propertyNames", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from subschemas(schema[name])


def test_schema_is_valid_draft_7():
    jsonschema.Draft7Validator.check_schema(keys.schema())


def test_every_keyword_of_the_schema_has_an_explanation():
    handled_elsewhere = {"additionalProperties", "propertyNames", "properties", "items", "definitions", "$ref"}
    notes = {"$schema", "$comment", "title", "description", "default", "examples", "heading", "kind", "unit", "remedy"}
    for schema in subschemas(keys.schema()):
        assert set(schema) - handled_elsewhere - notes <= set(validation.EXPLANATIONS)


@pytest.mark.parametrize("key", list(keys.every_key()), ids=lambda key: key.name)
def test_every_key_has_a_title_a_description_and_valid_examples(load, key):
    assert key.about["title"] and key.about["description"].endswith(".")
    outer, _, inner = key.name.rpartition(".")
    for value in [*key.about["examples"], key.about["default"]]:
        text = notation.text_of(value)
        if outer:
            load(f"{outer}: {{{inner}: {text}}}")
        else:
            load(f"{inner}: {text}")


REGENERATE = "the schema has changed: run `jobcache show-config {} > {}`"


def test_example_file_is_current():
    written = (ROOT / "etc" / "jobcache.yaml").read_text(encoding="utf-8")
    assert written == reference.example_text(), REGENERATE.format("--example", "etc/jobcache.yaml")


def test_reference_page_is_current():
    written = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")
    assert written == reference.reference_text(), REGENERATE.format("--reference", "docs/config.md")


def test_example_file_loads_as_the_defaults(load):
    loaded = load(reference.example_text())
    assert loaded.tree == DEFAULTS
    assert set(loaded.origins.values()) == {"default"}


def test_each_key_of_the_example_file_can_be_uncommented(load):
    lines = reference.example_text().splitlines()
    names = [key.name for key in keys.every_key()]
    uncommented = []
    for i, line in enumerate(lines):
        if re.match(r" *#\w+: .", line):
            loaded = load("\n".join([*lines[:i], line.replace("#", "", 1), *lines[i + 1 :]]))
            assert loaded.tree == DEFAULTS
            uncommented += [name for name in names if loaded.origins[name] == f"{loaded.file}:{i + 1}"]
    assert uncommented == names


def test_the_rules_of_the_example_file_can_be_uncommented(load):
    lines = [line for line in reference.example_text().splitlines() if re.match(r"#rules:$|#  ", line)]
    rules = load("\n".join(line[1:] for line in lines)).tree["rules"]
    assert rules == [
        {"match": {"partition": ["debug", "viz"], "user": ["svc-*"]}, "cache": "off"},
        {"match": {"account": ["astro"]}, "path": "/local/scratch/{user}/hf-datasets-{job_id}", "scope": "node"},
    ]


def test_the_example_file_fits_two_screens():
    lines = reference.example_text().splitlines()
    assert len(lines) < 80
    assert max(map(len, lines)) <= 110


def test_import_opens_no_file(tmp_path):
    code = "import builtins, io, jobcache.cache.path_template, jsonschema, yaml\n"
    code += "builtins.open = io.open = None\nimport jobcache.config.reference"
    env = {**os.environ, "PYTHONPATH": str(ROOT / "hooks"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)
