"""A machine as its owner set it up: settings in `~/.pilot/config.json`, the daemon run by pilotctl of either make."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import published
from lab import Host
from testbed import OURS, THEIRS, Machine, Testbed, wait_for

# What the published daemon would report home; as settings of the file, because pilotctl hands on no such flags.
SILENT = {"telemetry_url": "", "motd_feed_url": "", "no_skillinject": True}


class Installed(Machine):
    """`make` is whose programs run there now; `start` with another one is the swap."""

    def __init__(self, bed: Testbed, host: Host, name: str, make: str, **settings: object) -> None:
        super().__init__(bed, host, name, make, make)
        file = {"registry": bed.registry, "beacon": bed.beacon, "hostname": name, "socket": self.socket, **SILENT, **settings}
        self.write("config.json", json.dumps(file))
        self.running = False

    @property
    def env(self) -> dict[str, str]:
        return {k: v for k, v in super().env.items() if k not in ("PILOT_SOCKET", "PILOT_REGISTRY", "PILOT_BEACON")}

    def write(self, name: str, text: str | bytes) -> Path:
        """A file in ~/.pilot, mode 0600."""
        path = self.dot / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(0o600)
        return path

    def start(self, make: str | None = None) -> Installed:
        self.make = self.tools = make or self.make
        data = self.json("daemon", "start", timeout=40)
        self.running = True
        self.node, self.address = int(data["node_id"]), str(data["address"])
        return self

    def stop(self, seconds: float = 25.0) -> None:
        if self.running:
            self.json("daemon", "stop", timeout=seconds)
            self.running = False
        assert not os.path.exists(self.socket)

    @property
    def log(self) -> str:
        newest = self.dot / "pilot.log"
        return newest.read_text(errors="replace") if newest.exists() else ""

    def dry_run(self, *flags: str) -> dict[str, Any]:
        """What our daemon would use here."""
        done = self.ctl("--json", "daemon", "start", "--dry-run", *flags, tools=OURS, check=False)
        assert done.stdout, done.stderr
        data: dict[str, Any] = json.loads(done.stdout)["data"]
        assert done.returncode == (0 if data["would_start"] else 1), done
        return data

    def files(self) -> dict[str, tuple[int, int, bytes]]:
        """Mode, time of change and content of everything in the home."""
        found = {}
        for path in [self.home, *self.home.rglob("*")]:
            state = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path.relative_to(self.home))] = (state.st_mode, state.st_mtime_ns, content)
        return found

    def identity(self) -> dict[str, Any]:
        """What must not change when another make takes over: from the daemon, and from the registry."""
        info = self.json("info", tools=OURS)
        entry = self.json("lookup", str(self.node), tools=OURS)
        trusted = sorted((r["node_id"], r["approved_at"]) for r in self.json("trust")["trusted"])
        pending = sorted((r["node_id"], r["justification"]) for r in self.json("pending")["pending"])
        return {
            **{key: info[key] for key in ("node_id", "address", "hostname", "public_key", "email")},
            **{key: entry.get(key) for key in ("tags", "public")},
            "trusted": trusted, "pending": pending,
            "inbox": [m["data"] for m in self.inbox()], "received": [p.name for p in self.received()],
        }  # fmt: skip


def other(make: str) -> str:
    return THEIRS if make == OURS else OURS


__all__ = ["Installed", "other", "published", "wait_for"]
