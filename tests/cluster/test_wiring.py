"""Each way in which a site wires the hooks: globs with other scripts, chained TaskPrologs, configless nodes, an older policy."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Wired, script
from support.minicluster import Cluster
from support.site_dir import ALICE, Site
from support.slurm_version import slurm_version

PRINT_CACHE = "srun sh -c 'echo $HF_DATASETS_CACHE'"


def cluster_of(site: Site, *conf: str) -> Cluster:
    cluster = Cluster(nodes=1, conf=conf)
    site.configure(cluster=cluster.name)
    return cluster


def test_epilog_runs_among_others_of_a_glob(site: Site) -> None:
    """The glob matches a symlink to jobcache's Epilog and two scripts of the site. A failing script drains the node. If it runs
    before jobcache's Epilog, that Epilog does not run."""
    epilogs = site.dir / "epilog.d"
    order = site.dir / "order"
    script(epilogs / "10-first", f"echo first >>{order}")
    script(epilogs / "90-last", f"echo last >>{order}")
    (epilogs / "50-jobcache").symlink_to(site.hooks / "epilog")
    with cluster_of(site, f"TaskProlog={site.hooks}/task-prolog", f"Epilog={epilogs}/*") as cluster:
        wired = Wired(site, cluster)
        job = wired.batch(PRINT_CACHE)
        assert wired.wait(job) == "COMPLETED" and wired.output(job) == [str(wired.cache(job))]
        cluster.wait_node("n1")
        wired.assert_reaped(job)
        assert sorted(order.read_text().split()) == ["first", "last"]
        names = order.read_text().split()

        for name, reaped in ((names[1], True), (names[0], False)):
            script(epilogs / {"first": "10-first", "last": "90-last"}[name], "exit 1")
            job = wired.batch(PRINT_CACHE)
            assert wired.wait(job) == "COMPLETED"
            assert "DRAIN" in cluster.wait_node("n1", lambda state: "DRAIN" in state and "COMPLETING" not in state)
            assert wired.cache(job).exists() is not reaped
            script(epilogs / {"first": "10-first", "last": "90-last"}[name], "exit 0")
            cluster.run("scontrol", "update", "NodeName=n1", "State=RESUME")
            cluster.wait_node("n1")


def test_task_prolog_of_the_site_can_call_this_one(site: Site) -> None:
    """The opposite of `task_prolog.chain`: slurm.conf has the site's script, which runs jobcache's and prints its exports."""
    path = script(site.dir / "site-prolog", f"echo export SITE=1\n{site.hooks}/task-prolog\necho print site speaks")
    with cluster_of(site, f"TaskProlog={path}", f"Epilog={site.hooks}/epilog") as cluster:
        wired = Wired(site, cluster)
        job = wired.batch('echo "$SITE $HF_DATASETS_CACHE"')
        assert wired.wait(job) == "COMPLETED" and f"1 {wired.cache(job)}" in wired.output(job)
        cluster.wait_node("n1")
        wired.assert_reaped(job)


def test_chained_task_prolog_keeps_its_exit_status(site: Site) -> None:
    """slurm.conf has jobcache's TaskProlog, which then runs the site's script. Slurm before 22.05 ignores the status."""
    path = script(site.dir / "site-prolog", "echo export SITE=1")
    with cluster_of(site, f"TaskProlog={site.hooks}/task-prolog", f"Epilog={site.hooks}/epilog") as cluster:
        site.configure(task_prolog={"chain": str(path)})
        wired = Wired(site, cluster)
        job = wired.batch('echo "$SITE $HF_DATASETS_CACHE"')
        assert wired.wait(job) == "COMPLETED" and wired.output(job) == [f"1 {wired.cache(job)}"]
        cluster.wait_node("n1")
        script(path, "exit 3")
        assert wired.wait(wired.batch("true")) == ("FAILED" if slurm_version() >= (22, 5) else "COMPLETED")
        cluster.wait_node("n1")
        assert site.names() == []


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
def test_job_over_nodes_with_two_policies_loses_no_cache(site: Site, known: bool) -> None:
    """During a roll-out, the second node of a job still has the policy with the former path. A rule of that policy names the new
    path, or does not. Each node has a cache by its own policy, no job fails, and all caches are reaped."""
    former = f"{site.scratch}/{{user}}/.cache/hf-datasets-{{job_id}}"
    new = f"{site.scratch}/{{user}}/new/hf-datasets-{{job_id}}"
    hooks, old_hooks, by_node = site.hooks, site.dir / "old", site.dir / "by-node"
    for name in ("task-prolog", "epilog"):
        script(by_node / name, f"case $SLURMD_NODENAME in n1) exec {hooks}/{name} ;; *) exec {old_hooks}/{name} ;; esac")
    cluster = Cluster(nodes=2, conf=[f"TaskProlog={by_node}/task-prolog", f"Epilog={by_node}/epilog"])
    site.hooks = old_hooks
    site.configure(cluster=cluster.name, path=former, rules=[{"match": {"account": ["nobody"]}, "path": new}] if known else [])
    site.hooks = hooks
    site.configure(path=former, rules=[])
    site.configure(path=new)
    with cluster:
        wired = Wired(site, cluster)
        job = wired.batch("srun sh -c 'echo $SLURMD_NODENAME $HF_DATASETS_CACHE'", "-N2")
        assert wired.wait(job) == "COMPLETED"
        user = site.scratch / ALICE
        assert sorted(wired.output(job)) == [f"n1 {user}/new/hf-datasets-{job}", f"n2 {user}/.cache/hf-datasets-{job}"]
        for node in cluster.nodes:
            cluster.wait_node(node)
        assert not [*user.glob("*/hf-datasets-*"), *user.glob("*/.jobcache-[!h]*")]


ETC = Path(__file__).parents[2] / "etc"


def test_shell_of_salloc_and_its_steps_share_a_cache(site: Site) -> None:
    """salloc starts its shell without a TaskProlog; a script in /etc/profile.d runs it. The lease of the shell's own host is
    left for the sweep, because no Epilog runs there."""
    snippet = site.dir / "jobcache.sh"
    text = (ETC / "profile.d/jobcache.sh").read_text()
    snippet.write_text(text.replace("/usr/libexec/jobcache", str(site.hooks)))
    with cluster_of(site, f"TaskProlog={site.hooks}/task-prolog", f"Epilog={site.hooks}/epilog") as cluster:
        step = 'srun sh -c "touch \\$HF_DATASETS_CACHE/x; echo \\$HF_DATASETS_CACHE"'
        command = f'. {snippet}; echo "$HF_DATASETS_CACHE"; {step}; ls "$HF_DATASETS_CACHE"'
        lines = cluster.run("salloc", "-N1", "sh", "-c", command, user=ALICE).stdout.split()
        assert lines[0] == lines[1] and lines[2:] == ["x"]
        cache = Path(lines[0])
        cluster.wait(int(cache.name.rpartition("-")[2]))
        cluster.wait_node("n1")
        assert cache.exists() and [lease.name for lease in (cache / ".jobcache/nodes").iterdir()] != ["n1"]


def test_prolog_creates_the_directory_of_a_new_user(site: Site) -> None:
    """Users cannot create it themselves: scratch belongs to root, and nobody else can write to it."""
    scratch = site.dir / "closed"
    scratch.mkdir()
    text = (ETC / "prolog.d/jobcache-scratch").read_text().replace("scratch=/scratch/gpfs", f"scratch={scratch}", 1)
    prolog = script(site.dir / "prolog", text)
    site.configure(path=f"{scratch}/{{user}}/hf-datasets-{{job_id}}")
    hooks = (f"TaskProlog={site.hooks}/task-prolog", f"Epilog={site.hooks}/epilog")
    with cluster_of(site, f"Prolog={prolog}", *hooks) as cluster:
        wired = Wired(site, cluster)
        job = wired.batch(PRINT_CACHE)
        assert wired.wait(job) == "COMPLETED"
        assert wired.output(job) == [f"{scratch}/{ALICE}/hf-datasets-{job}"]
