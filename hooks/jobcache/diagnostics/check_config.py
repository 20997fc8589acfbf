"""Judge the configuration, the compiled settings and the Python of the hooks."""

from collections.abc import Iterator

from jobcache.diagnostics.check_facts import Compiled, Interpreter
from jobcache.diagnostics.finding import OK, PROBLEM, WARNING, Finding


def compiled(facts: Compiled) -> Iterator[Finding]:
    """Yield findings on the configuration and on the files that `jobcache apply` compiles from it."""
    for problem in facts.problems:
        yield Finding("config", "valid", PROBLEM, problem, f"editor {facts.config} && {facts.command}")
    if not facts.problems:
        yield Finding("config", "valid", OK, facts.config)
    if facts.settings_error:
        yield Finding("config", "compiled", PROBLEM, facts.settings_error, facts.command)
    else:  # without settings, every compiled file is stale: one finding is enough
        for path in facts.stale:
            yield Finding("config", "current", PROBLEM, f"{path} does not match {facts.config}", facts.command)
    for text in facts.insecure:
        remedy = f"chown -R root: {facts.lib} {facts.config} && chmod -R go-w {facts.lib} {facts.config}"
        yield Finding("config", "private", PROBLEM, text, remedy)
    if not (facts.problems or facts.settings_error or facts.stale or facts.insecure):
        yield Finding("config", "current", OK, f"{facts.lib} is compiled and current, and no other user can write to it")
    yield from _in_force(facts)


def _in_force(facts: Compiled) -> Iterator[Finding]:
    for key, harm in facts.harmful_exports:
        yield Finding("config", "exports", WARNING, f"{key}: {harm}", f"editor {facts.config} && {facts.command}")
    if facts.version and facts.version != facts.installed_version:
        text = f"compiled by jobcache {facts.version}; this is jobcache {facts.installed_version}"
        yield Finding("config", "version", WARNING, text, facts.command)
    if facts.off:
        text = f"{facts.lib}/off exists: the hooks and the sweep do nothing"
        yield Finding("config", "off", WARNING, text, f"rm {facts.lib}/off")
    elif facts.mode != "on":
        text = f"mode is {facts.mode}: no job gets a cache, except by a rule"
        yield Finding("config", "mode", WARNING, text, f"sed -i 's/^mode:.*/mode: on/' {facts.config} && {facts.command}")


def unchecked(facts: Compiled) -> Finding:
    """Return the finding that most checks did not run, because the settings are missing."""
    text = "not checked, because no settings are compiled: hooks, slurm.conf, scratch, log, sweep"
    again = facts.command.replace("jobcache apply", "jobcache check", 1)
    return Finding("config", "settings", WARNING, text, f"{facts.command} && {again}")


def interpreter(one: Interpreter) -> Finding:
    """Return the finding on the Python of one hook."""
    name = f"{one.path} as {one.user}, for {one.hook}"
    if not one.error:
        return Finding("hooks", "python", OK, f"{name}: Python {one.version}")
    remedy = f"env -i {one.path} -I -c 'import sys; print(sys.version)'    # as {one.user}; the hooks do not set LD_LIBRARY_PATH"
    return Finding("hooks", "python", PROBLEM, f"{name}: {one.error}", remedy)
