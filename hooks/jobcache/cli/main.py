"""The command line: all commands except those of `store`, with their options and help texts."""

import errno
import io
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import click

from jobcache import __version__
from jobcache.cli import options
from jobcache.cli.store_group import store_group
from jobcache.config.settings import CONFIG


class _Main(click.Group):
    """The group of all commands. It copes with every kind of output."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command. Escape characters that the terminal cannot show; report a full disk without a traceback."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        if sys.stdout is None:  # closed
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the process ends
        try:
            try:
                return super().main(*args, **extra)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE):
                raise
            print(f"jobcache: cannot write the output: {error.strerror}", file=sys.stderr)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes its buffer there when it ends
            sys.exit(1)


def _target(ctx: click.Context, param: click.Parameter, text: "str | None") -> Any:
    """Return which job to explain, None without a text. Raise BadParameter for a text that names no job of Slurm.

    `123_4` is task 4 of array 123, and `123+1` a part of the het job whose leader is 123.
    """
    from jobcache.cache.fields import natural, number
    from jobcache.cli.explain_question import Target

    if text is None:
        return None
    head, sign, tail = text.partition("_" if "_" in text else "+")
    job_id, part = number(head), natural(tail) if sign else 0
    if job_id is None or part is None:
        raise click.BadParameter(f"{text!r} is not a job id, such as 4242, 4242_7 or 4242+1")
    return Target(array=(job_id, part)) if sign == "_" else Target(job_id)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="jobcache")
def main() -> None:
    """A private Hugging Face datasets cache for every Slurm job.

    Exit status: 0 success, 1 a problem was found, 2 wrong usage.

    \b
    Example:
      jobcache apply
      jobcache check
      jobcache explain 4242
    """


main.add_command(store_group)


@main.command()
@options.config
@click.option("--hooks", metavar="DIR", help="Write the hooks and the compiled settings into DIR.")
@click.option("--check", is_flag=True, help="Change nothing. Exit 1 if the compiled settings are not current.")
@click.option("--again", is_flag=True, help="Keep the cluster and the slurm.conf of the last `apply`, as an upgrade does.")
def apply(config_file: str, hooks: "str | None", check: bool, again: bool) -> None:
    """Validate the configuration and compile it for the hooks.

    If the configuration is invalid, print all errors and change nothing.

    \b
    Example:
      jobcache apply --config ./jobcache.yaml --hooks /opt/jobcache
    """
    from jobcache.config import apply, compilation, errors, export_sets, settings

    lib = os.path.abspath(hooks) if hooks else settings.LIB
    try:
        compiled = compilation.compile_settings(config_file, lib, again=again or check, forget=not check)
        files = apply.wanted(compiled, lib, with_hooks=bool(hooks))
        stale = apply.stale(files, lib)
        if check:
            command = apply.command_line(config_file, lib if hooks else None)
            for path in stale:
                click.echo(f"{path} does not match {config_file}; run `{command}`", err=True)
            sys.exit(1 if stale else 0)
        apply.put(files, lib)
    except (errors.ConfigError, errors.ApplyError) as error:
        _exit_with(error.problems)
    click.echo(f"{lib}: policy {compiled.hash} of {config_file}, cluster {compiled.cluster}{'' if stale else ' (unchanged)'}")
    for key, harm in export_sets.warnings(compiled.tree):
        click.echo(f"warning: {config_file}: {key}: {harm}; remove it", err=True)
    for template in compiled.former:
        click.echo(f"  the sweep still reads the former template {template}")
    directory = lib if hooks else apply.hooks_path()
    click.echo(f"slurm.conf:\n  TaskProlog={directory}/task-prolog\n  Epilog={directory}/epilog")


@main.command()
@options.config
@click.option("--hooks", metavar="DIR", help="Check the hooks and the compiled settings in DIR.")
@click.option("--user", metavar="NAME", help="Try scratch as this user. Without root: always as yourself.")
@options.node
@click.option("--json", "as_json", is_flag=True, help="Print JSON: area, name, level, fact, mend (the remedy).")
def check(config_file: str, hooks: "str | None", user: "str | None", node: "str | None", as_json: bool) -> None:
    """Check the installation on this node and print remedies.

    The check covers the configuration, the hooks, slurm.conf, scratch as an ordinary user, the log and the sweep's timer. In
    a job step on several nodes, it also tests whether file locks work between nodes.

    \b
    Example:
      jobcache check
      srun -N2 --ntasks-per-node=1 jobcache check
    """
    from jobcache.cli import check
    from jobcache.config import settings

    lib = os.path.abspath(hooks) if hooks else settings.LIB
    sys.exit(check.check_command(os.path.abspath(config_file), lib, user, node, as_json))


@main.command()
@options.config
@options.hooks
@click.option(
    "--since", metavar="WHEN", help="Read events from a day (UTC) on, or from a duration before now. Older files are skipped."
)
@options.node
@options.as_json
@click.option("--path", metavar="PATH", help="Explain the job whose cache PATH lies in, such as a path in an error message.")
@options.user
@click.argument("target", metavar="[JOBID]", required=False, callback=_target)
@options.event_files
def explain(**options: Any) -> None:
    """Explain what happened to the cache of a job.

    JOBID is a job id as Slurm prints it: 4242, 4242_7 for a task of an array, 4242+1 for a part of a het job. Without JOBID
    and --path, the command takes your newest job.

    A user needs no rights: the answer comes from the user's own history beside the caches, on any host that has the scratch,
    from the caches there, and from Slurm. Root also reads the events of this node, in the log and in the system log. A FILE
    holds other events: the log, a rotated or compressed log (gzip, bzip2, xz, zstd), or an export of a system log. It can also
    be a directory of such files, a quoted pattern, or - for standard input. Files can overlap and have any order.

    \b
    Example:
      jobcache explain 4242
      jobcache explain --path /scratch/gpfs/alice/.cache/hf-datasets-4242/json/default-0/json-train.arrow
      jobcache explain 4242 /var/log/jobcache/events.jsonl* /var/log/syslog
      jobcache explain 4242 --since 3d '/var/log/jobcache-nodes/*.log*'
    """
    from jobcache.cli import explain

    sys.exit(explain.explain_command(**options))


@main.command()
@options.config
@options.hooks
@click.option("--since", metavar="WHEN", default="7d", show_default=True, help="Begin at a day (UTC), or a duration before now.")
@click.option("--until", metavar="WHEN", help="End at a day (UTC), or a duration before now. Default: now.")
@click.option(
    "--by",
    type=click.Choice(["user", "account", "partition"]),
    default="user",
    show_default=True,
    help="Sum up by user, account or partition.",
)
@click.option("--top", metavar="N", type=click.IntRange(min=1), default=20, show_default=True, help="Print the N largest.")
@click.option("--html", metavar="FILE", help="Write one self-contained page with plots to FILE.")
@options.as_json
@options.event_files
def report(**options: Any) -> None:
    """Report usage by user, account or partition, with advice.

    The report counts a cache when it is reaped. Numbers of what existed at once are upper bounds. FILEs are as for `explain`.

    A user with five or more caches gets advice. Build a store: half of the caches hold the same 1 GiB or more, within 5 %,
    not counting links: jobs build or compute the same thing again.
    Convert to Parquet: the caches hold that much for jobs of less than half an hour. Pack files: each cache has 10,000 files.
    Look at how jobs end: a fifth of the caches were orphans.

    \b
    Example:
      jobcache report --since 30d --by account
      jobcache report --html report.html
    """
    from jobcache.cli import report

    sys.exit(report.report_command(**options))


@main.command("show-config")
@options.config
@click.option("--json", "as_json", is_flag=True, help="Print JSON: key, value, origin.")
@click.option("--example", is_flag=True, help="Print the default configuration, with comments.")
@click.option("--reference", is_flag=True, help="Print the reference of all keys, in Markdown.")
def show_config(config_file: str, as_json: bool, example: bool, reference: bool) -> None:
    """Print each setting with its origin.

    The origin is the default, or a file and a line.

    \b
    Example:
      jobcache show-config --config ./jobcache.yaml
    """
    from jobcache.config import configuration, errors
    from jobcache.config import reference as texts

    if example or reference:
        click.echo(texts.example_text() if example else texts.reference_text(), nl=False)
        return
    try:
        loaded = configuration.load(config_file)
    except errors.ConfigError as error:
        _exit_with(error.problems)
    if as_json:
        click.echo(json.dumps(configuration.show_json(loaded), indent=1))
        return
    rows = configuration.show(loaded)
    width = max(len(key) for key, _, _ in rows)
    middle = max(len(value) for _, value, _ in rows)
    for key, value, origin in rows:
        click.echo(f"{key:<{width}}  {value:<{middle}}  {origin}".rstrip())


@main.command("hooks-path")
def hooks_path() -> None:
    """Print the directory of the hooks of this package.

    \b
    Example:
      ls -l $(jobcache hooks-path)
    """
    from jobcache.config import apply, errors

    try:
        click.echo(apply.hooks_path())
    except errors.ApplyError as error:
        _exit_with(error.problems)


@main.command()
@options.config
@options.hooks
@options.path
@options.dry_run
@options.user
@options.node_local
@options.node
@click.option("--shard", metavar="I/N", default="1/1", help="Sweep part I of N parts of the users.")
@options.as_json_lines
@click.pass_obj
def sweep(host: Any, /, **options: Any) -> None:
    """Reap the caches that crashes left behind.

    The sweep asks Slurm twice for the live jobs, `sweep.confirm` apart. If the answer may be incomplete, it reaps no job's
    cache and exits 1. Caches that `jobcache run` created outside of jobs need no Slurm. Once a day, a sweep of the shared
    scratch by root also runs `jobcache store prune`.

    \b
    Example:
      jobcache sweep --dry-run
    """
    from jobcache.cli import store, sweep

    status = sweep.sweep_command(**options, host=host)
    whole = not any(options[name] for name in ("dry_run", "user", "node_local", "path")) and options["shard"].startswith("1/")
    if whole and os.geteuid() == 0:
        status = max(status, store.prune_daily(options["config_file"], options["hooks"]))
    sys.exit(status)


@main.command("list")
@options.config
@options.hooks
@options.path
@options.user
@click.option(
    "--state",
    type=click.Choice(["live", "orphan", "kept", "trash", "half-made", "aside", "unrecorded", "unknown"]),
    help="Select this state only.",
)
@click.option(
    "--sort",
    type=click.Choice(["job", "user", "age", "bytes", "state"]),
    default="job",
    show_default=True,
    help="Sort by this column.",
)
@options.node_local
@options.node
@options.as_json
@click.pass_obj
def list_caches(host: Any, /, **options: Any) -> None:
    """List caches with their states and sizes.

    \b
    Example:
      jobcache list --state orphan --sort bytes
    """
    from jobcache.cli import list_caches

    sys.exit(list_caches.list_command(**options, host=host))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script that completes this command in a shell.

    \b
    Example:
      jobcache completion bash >/usr/share/bash-completion/completions/jobcache
      jobcache completion zsh >/usr/share/zsh/vendor-completions/_jobcache
      jobcache completion fish >/usr/share/fish/vendor_completions.d/jobcache.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(main, {}, "jobcache", "_JOBCACHE_COMPLETE").source())


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "--config", "config_file", metavar="FILE", help=f"Read a configuration from FILE.  [default: {CONFIG}, if it exists]"
)
@click.option("--path", metavar="TEMPLATE", help="Create the cache by TEMPLATE, such as '/scratch/{user}/hf-datasets-{job_id}'.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(config_file: "str | None", path: "str | None", command: "tuple[str, ...]") -> None:
    """Run COMMAND with a private datasets cache.

    The cache is deleted when COMMAND ends. Use this on clusters without the hooks, and on machines without Slurm. COMMAND
    gets the signals, and its exit status is returned. In a job, all such commands share the cache of the job. If the
    environment has a private cache already, COMMAND uses that one.

    \b
    Example:
      jobcache run -- python train.py
    """
    from jobcache.cache import path_template
    from jobcache.config import errors
    from jobcache.runner import run

    try:
        sys.exit(run.run(command, config_file, path))
    except errors.ConfigError as error:
        _exit_with(error.problems)
    except path_template.TemplateError as error:
        raise click.BadParameter(str(error), param_hint="--path") from None


@main.command("to-parquet")
@click.option("--field", "fields", metavar="NAME", multiple=True, help="Read the records from this field. Several: a split each.")
@options.as_json
@click.argument("sources", nargs=-1, required=True, metavar="[SPLIT=]FILE…")
@click.argument("destination", metavar="DEST")
def to_parquet(fields: "tuple[str, ...]", as_json: bool, sources: "tuple[str, ...]", destination: str) -> None:
    """Convert JSON and CSV files to Parquet.

    FILE holds JSON (an array of records, or a field with one), JSON lines, CSV or TSV, compressed or not. DEST/SPLIT.parquet
    gets the rows of the FILEs, without a change of a value. SPLIT is the part of the name such as train.json, else train. The
    command overwrites no file, and deletes its output if it fails. The filesystem of DEST needs room for an uncompressed copy.

    \b
    Example:
      jobcache to-parquet data.jsonl out/
      jobcache to-parquet data.json --field train --field test out/
      jobcache to-parquet train=a.csv train=b.csv test=c.csv out/
    """
    from jobcache.cli import to_parquet

    sys.exit(to_parquet.command(sources, fields, destination, as_json))


def _exit_with(problems: "Iterable[object]") -> "NoReturn":
    """Print the problems to stderr and exit 1."""
    for problem in problems:
        click.echo(str(problem), err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
