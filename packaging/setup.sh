#!/usr/bin/env bash
# Everything a fresh machine needs: system packages (when root, on Debian and its kin), a virtual environment, the build.
#
#   packaging/setup.sh run    what `make demo` and users need
#   packaging/setup.sh test   also what the tests need (clang for fuzzing, nftables and iproute2 for the NAT lab)
#   packaging/setup.sh bench  also what the benchmark suite needs (peers that are not Debian's it installs itself)
#
# Safe to run again: it does only what is missing or out of date.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-run}
venv=${PILOT_VENV:-.venv}

say() { printf '==> %s\n' "$*" >&2; }

packages=(build-essential cmake ninja-build libssl-dev)
[ "$what" = test ] && packages+=(clang libclang-rt-14-dev nftables iproute2 procps)
[ "$what" = bench ] && packages+=(nftables iproute2 procps ethtool iperf3) && what=test

python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
  packages+=(python3)
elif ! "$python" -c 'import os,sysconfig,sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
  packages+=(python3-dev)
fi
"$python" -c 'import venv, ensurepip' 2>/dev/null || packages+=(python3-venv)

missing=()
if command -v dpkg-query >/dev/null; then
  for p in "${packages[@]}"; do
    case "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null || true)" in installed) ;; *) missing+=("$p") ;; esac
  done
  if [ ${#missing[@]} -gt 0 ]; then
    # The compiler's runtime package carries the version in its name; take the one that this release has.
    if [ "$(id -u)" = 0 ]; then
      say "installing system packages: ${missing[*]}"
      export DEBIAN_FRONTEND=noninteractive
      apt-get update -qq
      final=()
      for p in "${missing[@]}"; do
        if [ "$p" = libclang-rt-14-dev ] && ! apt-cache show "$p" >/dev/null 2>&1; then p=libclang-rt-dev; fi
        final+=("$p")
      done
      apt-get install -y -qq --no-install-recommends "${final[@]}" >/dev/null
    else
      say "these packages are missing and this user cannot install them: ${missing[*]}"
      say "ask an administrator to run: apt-get install ${missing[*]}"
      exit 1
    fi
  fi
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  say "Python 3.11 or later is needed; '$python' is $("$python" -V 2>&1). Set PYTHON=/path/to/python3.11."
  exit 1
}

[ -x "$venv/bin/python" ] || { say "creating the virtual environment $venv"; "$python" -m venv "$venv"; }

# Rebuild only when a source changed: the stamp holds a hash of all that goes into the wheel.
stamp="$venv/.pilot-$what"
digest=$( { cat pyproject.toml CMakeLists.txt; find csrc pilot \( -name '*.c' -o -name '*.h' -o -name '*.py' -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' \) -not -path '*/__pycache__/*' -print0 | sort -z | xargs -0 cat; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$digest" ]; then
  say "building and installing pilot-overlay into $venv"
  target=.
  [ "$what" = test ] && target='.[test]'
  "$venv/bin/pip" install --quiet --disable-pip-version-check "$target"
  rm -f "$venv"/.pilot-*
  printf '%s' "$digest" >"$stamp"
  [ "$what" = test ] && printf '%s' "$digest" >"$venv/.pilot-run"
fi
exit 0
