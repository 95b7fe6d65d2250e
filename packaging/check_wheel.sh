#!/usr/bin/env bash
# Builds sdist and wheel, installs the wheel into an empty environment and uses it outside the source tree.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:-build/dist}" && cd "${1:-build/dist}" && pwd)
venv=${PILOT_VENV:-.venv}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -f "$out"/*.whl "$out"/*.tar.gz
"$venv/bin/pip" install --quiet --disable-pip-version-check build
"$venv/bin/python" -m build --outdir "$out" . >"$work/log" 2>&1 || { tail -50 "$work/log"; exit 1; }  # sdist, then the wheel from the sdist
python3 -m venv "$work/v"
"$work/v/bin/pip" install --quiet --disable-pip-version-check "$out"/*.whl
cd "$work"
"$work/v/bin/python" - <<'PY'
import pilot._core as core
assert core.crc32(b"123456789") == 0xCBF43926
plane = core.DataPlane(("127.0.0.1", 0))
plane.start()
print("installed wheel works: data plane on", plane.local_addr)
plane.stop()
PY
"$work/v/bin/pilotctl" version
"$work/v/bin/pilot-daemon" -help >/dev/null
"$work/v/bin/pilot-rendezvous" -help >/dev/null
ls -l "$out"
