"""The daemon's local socket: codes and framing (ipc.md 1, 2)."""

from __future__ import annotations

from enum import IntEnum

from pilot.wire.errors import WireError

MAX_FRAME = 1 << 20  # code and payload
MAX_SEND = 1_048_512  # stream bytes in one Send frame: what upstream clients write at most
ERROR_CODE = 1  # the only one daemons send; the text carries everything

class Cmd(IntEnum):
    """Codes. The reply of a request that has one is the code above it."""

    BIND, BIND_OK, DIAL, DIAL_OK, ACCEPT, SEND, RECV, CLOSE, CLOSE_OK, ERROR = range(0x01, 0x0B)
    SEND_TO, RECV_FROM, INFO, INFO_OK, HANDSHAKE, HANDSHAKE_OK = range(0x0B, 0x11)
    RESOLVE_HOSTNAME, RESOLVE_HOSTNAME_OK, SET_HOSTNAME, SET_HOSTNAME_OK = range(0x11, 0x15)
    SET_VISIBILITY, SET_VISIBILITY_OK, DEREGISTER, DEREGISTER_OK = range(0x15, 0x19)
    SET_TAGS, SET_TAGS_OK, SET_WEBHOOK, SET_WEBHOOK_OK, SET_TASK_EXEC, SET_TASK_EXEC_OK = range(0x19, 0x1F)
    NETWORK, NETWORK_OK, HEALTH, HEALTH_OK, MANAGED, MANAGED_OK, ROTATE_KEY, ROTATE_KEY_OK = range(0x1F, 0x27)
    BROADCAST, BROADCAST_OK, CANCEL = 0x29, 0x2A, 0x2B
    PREFER_DIRECT, PREFER_DIRECT_OK, SUBMIT_BADGE, SUBMIT_BADGE_OK = range(0x2D, 0x31)
    ENROLL_RECOVERY, ENROLL_RECOVERY_OK, SIGN_ENVELOPE, SIGN_ENVELOPE_OK = range(0x31, 0x35)
    VERIFY_ENVELOPE, VERIFY_ENVELOPE_OK, UNBIND, UNBIND_OK = range(0x35, 0x39)
    SEND_TO_CONFIRM, SEND_TO_CONFIRM_OK = 0x39, 0x3A
    PATH_INFO, PATH_INFO_OK = 0x60, 0x61  # ours: docs/wire-extensions.md 4


def frame(code: int, payload: bytes = b"") -> bytes:
    """`length(4) code(1) payload`. Raises WireError above MAX_FRAME."""
    return head(code, len(payload)) + payload


def head(code: int, size: int) -> bytes:
    """What stands before a payload of `size` bytes. Raises WireError above MAX_FRAME."""
    if size + 1 > MAX_FRAME:
        raise WireError(f"{size} bytes do not fit one frame")
    return (size + 1).to_bytes(4, "big") + bytes((code,))


def parse_frame(data: bytes | bytearray | memoryview) -> tuple[int, bytes, int] | None:
    """The first frame as (code, payload, bytes used); None if it is not complete.

    Length 0 is legal and means nothing: (0, b"", 4). Raises WireError above MAX_FRAME: the stream is lost then.
    """
    if len(data) < 4:
        return None
    size = int.from_bytes(data[:4], "big")
    if size > MAX_FRAME:
        raise WireError(f"frame of {size} bytes")
    if len(data) < 4 + size:
        return None
    return (data[4], bytes(data[5 : 4 + size]), 4 + size) if size else (0, b"", 4)


class FrameReader:
    """Bytes of one direction to (code, payload), sans-I/O. Frames of length 0 are skipped."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Complete frames, in order. Raises WireError as `parse_frame`."""
        self._buffer += data
        frames, at = [], 0
        with memoryview(self._buffer) as view:
            while parsed := parse_frame(view[at:]):
                code, payload, used = parsed
                at += used
                if used > 4:
                    frames.append((code, payload))
        del self._buffer[:at]
        return frames
