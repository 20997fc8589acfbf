"""The effect of a batch script on HF_HOME and XDG_CACHE_HOME, read from its text."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobcache.cache import default_cache, reasons, script_variables

ENV = {"HOME": "/home/alice", "USER": "alice", "PATH": "/usr/bin:/bin"}
UNCHANGED = "/home/alice/.cache/huggingface/datasets"
UNKNOWN = "unknown"


@pytest.fixture(autouse=True, scope="module")
def _home() -> Iterator[None]:
    """`~` is the home of this user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", ENV["HOME"])
        yield


def cache_after(script: str, **env: str) -> str:
    """Return the user's own cache once the script has set its variables, or UNKNOWN."""
    text = script if script.startswith("#!") else f"#!/bin/bash\n{script}"
    try:
        return default_cache.path(script_variables.after_script(text, {**ENV, **env}))
    except reasons.Refused as refusal:
        assert refusal.reason == "inherit_script"
        return UNKNOWN


@pytest.mark.parametrize(
    "script",
    [
        "python train.py",
        "# export HF_HOME=/data/hf",
        "#SBATCH --export=ALL,HF_HOME=/data/hf\npython train.py",
        "python train.py # with HF_HOME=/data/hf",
        'mkdir -p "$HF_HOME"; ls ${HF_HOME:-none} ${XDG_CACHE_HOME%/}',
        "echo HF_HOME=$HF_HOME",
        'echo "HF_HOME=${HF_HOME} and ${XDG_CACHE_HOME}"',
        'printf "%s\\n" "HF_HOME is $HF_HOME"',
        "export MY_HF_HOME=/data/hf HF_HOMES=/data",
        "HF_HOME=/data/hf",  # not exported
        "export HF_HOME",
        "cat <<EOF\n$HF_HOME\nEOF",
        "export HF_HOME=$SCRATCH/hf\nexport HF_DATASETS_CACHE=$HF_HOME/datasets\npython train.py",
        "HF_DATASETS_CACHE=/data/x\nexport HF_HOME=$SCRATCH/hf",
        "unset HF_DATASETS_CACHE\nexport HF_HOME=$(scratch)",
        "HF_HOME=/data/hf srun python train.py",
        "HF_HOME=$SCRATCH/hf srun -n1 python train.py",
        "for x in a b; do HF_HOME=/data/$x XDG_CACHE_HOME=/y HOME=/z srun python x & done; wait",
        "srun --export=ALL,HF_HOME=/data/hf python train.py",
        "srun -n1 --export=HF_HOME=$SCRATCH python train.py",
        "# HOME=/x\necho HOME=/x is my HOME; cd $HOME; ls ${HOME}/x ~",
        "export HOME=/home/alice",
        "python - <<EOF\nimport os; print(os.environ['HOME'], os.environ.get('HOME', ''))\nEOF",
        "case $1 in a) cd $HOME ;; esac; JAVA_HOME=/x; export CUDA_HOME=$(x)",
        "unset HOME",
    ],
)  # fmt: skip
def test_script_can_change_nothing(script: str) -> None:
    assert cache_after(script) == UNCHANGED


@pytest.mark.parametrize(
    "script",
    [
        "export HF_HOME=/data/hf",
        "export HF_HOME=/data/hf;python train.py",
        "  export  HF_HOME=/data/hf  # mine",
        'export HF_HOME="/data/hf"\npython train.py',
        "export HF_HOME='/data/hf'",
        "export A=1 HF_HOME=/data/hf B=2",
        "export HF_HOME=/data/hf && python train.py",
        "HF_HOME=/data/hf\nexport HF_HOME",
        "export HF_HOME\nHF_HOME=/data/hf",
        "export HF_HOME=/old\nexport HF_HOME=/data/hf\npython train.py",
        "export XDG_CACHE_HOME=/data\nexport HF_HOME=$XDG_CACHE_HOME/hf",
        "export XDG_CACHE_HOME=$SCRATCH\nexport HF_HOME=/data/hf",
        "export HF_HOME=${HF_HOME:-/data/hf}",
        "#!/usr/bin/env bash\nset -euo pipefail\nsource ~/venv/bin/activate\nmodule load cuda\nexport HF_HOME=/data/hf\npython x",
        "#!/bin/bash -l\nexport HF_HOME=/data/hf",
        "log() { echo \"$1\"; }\nARGS=(--a 'b c')\nexport HF_HOME=/data/hf",
        "export MASTER=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | head -n 1)\nexport HF_HOME=/data/hf",
        'eval "$(conda shell.bash hook)"\nconda activate x\nexport HF_HOME=/data/hf',
        "if [ -d /data ]; then cd /data; else echo no; fi\nexport HF_HOME=/data/hf",
        "[ -d /data/hf ] || mkdir /data/hf\nexport HF_HOME=/data/hf >log 2>&1",
        "export HF_HOME=/data/hf\npython - <<'EOF'\nprint('a')  # it's $HF_HOME\nEOF",
        "cat <<'EOF'\nit's\nEOF\nexport HF_HOME=/data/hf\ncase $1 in a) python x;; esac",
    ],
)  # fmt: skip
def test_script_can_set_a_known_path(script: str) -> None:
    assert cache_after(script) == "/data/hf/datasets"


@pytest.mark.parametrize(
    ("script", "path"),
    [
        ("export HF_HOME=~/hf", "/home/alice/hf"),
        ('export HF_HOME="~/hf"', "/home/alice/hf"),
        ("export HF_HOME=$HOME/hf", "/home/alice/hf"),
        ('export HF_HOME="${HOME}/my hf"', "/home/alice/my hf"),
        ("export HF_HOME=/scratch/$USER/hf", "/scratch/alice/hf"),
        ("export XDG_CACHE_HOME=/data/xdg", "/data/xdg/huggingface"),
        ("export HOME=/x", "/x/.cache/huggingface"),
        ("export HOME=/scratch/$USER\npython x", "/scratch/alice/.cache/huggingface"),
        ("HOME=/x", "/x/.cache/huggingface"),
        ("export HOME=/x\nexport HF_HOME=$HOME/hf", "/x/hf"),
        ("export HF_HOME=$HOME/hf\nexport HOME=$(x)", "/home/alice/hf"),
        ("srun prepare\nexport HF_HOME=/data/hf\nsrun train", "/data/hf"),
        ("export HF_HOME=/data/hf\nHF_HOME=/other srun train", "/data/hf"),
    ],
)
def test_path_can_name_the_user(script: str, path: str) -> None:
    assert cache_after(script) == f"{path}/datasets"


def test_variables_of_the_job_count() -> None:
    assert cache_after("HF_HOME=/data/hf", HF_HOME="/old") == "/data/hf/datasets"
    assert cache_after("export XDG_CACHE_HOME=$(x)", HF_HOME="/old") == "/old/datasets"
    assert cache_after("export HF_HOME=${HF_HOME:-/data/hf}", HF_HOME="/old") == "/old/datasets"
    assert cache_after("python x\nexport HF_HOME=/old", HF_HOME="/old") == "/old/datasets"
    assert cache_after("export HF_HOME=$USER", USER="a b") == UNKNOWN


@pytest.mark.parametrize(
    "script",
    [
        "export HF_HOME=$SCRATCH/hf",
        "export HF_HOME=$(mktemp -d)",
        "export HF_HOME=`pwd`/hf",
        "export HF_HOME=${SCRATCH}/hf",
        "export HF_HOME=/data/*",
        "export HF_HOME=/data\\ x",
        "export HF_HOME=/data/{a,b}",
        "export HF_HOME=$'/data'",
        "export HF_HOME+=/x",
        ": ${HF_HOME:=/data/hf}\nexport HF_HOME",
        "echo ${HF_HOME=/data/hf}",
        "echo $((HF_HOME=5))",
        "echo ${X:-${HF_HOME:=/x}}",
        "unset HF_HOME",
        "declare -x HF_HOME=/data/hf",
        "read HF_HOME",
        pytest.param("${" * 100_000 + "\nexport HF_HOME=/data/hf", id="${${${…"),
        "HF_HOME=/x\nexport HF_HOME=/data/hf\nexport -n HF_HOME",
        "printf -v HF_HOME /data/hf",
        "eval 'export HF_HOME=/data/hf'",
        "if true; then\n  export HF_HOME=/data/hf\nfi\npython x",
        "for x in 1 2; do export HF_HOME=/data/hf; done",
        "for HF_HOME in /a /b; do python x; done",
        "case $1 in\na) export HF_HOME=/data/hf ;;\nesac",
        "f() {\n  export HF_HOME=/data/hf\n}\npython x; f",
        "(export HF_HOME=/data/hf; python x)",
        "{ export HF_HOME=/data/hf; }",
        "true && export HF_HOME=/data/hf",
        "true ||\n\nexport HF_HOME=/data/hf",
        "export HF_HOME=/data/hf | cat",
        "export HF_HOME=/data/hf &",
        "true |\nexport HF_HOME=/data/hf",
        "! export HF_HOME=/data/hf",
        "HF_HOME=/data/hf python train.py",
        "env HF_HOME=/data/hf python train.py",
        "srun sh -c 'export HF_HOME=/data/hf; python train.py'",
        "HF_HOME=${X:=${HF_HOME:=/x}} srun python train.py\nexport HF_HOME",
        "srun() { python x; }\nHF_HOME=/x srun",
        "HF_HOME=/x env srun python",
        "export HOME=$SCRATCH",
        "export HOME=$(mktemp -d)",
        "HOME=/x python train.py",
        "python a.py\nexport HOME=/x\npython b.py",
        "if true; then export HOME=/x; fi",
        "read HOME",
        "for HOME in /a /b; do python x; done",
        "export HOME=~/x",
        "python - <<EOF\nimport os; os.environ['HOME'] = '/data/hf'\nEOF",
        "python a.py\nexport HF_HOME=/data/hf\npython b.py",
        "X=$(python a.py)\nexport HF_HOME=/data/hf",
        "export HF_HOME=/data/hf\npython a.py\nexport HF_HOME=/data/two\npython b.py",
        "conda run python x\nexport HF_HOME=/data/hf",
        'eval "python x"\nexport HF_HOME=/data/hf',
        "set -a\nHF_HOME=/data/hf\npython x",
        "set -o allexport\nHF_HOME=/data/hf\npython x",
        "bash <<EOF\nexport HF_HOME=/data/hf\npython x\nEOF",
        "python - <<EOF\nimport os; os.environ['HF_HOME'] = '/data/hf'\nEOF",
        "cat <<EOF\n'\nexport HF_HOME=/data/hf",
        "echo HF_HOME=/data/hf >>~/.bashrc\n. ~/.bashrc",
        "export HF_HOME='/data/hf",
        "export HOME=/x\nexport HF_HOME=~/hf",
        "export HF_HOME=~/hf\nexport HOME=/x\nexport XDG_CACHE_HOME=/y",
        "#!/usr/bin/env python3\nimport os\nos.environ['HF_HOME'] = '/data/hf'",
        "#!/bin/tcsh\nsetenv HF_HOME /data/hf",
        "#!/bin/bash -a\nHF_HOME=/data/hf",
    ],
)  # fmt: skip
def test_script_in_doubt_is_unknown(script: str) -> None:
    assert cache_after(script) == UNKNOWN


def test_message_shows_no_more_of_a_command_than_necessary() -> None:
    with pytest.raises(reasons.Refused, match="HF_HOME=/x$"):
        script_variables.after_script("#!/bin/sh\nHF_TOKEN=secret HF_HOME=/x python --password y", ENV)
    with pytest.raises(reasons.Refused, match="runs python before it sets HF_HOME$"):
        script_variables.after_script("#!/bin/sh\npython --password y\nexport HF_HOME=/x", ENV)


# A line for each thing that a reader could misunderstand; `python` prints what it sees.
LINES = [
    "export HF_HOME=/a", "HF_HOME=/b", "export HF_HOME", "export XDG_CACHE_HOME=/c", "XDG_CACHE_HOME=~/d", "python x",
    "HF_HOME=/e python x", "true &&", "false ||", "false &&", "if false; then", "else", "fi", "{", "}", "f() {", "f",
    "python x |", "export HF_HOME=/f # c", "# HF_HOME=/g", "echo HF_HOME=/h", 'echo "', '"', "'", "cat <<EOF", "EOF",
    "cat <<'E' # HF_HOME", "E", "export HF_HOME=${HF_HOME:-/i}", "export HF_HOME=$XDG_CACHE_HOME/j",
    "export HF_DATASETS_CACHE=/own", "while false; do", "done", "for i in 1 2; do", "export HF_HOME=\\", "/k", "set -a",
    "set +a", "unset HF_HOME", "export HF_HOME=$(echo /l)", "X=$(python x)", "X=$(", ")", "export HOME=/m",
    "export HF_HOME=$HOME/n", "export HF_HOME='/o'\"/p\"", "python x &", "wait", "! true", "case a in", "a) python x",
    ";; esac", "export HF_HOME=/q; python x", "export HF_HOME=/r & python x", "exit", ": ${HF_HOME:=/s}",
    "export A=1 HF_HOME=/t", "X=`python x`", "$HF_HOME", "(", 'export HF_HOME="$USER/u"', "export HF_HOME=", "export -n HF_HOME",
    "python x <<EOF && export HF_HOME=/v", "\techo \\# HF_HOME", "echo a#b; export HF_HOME=/w", "{ python x; }", "X=(a b)",
    "trap 'python x' EXIT", 'eval "export HF_HOME=/y"', "export HF_HOME=/z >/dev/null 2>&1",
    "HF_HOME=/aa srun x", "srun --export=ALL,HF_HOME=/ab x", "srun x", "HOME=/ac", "export HOME=$(echo /ad)", "HOME=/ae python x",
    "export HOME=$USER", "echo HOME=/af", "for HOME in /ag; do", "unset HOME", "srun() { python x; }", "HOME=$HOME/ah",
]  # fmt: skip
# Balanced code around such a line.
AROUND = [
    "{}", "{}", "true && {}", "false && {}", "true || {}", "false ||\n{}", "if false; then\n{}\nfi", "f() {{\n{}\n}}",
    "{{ {}; }}", "({})", "{} &", "{} | cat", "true | {}", "X=$({})", "{}; python x", "{} && python x",
    "for i in 1 2; do {}; done", "! {}", "cat <<EOF\n{}\nEOF", "sh <<EOF\n{}\nEOF", "echo '{}'", "# {}",
    "case a in b) {} ;; esac", "while false; do {}; done", "false &&\n\n{}",
]  # fmt: skip
BLOCKS = st.one_of(st.builds(str.format, st.sampled_from(AROUND), st.sampled_from(LINES)), st.sampled_from(LINES))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a `python` that appends what it sees to the file $SEEN."""
    directory = tmp_path_factory.mktemp("bin")
    names = " ".join(f'"${{{name}-unset}}"' for name in ("HF_DATASETS_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"))
    (directory / "python").write_text(f'#!/bin/sh\nprintf "%s|%s|%s|%s\\n" {names} >>"$SEEN"\n')
    (directory / "python").chmod(0o755)
    (directory / "srun").write_text("#!/bin/sh\n")  # the TaskProlog of a step sees its variables
    (directory / "srun").chmod(0o755)
    yield directory


@settings(deadline=None, max_examples=500)
@given(lines=st.lists(BLOCKS, min_size=1, max_size=4), set_before=st.booleans())
def test_answer_is_that_of_real_shells(programs: Path, lines: list[str], set_before: bool) -> None:
    """If an answer is given, each program that uses the private cache would have used the cache of this answer."""
    before = {"HF_HOME": "/before"} if set_before else {}
    script = "\n".join([*lines, "python x"])
    try:
        answer = default_cache.path(script_variables.after_script(f"#!/bin/sh\n{script}", {**ENV, **before}))
    except reasons.Refused:
        return
    for shell in ("dash", "bash"):
        for name, uses, values in seen(programs, shell, script, before):
            assert not uses or default_cache.path(values) == answer, (name, script)


def seen(programs: Path, shell: str, script: str, before: dict[str, str]) -> Iterator[tuple[str, bool, dict[str, str]]]:
    """Yield, for each program that the script runs: shell, whether it uses the private cache, its variables."""
    file = programs / "seen"
    file.write_text("")
    env = {**ENV, **before, "HF_DATASETS_CACHE": "private", "SEEN": str(file), "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(  # the background processes of a script end first
        [shell, "-c", f"{script}\nwait"],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=10,
        cwd=programs,
    )
    for line in file.read_text().splitlines():
        own, *values = line.split("|")
        names = ("HF_HOME", "XDG_CACHE_HOME", "HOME")
        yield shell, own == "private", {name: value for name, value in zip(names, values) if value != "unset"}


@pytest.mark.parametrize(
    "script",
    [
        "export APPTAINERENV_HF_HOME=/hf",
        "SINGULARITYENV_HF_HOME=/hf singularity exec image.sif python train.py",
        "python train.py\nexport SINGULARITYENV_XDG_CACHE_HOME=$SCRATCH",
    ],
)
def test_script_that_moves_the_cache_of_containers_is_refused(script: str) -> None:
    """HF_DATASETS_CACHE of the job enters the container as well, and hides what HF_HOME names there."""
    with pytest.raises(reasons.Refused, match="mentions") as refused:
        script_variables.after_script(f"#!/bin/sh\n{script}\n", ENV)
    assert refused.value.reason == "inherit_container"


def test_other_variables_of_containers_change_nothing() -> None:
    assert cache_after("export APPTAINERENV_MY_HF_HOME=/hf APPTAINERENV_HF_TOKEN=x\napptainer exec image.sif true") == UNCHANGED
