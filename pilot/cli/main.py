"""Entry point of `pilotctl`: finds the command, runs it, prints errors. Exit status: 0, 1 (error), 2 (usage), 130."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pilot.cli.args import Args, usage
from pilot.cli.commands import COMMANDS, help_text, overview
from pilot.cli.output import Output
from pilot.errors import PilotError

USAGE, INTERRUPTED = 2, 130
_HELP = ("help", "-h", "-help", "--help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line; the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    out = Output("--json" in words)
    words = [w for w in words if w != "--json"]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return _run(words, out)
    except PilotError as e:
        out.error(e)
    except UnicodeEncodeError:
        out.error(usage("an argument is not valid UTF-8"))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has what it wanted. Nothing may be written at exit any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as e:
        if os.environ.get("PILOT_DEBUG"):
            raise
        hint = "please report this; PILOT_DEBUG=1 shows where it happened"
        out.error(PilotError("internal", f"{type(e).__name__}: {e}", hint))
    return 1


def _run(words: list[str], out: Output) -> int:
    common: list[str] = []
    if words and words[0].partition("=")[0] in ("--socket", "-socket"):  # the one flag that may stand before the command
        count = 1 if "=" in words[0] else 2
        common, words = words[:count], words[count:]
    if not words:
        print(overview(), file=sys.stderr)
        return USAGE
    if words[0] in _HELP:
        print(help_text(" ".join(words[1:])) if " ".join(words[1:]) in COMMANDS else overview())
        return 0
    if words[0] == "--version":
        words[0] = "version"
    if words[0] == "extras" and len(words) > 1:  # the published program keeps operators' commands behind this word
        words = words[1:]
    name = words[0]
    if name not in COMMANDS and len(words) > 1 and f"{name} {words[1]}" in COMMANDS:
        name = f"{name} {words[1]}"
    command = COMMANDS.get(name)
    if command is None:
        return _unknown(words, out)
    args = Args([*common, *words[1 + name.count(" ") :]], command.args, command.raw)
    if args.has("help"):
        print(help_text(name), file=sys.stderr)
        return 0
    if args.unknown:
        from pilot.cli.elsewhere import refused_flag

        if refused := refused_flag(name, args.unknown):
            raise refused
    for flag in args.unknown:
        out.note(f"note: {name} has no flag {flag}; ignored")
    return _call(command.target, args, out)


def _call(target: str, args: Args, out: Output) -> int:
    from importlib import import_module

    from pilot.cli.session import Session
    from pilot.cli.settings import Settings

    module, _, function = target.partition(".")
    session = Session(args, out, Settings(args.flags, os.environ))
    try:
        status = getattr(import_module(f"pilot.cli.{module}"), function)(session)
    finally:
        session.close()
    return status or 0


def _unknown(words: list[str], out: Output) -> int:
    from pilot.cli.elsewhere import refusal

    refused = refusal(words)
    if refused is not None:
        raise refused
    group = any(n.startswith(f"{words[0]} ") for n in COMMANDS)
    typed = " ".join(words[:2] if group else words[:1])
    if group and (len(words) < 2 or words[1] in _HELP):
        print(help_text(words[0]), file=sys.stderr)
        return 0 if len(words) > 1 else USAGE
    if out.json:
        raise usage(f"unknown command: {typed}", "pilotctl context lists all commands")
    print(f"unknown command: {typed}\n\n{overview()}", file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
