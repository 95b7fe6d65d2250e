"""The exception behind every negative result of the native core."""

from __future__ import annotations

NAMES = {
    -1: ("PL_ESHORT", "input ends too early"),
    -2: ("PL_EFORMAT", "a field has a forbidden value"),
    -3: ("PL_ECRC", "checksum mismatch"),
    -4: ("PL_EAUTH", "authentication tag mismatch"),
    -5: ("PL_EREPLAY", "counter seen before or too old"),
    -6: ("PL_ENOMEM", "out of memory"),
    -7: ("PL_ELIMIT", "a limit is reached"),
    -8: ("PL_ENOENT", "no such peer, connection, port or client"),
    -9: ("PL_EEXIST", "already exists"),
    -10: ("PL_ESTATE", "not possible in the present state"),
    -11: ("PL_EIO", "a system call failed"),
    -12: ("PL_EAGAIN", "nothing now"),
}


class CoreError(OSError):
    """A negative PL_E* result (csrc/pl.h): `code` is the number, `name` its symbol. `errno` is set for PL_EIO."""

    def __init__(self, code: int, errno_value: int = 0) -> None:
        self.code = code
        self.name, text = NAMES.get(code, (f"PL_E{-code}", "unknown error"))
        super().__init__(errno_value, f"{self.name}: {text}")
