"""The command `to-parquet`: its progress and its output."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import click

from jobcache.cli import common, signals
from jobcache.parquet import convert, sources


def command(words: Sequence[str], fields: Sequence[str], destination: str, as_json: bool) -> int:
    """Convert the sources, print how to load the result, and return the exit status."""
    signals.exit_on_termination()
    try:
        found = sources.parse_sources(words, fields)
        with common.progress(as_json) as show:

            def report_progress(activity: str, done: int, of: int) -> None:
                signals.exit_if_received()
                show(activity, done, of)

            written = convert.convert(found, destination, report_progress)
    except sources.ParquetError as error:
        click.echo(f"nothing was written: {error}", err=True)
        return 1
    if as_json:
        click.echo(json.dumps([asdict(file) for file in written], indent=1))
        return 0
    for file in written:
        click.echo(f"{file.path}: {file.rows:,} rows, {file.bytes:,} bytes (of {file.source_bytes:,})")
    click.echo("\n" + convert.usage(written), nl=False)
    return 0
