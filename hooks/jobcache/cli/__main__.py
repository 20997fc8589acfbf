"""Run the command without an installation: `python -m jobcache.cli`."""

from jobcache.cli.main import main

main(prog_name="jobcache")
