"""`python -m jobcache.cli`: the command without an installation."""

from jobcache.cli.main import main

main(prog_name="jobcache")
