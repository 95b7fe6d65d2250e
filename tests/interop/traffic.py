"""Traffic that runs while something else happens, and says afterwards what it met."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import published
from testbed import OUR_BIN, Machine, wait_for

ECHO = """
import json, os, sys, time
from pilot.sdk import LocalClient
path, peer, stop, progress = sys.argv[1:]
worst, count = 0.0, 0
with LocalClient(path) as client, client.dial(f"{peer}:7") as stream:
    while not os.path.exists(stop):
        sent, message, got = time.monotonic(), b"%08d" % count, b""
        stream.write(message)
        while len(got) < len(message):
            part = stream.read(len(message) - len(got))
            assert part, "the stream ended"
            got += part
        assert got == message
        worst, count = max(worst, time.monotonic() - sent), count + 1
        open(progress, "w").write(str(count))
        time.sleep(0.02)
print(json.dumps({"count": count, "worst_s": worst}))
"""

# The published client of an application that has patience for some seconds: a new connection for each message, the next number
# once the last one is acknowledged.
MESSAGES = """
import json, os, struct, sys, time
from pilotprotocol import Driver
path, peer, stop, progress = sys.argv[1:]

def send(driver, text):
    with driver.dial(f"{peer}:1001", timeout=5) as conn:
        conn.set_read_deadline(time.time() + 5)
        conn.write(struct.pack(">II", 1, len(text)) + text)
        answer = conn.read_full(struct.unpack(">II", conn.read_full(8))[1])
    assert answer == b"ACK TEXT %d bytes" % len(text), answer

number = unanswered = 0
driver = None
while not os.path.exists(stop):
    try:
        driver = driver or Driver(path)
        send(driver, b"message %d" % number)
    except Exception:
        unanswered, driver = unanswered + 1, None
        time.sleep(0.1)
        continue
    number += 1
    open(progress, "w").write(str(number))
    time.sleep(0.02)
print(json.dumps({"count": number, "unanswered": unanswered}))
"""


class Traffic:
    """Runs a script until the block is left; then `result` holds what it printed. `count`: how far it has come."""

    def __init__(self, python: Path, script: str, a: Machine, peer: str) -> None:
        self.result: dict[str, Any] = {}
        self._base = a.home / f"traffic-{len(list(a.home.glob('traffic-*.log')))}"
        self._stop, self._progress, self._log = (self._base.with_suffix(s) for s in (".stop", ".count", ".log"))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                a.host.wrap([str(python), "-c", script, a.socket, peer, str(self._stop), str(self._progress)]),
                stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, env=a.env,
            )  # fmt: skip

    @property
    def count(self) -> int:
        text = self._progress.read_text() if self._progress.exists() else ""
        return int(text or 0)

    def wait(self, more: int, seconds: float) -> None:
        """Until `more` have gone through since now."""
        until = self.count + more
        wait_for(lambda: self.alive() and self.count >= until, lambda: f"{more} more, at {self.count}\n{self.log}", seconds, 0.1)

    def alive(self) -> bool:
        assert self._process.poll() is None, f"traffic ended: {self.log}"
        return True

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.touch()
        try:
            out, _err = self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            out, _err = self._process.communicate()
        if kind is None:
            assert self._process.returncode == 0, f"traffic failed: {self.log}"
            self.result = json.loads(out)


def echo(a: Machine, b: Machine) -> Traffic:
    """A stream from our daemon at a to the echo service of b, one exchange after the other."""
    return Traffic(OUR_BIN / "python", ECHO, a, b.address)


def messages(a: Machine, b: Machine) -> Traffic:
    """Numbered messages from a to the inbox of b, by the published Python client."""
    return Traffic(published.python(), MESSAGES, a, b.address)
