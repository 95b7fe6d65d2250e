"""What a daemon that only waits does not carry: libraries for metrics, proxies, webhooks and WebSockets are loaded when used."""

import json
import subprocess
import sys

ON_DEMAND = (
    "cryptography",
    "rich",
    "pygments",
    "prometheus_client",
    "websockets",
    "http.client",
    "urllib.request",
    "email",
    "tempfile",
    "shutil",
)


def test_the_program_loads_what_it_needs_and_no_more() -> None:
    """In a fresh interpreter: what is imported here would hide the answer."""
    code = (
        "import json, sys; import pilot.daemon.main, pilot.daemon.config, pilot.logs, pilot.daemon.node;"
        "pilot.logs.setup('info', 'text'); pilot.daemon.config.load(['-registry', '127.0.0.1:9'], {});"
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(json.loads(done.stdout))
    assert "pilot.daemon.node" in loaded
    assert not loaded & set(ON_DEMAND)
