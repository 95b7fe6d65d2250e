"""`pilotctl`: the command line of the local daemon (docs/cli.md). One module per group of commands.

main      entry point: parses, calls, prints errors      commands  the table: arguments, texts, where each command lives
args      flags and positionals                          settings  flag > environment > config.json > default
output    JSON envelope, human text, sizes and times     session   the daemon, targets by name, trust before dialling

Modules are imported when their command runs, so that `pilotctl info` stays fast.
"""
