"""For all tests: programs that they start can be interrupted, and no generated example fails for being slow."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# A shell's background job ignores SIGINT, and all that it starts does. What this process catches, its children do not ignore.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
