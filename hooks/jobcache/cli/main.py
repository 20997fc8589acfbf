"""The command line: what to type, and how what the other modules return is said."""

import errno
import io
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import click

from jobcache import __version__
from jobcache.config.settings import CONFIG

_config_option = click.option(
    "--config", "config_file", metavar="FILE", default=CONFIG, show_default=True, help="The site's configuration."
)


class _Main(click.Group):
    """The group of all commands, which can write to whatever its output is."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command. A letter that the terminal does not have is spelled out; a full disk is said, not traced."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        if sys.stdout is None:  # closed
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for as long as we live
        try:
            try:
                return super().main(*args, **extra)
            finally:
                sys.stdout.flush()
        except OSError as error:
            if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPIPE):
                raise
            print(f"jobcache: what is to be said cannot be written: {error.strerror}", file=sys.stderr)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in memory goes there at our end
            sys.exit(1)


def _raw_job_id(ctx: click.Context, param: click.Parameter, text: str) -> int:
    """Return a raw job id. `123_4` is Slurm's name for a task of an array, and Python's spelling of another number."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) > 0):
        where = f": `squeue -h -j {text} -o %A` tells it, later `sacct -j {text} -o JobIDRaw`" if text[:1].isdigit() else ""
        raise click.BadParameter(f"{text!r} is not a raw job id, such as 4242{where}")
    return int(text)


@click.group(cls=_Main, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="jobcache")
def main() -> None:
    """A private Hugging Face datasets cache for every Slurm job.

    Exit status: 0 fine, 1 a problem was found, 2 wrong use.

    \b
    Example:
      jobcache apply
      jobcache check
      jobcache explain 4242
    """


@main.command()
@_config_option
@click.option("--hooks", metavar="DIR", help="Put a self-contained set of hooks and policy into DIR.")
@click.option("--check", is_flag=True, help="Change nothing; exit 1 where what is compiled is not current.")
@click.option("--again", is_flag=True, help="By the cluster and the slurm.conf that were compiled before, as an upgrade does.")
def apply(config_file: str, hooks: "str | None", check: bool, again: bool) -> None:
    """Validate the configuration and compile it into what the hooks obey.

    Where anything is wrong, nothing is changed, and all of it is said.

    \b
    Example:
      jobcache apply --config ./jobcache.yaml --hooks /opt/jobcache
    """
    from jobcache.config import apply, compilation, errors, settings

    lib = os.path.abspath(hooks) if hooks else settings.LIB
    try:
        compiled = compilation.compile_settings(config_file, lib, again=again or check, forget=not check)
        files = apply.wanted(compiled, lib, with_hooks=bool(hooks))
        stale = apply.stale(files, lib)
        if check:
            command = apply.command_line(config_file, lib if hooks else None)
            for path in stale:
                click.echo(f"{path}: not what {config_file} says; run `{command}`", err=True)
            sys.exit(1 if stale else 0)
        apply.put(files, lib)
    except (errors.ConfigError, errors.ApplyError) as error:
        _give_up(error.problems)
    click.echo(f"{lib}: policy {compiled.hash} of {config_file}, cluster {compiled.cluster}{'' if stale else ' (as it was)'}")
    for template in compiled.former:
        click.echo(f"  still looks for caches of the former template {template}")
    directory = lib if hooks else apply.hooks_path()
    click.echo(f"slurm.conf:\n  TaskProlog={directory}/task-prolog\n  Epilog={directory}/epilog")


@main.command()
@_config_option
@click.option("--hooks", metavar="DIR", help="The set of hooks to check, where it is not the installed package's.")
@click.option("--user", metavar="NAME", help="As whom to try scratch; without root, always oneself.")
@click.option("--node", metavar="NAME", help="This node's name in Slurm, where it is not its host name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: area, name, level, fact, mend.")
def check(config_file: str, hooks: "str | None", user: "str | None", node: "str | None", as_json: bool) -> None:
    """Say what is wrong with this installation, on this node, each with a line that mends it.

    Looks at the configuration, the hooks, slurm.conf, scratch as an ordinary user, the log and the sweep's timer. Within a
    job step on several nodes it also finds out whether file locks reach from node to node.

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
@_config_option
@click.option("--hooks", metavar="DIR", help="The set of hooks whose compiled settings hold.")
@click.option("--node", metavar="NAME", help="This node's name in Slurm, where it is not its host name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("job_id", metavar="JOBID", callback=_raw_job_id)
@click.argument("files", metavar="[FILE]...", nargs=-1)
def explain(**options: "Any") -> None:
    """Tell the life of a job's cache, and why it is not there.

    JOBID is the raw job id, for a task of an array too. FILEs hold events: the log, what a rotation made of it, compressed
    or not, exports of a system log, a directory of these, or - for standard input. Without any: the log and the system log
    of this host, which know what happened on this node.

    \b
    Example:
      jobcache explain 4242
      jobcache explain 4242 /var/log/jobcache/events.jsonl* /var/log/syslog
    """
    from jobcache.cli import explain

    sys.exit(explain.explain_command(**options))


@main.command()
@_config_option
@click.option("--hooks", metavar="DIR", help="The set of hooks whose compiled settings hold.")
@click.option("--since", metavar="WHEN", default="7d", show_default=True, help="A duration before now, or a day (UTC).")
@click.option("--until", metavar="WHEN", help="Likewise; now, if not given.")
@click.option("--by", type=click.Choice(["user", "account", "partition"]), default="user", show_default=True)
@click.option("--top", metavar="N", type=click.IntRange(min=1), default=20, show_default=True, help="Only the N largest.")
@click.option("--html", metavar="FILE", help="Write one self-contained page, with plots.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("files", metavar="[FILE]...", nargs=-1)
def report(**options: "Any") -> None:
    """Sum up who used how much, and what would serve them better.

    A cache counts when it has come to its end; what there was at once is an upper bound. FILEs are as for `explain`.

    Advice is given to users with five caches or more: to build a store where half of them hold the same, 1 GiB or more,
    within 5 %; to convert to Parquet where they hold as much for jobs of less than half an hour; to pack files where there
    are 10,000 in each; to look at how jobs end where a fifth of the caches were orphans.

    \b
    Example:
      jobcache report --since 30d --by account
      jobcache report --html report.html
    """
    from jobcache.cli import report

    sys.exit(report.report_command(**options))


@main.command("show-config")
@_config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON: key, value, origin.")
@click.option("--example", is_flag=True, help="Print the commented default configuration.")
@click.option("--reference", is_flag=True, help="Print the reference of all keys, in Markdown.")
def show_config(config_file: str, as_json: bool, example: bool, reference: bool) -> None:
    """Print each setting with its origin: default, or file and line.

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
        _give_up(error.problems)
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
    """Print the directory of the hooks that belong to this package.

    \b
    Example:
      ls -l $(jobcache hooks-path)
    """
    from jobcache.config import apply, errors

    try:
        click.echo(apply.hooks_path())
    except errors.ApplyError as error:
        _give_up(error.problems)


@main.command()
@_config_option
@click.option("--hooks", metavar="DIR", help="The set of hooks whose compiled settings hold.")
@click.option("--path", metavar="TEMPLATE", help="One's own caches that `jobcache run --path TEMPLATE` has made.")
@click.option("--dry-run", is_flag=True, help="Print what a run would do, and do nothing.")
@click.option("--user", metavar="NAME", help="Only this user's; without root, always one's own.")
@click.option("--node-local", is_flag=True, help="This node's own scratch, in place of the shared one.")
@click.option("--node", metavar="NAME", help="This node's name in Slurm, where it is not its host name.")
@click.option("--shard", metavar="I/N", default="1/1", help="Only the I-th of N parts of the users.")
@click.option("--json", "as_json", is_flag=True, help="Print each decision as a line of JSON.")
@click.pass_obj
def sweep(host: "Any", /, **options: "Any") -> None:
    """Reap what crashes left behind: caches of jobs that are no more.

    Asks Slurm twice, `sweep.confirm` apart, which jobs are alive; where that is not known for certain, nothing of any
    job's is reaped, and the exit status is 1. What `jobcache run` made outside of jobs needs no Slurm. Once a day, root's
    sweep of the shared scratch also does `jobcache store prune`.

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
@_config_option
@click.option("--hooks", metavar="DIR", help="The set of hooks whose compiled settings hold.")
@click.option("--path", metavar="TEMPLATE", help="One's own caches that `jobcache run --path TEMPLATE` has made.")
@click.option("--user", metavar="NAME", help="Only this user's; without root, always one's own.")
@click.option(
    "--state",
    type=click.Choice(["live", "orphan", "kept", "trash", "half-made", "aside", "unrecorded", "unknown"]),
    help="Only these.",
)
@click.option("--sort", type=click.Choice(["job", "user", "age", "bytes", "state"]), default="job", show_default=True)
@click.option("--node-local", is_flag=True, help="This node's own scratch, in place of the shared one.")
@click.option("--node", metavar="NAME", help="This node's name in Slurm, where it is not its host name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_caches(host: "Any", /, **options: "Any") -> None:
    """List the caches there are, and what they hold.

    \b
    Example:
      jobcache list --state orphan --sort bytes
    """
    from jobcache.cli import list_caches

    sys.exit(list_caches.list_command(**options, host=host))


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete this command's words.

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
@click.option("--config", "config_file", metavar="FILE", help=f"A configuration.  [default: {CONFIG}, if it is there]")
@click.option("--path", metavar="TEMPLATE", help="Where the cache is to be, such as '/scratch/{user}/hf-datasets-{job_id}'.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(config_file: "str | None", path: "str | None", command: "tuple[str, ...]") -> None:
    """Run COMMAND with a private datasets cache, which is gone when it ends.

    For clusters without the hooks, and for machines without Slurm. Signals and the exit status are COMMAND's. Within a
    job, all that runs so shares the job's cache. Where there is a private cache already, nothing changes.

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
        _give_up(error.problems)
    except path_template.TemplateError as error:
        raise click.BadParameter(str(error), param_hint="--path") from None


@main.command("to-parquet")
@click.option("--field", "fields", metavar="NAME", multiple=True, help="The records are in this field. Several: a split each.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("sources", nargs=-1, required=True, metavar="[SPLIT=]FILE…")
@click.argument("destination", metavar="DEST")
def to_parquet(fields: "tuple[str, ...]", as_json: bool, sources: "tuple[str, ...]", destination: str) -> None:
    """Convert JSON (records, arrays, a field), JSON lines and CSV to Parquet: DEST/SPLIT.parquet.

    The rows are those that load_dataset gives for the FILEs. A FILE is of the split that its name says (train.json), else
    of train. Nothing is overwritten, and nothing is left where it fails. DEST's filesystem needs room for an uncompressed
    copy meanwhile.

    \b
    Example:
      jobcache to-parquet data.jsonl out/
      jobcache to-parquet data.json --field train --field test out/
      jobcache to-parquet train=a.csv train=b.csv test=c.csv out/
    """
    from jobcache.cli import to_parquet

    sys.exit(to_parquet.command(sources, fields, destination, as_json))


@main.group("store")
def store_group() -> None:
    """Built datasets that new caches begin with: build, verify, list, prune."""


def _store_options(command: "Any") -> "Any":
    """The options of every `store` command."""
    for option in (
        click.option("--site", "sites", is_flag=True, help="The site's store, not one's own."),
        click.option("--hooks", metavar="DIR", help="The set of hooks whose compiled settings hold."),
        _config_option,
    ):
        command = option(command)
    return command


@store_group.command("build")
@_store_options
@click.option("--label", metavar="LABEL", default="", help="For jobs with JOBCACHE_STORE=LABEL; without, for every job.")
@click.option("--rebuild", is_flag=True, help="Begin with nothing, and replace what the store has of the same.")
@click.argument("command", nargs=-1, required=True)
def store_build(**options: "Any") -> None:
    """Run COMMAND, and put the datasets that it loads into the store.

    Nothing is published where COMMAND fails, and of what it built only what is whole.

    \b
    Example:
      jobcache store build --label exp-1 -- python prepare.py
    """
    from jobcache.cli import store

    sys.exit(store.build_command(**options))


@store_group.command("list")
@_store_options
@click.option("--user", metavar="NAME", help="This user's; without root, always one's own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def store_list(**options: "Any") -> None:
    """List what is in the store.

    \b
    Example:
      jobcache store list
    """
    from jobcache.cli import store

    sys.exit(store.list_command(**options, deep=False))


@store_group.command("verify")
@_store_options
@click.option("--user", metavar="NAME", help="This user's; without root, always one's own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def store_verify(**options: "Any") -> None:
    """Read every build in the store, and say which are not whole; these are linked into no cache.

    \b
    Example:
      jobcache store verify --site
    """
    from jobcache.cli import store

    sys.exit(store.list_command(**options, deep=True))


@store_group.command("prune")
@_store_options
@click.option("--user", metavar="NAME", help="Only this user's; without root, always one's own.")
@click.option("--dry-run", is_flag=True, help="Print what a run would do, and do nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print each decision as a line of JSON.")
def store_prune(**options: "Any") -> None:
    """Delete what is unused for longer than store.max_age, or beyond store.max_size.

    First it is linked into no new cache; it is deleted when every job that lived then has ended.

    \b
    Example:
      jobcache store prune --dry-run
    """
    from jobcache.cli import store

    sys.exit(store.prune_command(**options))


def _give_up(problems: "Iterable[object]") -> "NoReturn":
    for problem in problems:
        click.echo(str(problem), err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
