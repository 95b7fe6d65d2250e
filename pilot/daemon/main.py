"""The program `pilot-daemon`: command line, process name, event loop, exit status (cli.md sections 2 and 8).

Exit status: 0 after an orderly stop, 1 if the node cannot start or fails (-dry-run: would not start), 2 for a wrong command line.
"""

from __future__ import annotations

import os
import sys

NAME = "pilot-daemon"


def main() -> int:
    """Entry point. Returns the exit status."""
    words = {word.lstrip("-").partition("=")[0] for word in sys.argv[1:] if word.startswith("-")}
    if words & {"help", "h"}:
        from pilot.daemon.flags import help_text

        sys.stdout.write(help_text())
        return 0
    if "version" in words:
        from pilot import __version__

        print(__version__)
        return 0
    if os.path.basename(sys.orig_argv[0]) != NAME:
        _take_name()
    return _run(sys.argv[1:])


def _take_name() -> None:
    """Starts this process over under its own name.

    `pilotctl` of other makes recognises a daemon by the base name of argv[0], which for a script is the
    interpreter's. The name is given as a path beside the interpreter, because from that path Python finds
    its virtual environment. The interpreter ignores the current directory (-P).
    """
    path = os.path.join(os.path.dirname(sys.executable), NAME)
    try:
        os.execv(sys.executable, [path, "-P", "-m", "pilot.daemon.main", *sys.argv[1:]])
    except OSError as error:
        print(f"{NAME}: keeps the name of the interpreter: {error.strerror}", file=sys.stderr)


def _run(argv: list[str]) -> int:
    from pilot.daemon.config import load
    from pilot.errors import PilotError

    try:
        config = load(argv, os.environ, installed=True)
    except PilotError as error:
        _complain(error.message, error.hint)
        return 2
    if config.dry_run:
        from pilot.daemon.dryrun import examine

        report = examine(config)
        print(report.to_json() if config.json else report.to_text())
        return 1 if report.problems else 0
    os.umask(0o077)

    import uvloop

    from pilot import logs
    from pilot.daemon.node import serve

    logs.setup(config.log_level, config.log_format)
    try:
        uvloop.run(serve(config))
    except PilotError as error:
        _complain(error.message, error.hint)
        return 1
    return 0


def _complain(message: str, hint: str) -> None:
    print(f"{NAME}: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
