# What completes jobcache's words is its own to say, by the version of click that it has.
jobcache completion fish 2>/dev/null | source
