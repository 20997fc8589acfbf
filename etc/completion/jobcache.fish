# The command prints its completion script, which depends on its version of click.
jobcache completion fish 2>/dev/null | source
