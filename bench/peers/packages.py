"""The contenders that come from the package index."""

from __future__ import annotations

from typing import ClassVar

from net.contenders import EVERYTHING, Addressed
from peers import environment


class Packaged(Addressed):
    package: ClassVar[str] = ""

    def python(self) -> str:
        return environment.python(self.package)


class Zmq(Packaged):
    """One stream at a time, and no end of set-up that could be seen."""

    name, label, package, can = "zmq", "pyzmq CURVE", "pyzmq", frozenset({"bulk", "rtt"})


class Asynchronous(Packaged):
    module, can = "net.asyncdriver", EVERYTHING - {"duplex", "streams"}


class Iroh(Asynchronous):
    name, label, package = "iroh", "iroh, Python interface", "iroh"
    cap = 8 << 20  # bytes: it is slow


class Aioquic(Asynchronous):
    name, label, package = "aioquic", "aioquic", "aioquic"
    cap = 8 << 20  # bytes: what is written waits in memory


class Qh3(Asynchronous):
    name, label, package = "qh3", "qh3", "qh3"
    cap = 16 << 20  # bytes, as with aioquic


PACKAGES = (Zmq, Iroh, Qh3, Aioquic)
