"""policy.sh: each shell reads every configured string as the same text, and never as code."""

from __future__ import annotations

import fnmatch
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jobcache.cache import default_cache
from jobcache.cache.path_template import BadName, Template, home_value
from jobcache.config import apptainer, configuration, errors, policy
from jobcache.config.settings import Settings
from support.site_dir import ALICE, SHELLS, Site

HOOK = Path(__file__).parents[2] / "hooks" / "task-prolog"
few = hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def output_of(shell: str, script: str) -> str:
    """Return the output of `script` in `shell`, with an empty environment."""
    done = subprocess.run([*shell.split(), "-s"], input=script.encode(), capture_output=True, env={}, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def compiled(former: list[str] | None = None, **keys: Any) -> Settings:
    """Return the settings that `apply` compiles of the defaults and these keys."""
    facts = {"config": "/etc/jobcache.yaml", "cluster": "c1", "python": "/usr/bin/python3", "package": "/usr/lib/jobcache"}
    return Settings({**configuration.defaults(), **keys}, {**facts, "hash": "0123456789ab", "former": former or []})


# ------------------------------------------------------------------------------------------------------------- words

TEXTS = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=30)
NASTY = st.lists(
    st.sampled_from(["'", '"', "\\", "$(", ")", "`", "${", "}", "\n", ";", "&", "*", "~", "#", "!", "\r", "\x81", "\x88"])
)


@pytest.mark.parametrize("shell", SHELLS)
@few
@given(st.lists(st.one_of(TEXTS, NASTY.map("".join)), min_size=1, max_size=40))
def test_quoted_text_keeps_its_bytes(shell: str, texts: list[str]) -> None:
    """A quoted word is the same bytes in every shell, as an argument, as a value and as a `case` pattern."""
    lines = ["word() { printf '%s\\000' \"$1\"; }"]
    for text in texts:
        quoted = policy.quote(text)
        lines.append(f'word {quoted}; value={quoted}; word "$value"; case {quoted} in {quoted}) word yes ;; *) word no ;; esac')
    assert output_of(shell, "\n".join(lines)).split("\0")[:-1] == [word for text in texts for word in (text, text, "yes")]


# ------------------------------------------------------------------------------------------------------------- homes

HOMES = st.one_of(st.text("/+%~ab .*$\"'\\ä", max_size=12), TEXTS.filter(lambda text: "\n" not in text))


@pytest.mark.parametrize("shell", SHELLS)
@few
@given(st.lists(st.dictionaries(st.sampled_from(["HF_HOME", "XDG_CACHE_HOME", "HOME"]), HOMES), min_size=1, max_size=20))
def test_name_of_home_is_that_of_python(shell: str, environments: list[dict[str, str]]) -> None:
    """Two homes have one name only if they are spelled alike."""
    lines = [policy.render(compiled())]
    for env in environments:
        lines.append("unset HF_HOME XDG_CACHE_HOME HOME")
        lines += [f"{name}={policy.quote(value)}" for name, value in env.items()]
        lines.append("jc_name_home; printf '%s\\000' \"$jc_home_name\"")
    names = output_of(shell, "\n".join(lines)).split("\0")[:-1]
    assert names == [default_cache.home_name(env) for env in environments]
    assert all("/" not in name for name in names)


@pytest.mark.parametrize("shell", SHELLS)
@few
@given(st.lists(st.one_of(st.text("/.a b*$'\\ä", max_size=9), TEXTS), min_size=1, max_size=20))
def test_home_in_a_path_is_that_of_python(shell: str, texts: list[str]) -> None:
    """For {home}: HOME is refused unless it is an absolute path without empty components, `.`, `..` and control characters."""
    made = compiled(path="{home}/x-{job_id}")
    lines = [policy.render(made)]
    for text in texts:
        lines.append(f"HOME={policy.quote(text)}; jc_apply_rules; printf '%s\\000' \"$jc_refusal$jc_home_dir\"")
    found = output_of(shell, "\n".join(lines)).split("\0")[:-1]
    for text, home in zip(texts, found):
        try:
            expected = f"/{home_value(text)}"
        except BadName:
            expected = "home_differs///"
        assert home == expected or (home == "home_differs///" and not text.isprintable())


# ---------------------------------------------------------------------------------------------------------- patterns

ALPHABET = "abcz019AZ._- '\"$`;&|()#~!^,"
BRACKETS = st.tuples(
    st.sampled_from(["", "!"]), st.lists(st.sampled_from(["a", "b", "z", "0", "a-c", "0-9", "A-Z", "_", "."]), min_size=1)
)
PATTERNS = st.lists(
    st.one_of(st.sampled_from("*?"), st.text(ALPHABET, max_size=3), BRACKETS.map(lambda b: f"[{b[0]}{''.join(b[1])}]")),
    max_size=6,
).map("".join)
NAMES = st.text(ALPHABET, max_size=8)


def near(pattern: str) -> st.SearchStrategy[str]:
    """Return a strategy for names that the pattern is likely to match."""
    parts = re.findall(r"\[[^]]*\]|.", pattern, re.DOTALL)
    fill = {"*": st.text("ab0", max_size=2), "?": st.sampled_from("ab0")}
    return st.tuples(
        *(st.sampled_from("abcz09AZ._") if p[0] == "[" and len(p) > 1 else fill.get(p, st.just(p)) for p in parts)
    ).map("".join)


@pytest.mark.parametrize("shell", SHELLS)
@few
@given(st.lists(PATTERNS.flatmap(lambda p: st.tuples(st.just(p), st.one_of(NAMES, near(p)))), min_size=1, max_size=60))
def test_patterns_match_as_in_fnmatch(shell: str, cases: list[tuple[str, str]]) -> None:
    """`*`, `?` and brackets mean the same in every shell as in Python. All other characters are literal."""
    tests = [f"case {policy.quote(name)} in {policy.pattern(text)}) printf y ;; *) printf n ;; esac" for text, name in cases]
    expected = "".join("ny"[fnmatch.fnmatchcase(name, text)] for text, name in cases)
    assert output_of(shell, "\n".join(tests)) == expected


@pytest.mark.parametrize("shell", SHELLS)
def test_patterns_treat_dot_and_slash_as_other_characters(shell: str) -> None:
    """An empty pattern matches only the empty name."""
    for text, name, match in [
        ("*", ".x", "y"),
        ("*", "a/b", "y"),
        ("?x", ".x", "y"),
        ("", "", "y"),
        ("", "a", "n"),
        ("*", "", "y"),
    ]:
        script = f"case {policy.quote(name)} in {policy.pattern(text)}) printf y ;; *) printf n ;; esac"
        assert output_of(shell, script) == match


@pytest.mark.parametrize(
    "text", ["[", "a[b", "[]", "[!]", "[a", "[]a]", "[$(id)]", "[a b]", "[a'b]", "[[:alpha:]]", "[^a]", "[é]", "[a\\]", "[z-a]",
             "[a-]", "[-a]", "[a-c-e]", "[!-a]", "[a--]"],
)  # fmt: skip
def test_ambiguous_brackets_are_refused(text: str) -> None:
    """Refuse brackets that shells interpret differently, or that hold code."""
    with pytest.raises(ValueError, match="brackets"):
        policy.pattern(text)


# ---------------------------------------------------------------------------------------------------------- containers


@pytest.mark.parametrize(
    ("path", "mounted"),
    [
        ("/scratch/gpfs/{user}/.cache/x-{job_id}", "/scratch/gpfs"),
        ("/scratch/{user}/x-{job_id}", "/scratch"),
        ("/home/scratch/{uid}/x-{job_id}", "/home/scratch"),
        ("/gpfs/{cluster}/{node}/{user}/x-{job_id}", "/gpfs/c1/n1"),
        ("/gpfs/a{user}/x-{job_id}", "/gpfs"),
        ("/my scratch/{user}/x-{job_id}", "/my scratch"),
        *((f"{above}/{{user}}/x-{{job_id}}", "") for above in ("", "/home", "/tmp", "/tmp/x", "/var/tmp", "/dev/shm", "/opt")),
        *((f"/a{ch}b/{{user}}/x-{{job_id}}", "") for ch in ',:"\\'),
        ("/scratch /{user}/x-{job_id}", ""),
        ("{home}/x-{job_id}", ""),
    ],
)
def test_mount_names_no_path_that_apptainer_reads_differently(path: str, mounted: str) -> None:
    """The parts above the user. Not where the variables would need quotes, or where an image or Apptainer has its own files."""
    parts = apptainer.bind_dir(Template(path))
    assert "".join({"cluster": "c1", "node": "n1"}[text] if is_name else text for is_name, text in parts) == mounted


def test_command_of_jobcache_run_gets_the_mount() -> None:
    """Unless the user has such a variable, or a home there, or the path cannot be mounted."""
    template = Template("/scratch/{user}/x-{job_id}")
    mount = "type=bind,dst=/scratch,src=/scratch"
    both = {"APPTAINER_MOUNT": mount, "SINGULARITY_MOUNT": mount}
    assert apptainer.variables(template, "/scratch", {"HOME": "/home/alice", "SINGULARITY_MOUNT": ""}) == both
    assert apptainer.variables(template, "/scratch", {"HOME": "/scratch/alice"}) == {}
    assert apptainer.variables(template, "/scratch", {"SINGULARITY_MOUNT": "type=bind,src=/x,dst=/y"}) == {}
    assert apptainer.variables(Template("/tmp/{user}/x-{job_id}"), "/tmp", {}) == {}


# ------------------------------------------------------------------------------------------------------- whole files

RULES = [
    {"match": {"partition": ["debug", "viz*"], "user": ["svc-[a-c]?", "it's"]}, "cache": "off"},
    {"match": {"account": ["$(id)", "a b;c", "`x`"]}, "path": "/local/o'brien $x/{user}/{node}-{job_id}", "scope": "node"},
    {
        "match": {"qos": ["*"]},
        "exports": {"HF_HOME": "{cache}/it's $HOME", "B": "{cache}"},
        "offline": "isolate",
        "mode": "observe",
    },
]
FORMER = ["/old/{uid}/{node}/x-{job_id}-{user}", "/a/{cluster}/b{node}c/{user}.d/{job_id}"]


@pytest.mark.busybox
@pytest.mark.parametrize(
    "made",
    [compiled(), compiled(rules=RULES, former=FORMER), compiled(path="/s/$(id)'\"`{user}/\\{job_id}", mode="off")],
    ids=["default", "rules", "odd"],
)
def test_policy_is_clean_shell(made: Settings, tmp_path: Path) -> None:
    """shellcheck reports nothing about a compiled policy, and every shell can parse it."""
    text = policy.render(made)
    file, quoted = tmp_path / "policy.sh", tmp_path / "for-user-binds.sh"
    file.write_text(text)
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("# shellcheck"))
    quoted.write_text(f"{head}{apptainer.FUNCTIONS_FOR_USER_BINDS}\n")  # policy.sh has it in quotes
    checked = subprocess.run(["shellcheck", str(file), str(quoted)], capture_output=True, text=True, check=False)
    assert checked.stdout == ""
    for shell in SHELLS:
        for one in (file, quoted):
            subprocess.run([*shell.split(), "-n", str(one)], check=True)


def test_same_settings_give_same_policy() -> None:
    """render is a pure function of the settings."""
    assert policy.render(compiled(rules=RULES)) == policy.render(compiled(rules=RULES))


def test_policy_ends_with_its_hash() -> None:
    """The last line distinguishes a whole file from a torn one."""
    assert policy.render(compiled()).splitlines()[-1] == "jc_policy_end='0123456789ab'"


@pytest.mark.parametrize(("seconds", "compiled_to"), [(0.001, "1"), (1.9, "1"), (5.0, "5"), (90.5, "90")])
def test_deadlines_are_whole_seconds(seconds: float, compiled_to: str) -> None:
    """Round down, since a deadline is a promise, to a number that every sleep accepts."""
    text = policy.render(compiled(task_prolog={"deadline": seconds, "chain": None}))
    assert f"\njc_deadline={compiled_to}\n" in text


# -------------------------------------------------------------------------------------------------- inherited values

TEMPLATES = [
    "/scratch/gpfs/{user}/.cache/hf-datasets-{job_id}",
    "/local/{uid}/r{job_id}-x",
    "/local/{user}/on-r{job_id}",
    "/n/{node}/{user}/{job_id}.{node}",
    "/m/a{node}b/{cluster}/{user}/{node}-{job_id}",
    "/o/{user}/it's $HOME * [a]/{user}{job_id}-r1",
    "/p/{account}/{user}/hf-{job_id}",
    "/q/{user}/a{account}b/{node}-{job_id}",
    "/local/{job_id}/hf-{job_id}",
    "/l/{cluster}-{job_id}.d/{user}/x/{job_id}-r1",
    "{home}/.cache/hf-datasets-{job_id}",
    "{home}/{node}/{user}-{job_id}",
]
USER, UID, CLUSTER, HOME = "al.i*ce", 1000, "c1", "/ho me/*/a.b"


def lies_in(value: str, text: str) -> int | None:
    """Return the job in whose cache, by template `text` and on any node, the value lies; None if it lies in none."""
    known = {
        "user": re.escape(USER),
        "uid": str(UID),
        "cluster": CLUSTER,
        "node": "[^/]*",
        "account": "[^/]*",
        "home": re.escape(HOME[1:]),
    }
    raw, name = "[1-9][0-9]{0,9}", "(?P<job>[1-9][0-9]{0,9})(?:-r[1-9][0-9]{0,9})?"
    template = Template(text)
    above, last = (
        "".join({**known, "job_id": job}[part] if variable else re.escape(part) for variable, part in parts)
        for parts, job in ((template.parent, f"(?P<directory>{raw})"), (template.name, name))
    )
    found = re.fullmatch(f"{above}/{last}(?:/.*)?", value, re.DOTALL)
    if found is None or found.groupdict().get("directory", found["job"]) != found["job"]:
        return None
    return int(found["job"])


def values(text: str) -> st.SearchStrategy[str]:
    """Return a strategy for values in a cache of the template, and for near misses."""
    known = {
        "user": st.sampled_from([USER, USER, USER, "al.ixce", "bob", ""]),
        "uid": st.sampled_from([str(UID)] * 4 + ["1001"]),
        "cluster": st.sampled_from([CLUSTER] * 4 + ["c2"]),
        "node": st.sampled_from(["n1", "rack-3-r7", "n-r", "*", "a.b"]),
        "home": st.sampled_from([HOME[1:]] * 4 + ["ho me/x/a.b", "ho me/*/a", "ho me"]),
        "account": st.sampled_from(["acc", "a-b", "", "*", "x/y"]),
        "job_id": st.sampled_from(
            ["7"] * 3
            + ["4242", "7-r1", "4242-r12", "7-r0", "7-r", "07", "0", "12abc", "2024-corpus", "12345678901", "", "7-r01", "*"]
        ),
    }
    parts = [known[part] if variable else st.just(part) for variable, part in Template(text).parts]
    tails = st.sampled_from(["", "", "/", "/x", "/x/y z", "//", "x", "\n", "/\nexport A=b"])
    return st.tuples(st.tuples(*parts).map("".join), tails).map("".join)


def in_cache_of(shell: str, made: Settings, texts: list[str]) -> list[str]:
    """Return the job that jc_is_in_cache finds for each text; "" for none. The task has HOME with a slash at its end."""
    hook = HOOK.read_text()
    tests = "".join(hook[hook.index(f"{name}() {{") :].partition("\n}\n")[0] + "\n}\n" for name in ("jc_is_number", "jc_is_name"))
    names = {"user": USER, "uid": str(UID), "cluster": CLUSTER, "node": "n1", "run_name": "1"}
    lines = [f"jc_{name}={policy.quote(value)}" for name, value in names.items()]
    lines += [f"HOME={policy.quote(HOME + '/')}", "jc_apply_rules"]
    lines += [f"if jc_is_in_cache {policy.quote(text)}; then printf '%s,' \"$jc_cache_job\"; else printf ,; fi" for text in texts]
    return output_of(shell, policy.render(made) + tests + "\n".join(lines)).split(",")[:-1]


@pytest.mark.parametrize("shell", SHELLS)
@few
@given(st.data())
def test_values_in_caches_are_recognised_by_template(shell: str, data: st.DataObject) -> None:
    """A value counts as inherited exactly if a template puts a cache of this user there, on any node."""
    one = st.sampled_from(TEMPLATES).flatmap(lambda text: st.tuples(st.just(text), values(text)))
    drawn = data.draw(st.lists(one, min_size=1, max_size=40))
    for text in {text for text, _ in drawn}:
        tried = [value for by, value in drawn if by == text]
        found = in_cache_of(shell, compiled(path=text), tried)
        assert found == [str(lies_in(value, text) or "") for value in tried]


@pytest.mark.parametrize("shell", SHELLS)
def test_values_by_former_templates_and_rules_are_recognised(shell: str) -> None:
    """Templates of rules and former templates count as well."""
    made = compiled(former=[TEMPLATES[1]], rules=[{"match": {"user": ["x"]}, "path": TEMPLATES[3]}])
    tried = [
        f"/scratch/gpfs/{USER}/.cache/hf-datasets-7/x",
        "/local/1000/r8-r2-x",
        f"/n/other/{USER}/9.n5",
        f"/x/{USER}/7",
        "",
        "/",
    ]
    assert in_cache_of(shell, made, tried) == ["7", "8", "9", "", "", ""]


# ---------------------------------------------------------------------------------------------- hostile configuration

CODE = [
    "$(touch PWNED)`touch PWNED`${jc_x:=$(touch PWNED)}",
    "x'; touch PWNED; '\"; touch PWNED; \"\\'; touch PWNED; ",
    "' | touch PWNED & ) touch PWNED ;; esac; touch PWNED #'\" || touch PWNED; * ? ~",
]
PLACES = [
    "path", "rule path", "partition", "account", "qos", "user", "export", "chain", "log file", "syslog", "run_dir", "cluster",
    "slurm conf", "squeue", "scontrol", "user store", "site store", "node_local", "textfile", "variable",
]  # fmt: skip


def hostile(site: Site, place: str, code: str) -> dict[str, Any]:
    """Return a configuration with `code` in one place."""
    below = f"{site.scratch}/{code.strip('/')}"
    rule = {"match": {"user": [ALICE]}, "scope": "node"}
    return {
        "path": {"path": f"{site.scratch}/{code}/{{user}}/{code}-{{job_id}}"},
        "rule path": {"rules": [{"match": {"user": [ALICE]}, "path": f"{site.scratch}/{code}/{{user}}/{code}-{{job_id}}"}]},
        **{key: {"rules": [{**rule, "match": {key: [code, f"*{code}"]}}]} for key in ("partition", "account", "qos", "user")},
        "export": {"exports": {"HF_DATASETS_CACHE": f"{{cache}}/{code}"}},
        "variable": {"exports": {code: "{cache}"}},
        "chain": {"task_prolog": {"chain": below}},
        "log file": {"log": {"file": below, "syslog": str(site.syslog.path)}},
        "syslog": {"log": {"file": str(site.log), "syslog": below}},
        "run_dir": {"run_dir": below},
        "cluster": {"cluster": code},
        "slurm conf": {"slurm": {"conf": below}},
        "squeue": {"slurm": {"squeue": below}},
        "scontrol": {"slurm": {"scontrol": below}},
        "user store": {"store": {"user": f"{below}/{{user}}"}},
        "site store": {"store": {"site": below}},
        "node_local": {"node_local": [below]},
        "textfile": {"metrics": {"textfile": f"{below}.prom"}},
    }[place]


@pytest.mark.root
@pytest.mark.parametrize("place", PLACES)
def test_no_configured_string_becomes_code(site: Site, place: str) -> None:
    """Each hostile string is refused, or is plain text to both hooks in every shell."""
    pwned = site.scratch / "pwned"
    ran = 0
    defaults = dict(site.keys)
    for code, shell in zip(CODE, SHELLS):
        site.keys = dict(defaults)
        try:
            site.configure(**hostile(site, place, code.replace("PWNED", str(pwned))))
        except (errors.ConfigError, errors.ApplyError):
            continue
        ran += 1
        result = site.task_prolog(shell=shell, SLURM_JOB_PARTITION="p", SLURM_JOB_ACCOUNT="a")
        site.epilog()
        assert result.status == 0
        assert not pwned.exists()
    if place not in ("cluster", "variable"):
        assert ran


@pytest.mark.parametrize("place", PLACES)
def test_control_characters_are_refused(site: Site, place: str) -> None:
    """A newline or a similar character anywhere is refused, and the compiled policy does not change."""
    before = (site.hooks / "policy.sh").read_text()
    defaults = dict(site.keys)
    for bad in ("a\nb", "a\rb", "a\0b", "a\x1bb", "a\u2028b", "a\u200bb"):
        site.keys = dict(defaults)
        with pytest.raises(errors.ConfigError):
            site.configure(**hostile(site, place, bad))
        assert (site.hooks / "policy.sh").read_text() == before
