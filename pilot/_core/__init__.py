"""Bindings on the native core (csrc/). Contracts: the C headers; typed surface: _engine.pyi."""

from pilot._core._engine import (
    DataPlane,
    Engine,
    Event,
    RelayLoop,
    crc32,
    packet_build,
    packet_parse,
)

__all__ = ["DataPlane", "Engine", "Event", "RelayLoop", "crc32", "packet_build", "packet_parse"]
