"""The command line: parse, call one function, print.

`main` holds the two programs, `trace` and `circuit-tracer`; one module a command; `task` is how
every command ends (statuses, messages, nothing half-written); `files` where results go, `report`
what is said about them, `progress` what is shown meanwhile. Nothing heavier than click is imported
until a command runs, so that `--help` answers at once.
"""
