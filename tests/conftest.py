"""For all tests: programs that they start can be interrupted."""

from __future__ import annotations

import signal

# A shell's background job ignores SIGINT, and all that it starts does. What this process catches, its children do not ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)
