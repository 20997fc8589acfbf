"""The command `to-parquet`: its progress, and what it says in the end."""

import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict

import click

from jobcache.cli import common
from jobcache.parquet import convert


def command(words: Sequence[str], fields: Sequence[str], destination: str, as_json: bool) -> int:
    """Convert, and say how to use it; return the exit status."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores one
            signal.signal(number, lambda number, _: sys.exit(128 + number))  # so that what is under way is cleaned up
    try:
        sources = convert.parse_sources(words, fields)
        with common.progress(as_json) as say:
            written = convert.convert(sources, destination, say)
    except convert.ParquetError as error:
        click.echo(f"nothing was written: {error}", err=True)
        return 1
    if as_json:
        click.echo(json.dumps([asdict(one) for one in written], indent=1))
        return 0
    for one in written:
        click.echo(f"{one.path}: {one.rows:,} rows, {one.bytes:,} bytes (of {one.source_bytes:,})")
    click.echo("\n" + convert.usage(written), nl=False)
    return 0
