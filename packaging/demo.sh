#!/usr/bin/env bash
# The main job, for real: a rendezvous and two agents on loopback; they find each other, establish trust, ping, exchange a
# message, a file and a benchmark over the encrypted tunnel. Prints each command and its true output, then stops all it started.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "${PILOT_VENV:-.venv}/bin" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/pilot-demo.XXXXXX")
megabytes=${DEMO_MB:-64}
rendezvous=

export PATH="$bin:$PATH"
unset PILOT_REGISTRY PILOT_BEACON PILOT_SOCKET PILOT_HOME XDG_RUNTIME_DIR 2>/dev/null || true

stop_all() {
  status=$?
  trap - EXIT INT TERM
  set +e
  for home in "$work/home1" "$work/home2"; do
    [ -d "$home" ] && PILOT_HOME=$home pilotctl daemon stop >/dev/null 2>&1
  done
  [ -n "$rendezvous" ] && kill "$rendezvous" 2>/dev/null && wait "$rendezvous" 2>/dev/null
  if [ $status != 0 ]; then
    echo "demo failed (exit $status); the logs:" >&2
    tail -n 20 "$work"/rendezvous.log "$work"/home*/.pilot/pilot-*.log >&2
  fi
  rm -rf "$work"
  exit $status
}
trap stop_all EXIT
trap 'exit 130' INT TERM

# Shows a command as a user of that machine would type it, then runs it there.
on() {
  local home=$1
  shift
  local words
  words=$(printf ' %s' "${@@Q}")
  printf '\n\033[1m%s$\033[0m%s\n' "$home" "$(sed -E "s/'([A-Za-z0-9_.:\/=-]+)'/\1/g" <<<"$words")"
  PILOT_HOME="$work/$home" "$@"
}

free_port() { python3 - "$1" <<'PY'
import socket, sys
kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[sys.argv[1]]
with socket.socket(socket.AF_INET, kind) as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])
PY
}

mkdir -p "$work/home1" "$work/home2"
registry=127.0.0.1:$(free_port tcp)
beacon=127.0.0.1:$(free_port udp)

echo "# Rendezvous (one machine of yours that every agent can reach)"
printf '\n\033[1mrendezvous$\033[0m pilot-rendezvous -registry-addr %s -beacon-addr %s -network 1 &\n' "$registry" "$beacon"
pilot-rendezvous -registry-addr "$registry" -beacon-addr "$beacon" -network 1 -store "$work/registry.db" >"$work/rendezvous.log" 2>&1 &
rendezvous=$!
for _ in $(seq 100); do
  grep -q 'beacon listening' "$work/rendezvous.log" && break
  kill -0 "$rendezvous"
  sleep 0.1
done
grep -E 'listening' "$work/rendezvous.log"

echo
echo "# Home network 1"
on home1 pilotctl init --hostname home-agent-1 --registry "$registry" --beacon "$beacon" --socket "$work/home1/pilot.sock"
on home1 pilotctl daemon start

echo
echo "# Home network 2"
on home2 pilotctl init --hostname home-agent-2 --public --registry "$registry" --beacon "$beacon" --socket "$work/home2/pilot.sock"
on home2 pilotctl daemon start

echo
echo "# Home 1: ask for trust"
on home1 pilotctl handshake home-agent-2 "Collaborative data processing"

echo
echo "# Home 2: approve"
for _ in $(seq 50); do
  PILOT_HOME=$work/home2 pilotctl --json pending | grep -q '"node_id"' && break
  sleep 0.1
done
on home2 pilotctl pending
on home2 pilotctl approve "$(PILOT_HOME=$work/home1 pilotctl --json info | sed -E 's/.*"address":"([^"]*)".*/\1/')"
for _ in $(seq 50); do
  PILOT_HOME=$work/home1 pilotctl --json trust | grep -q '"node_id"' && break
  sleep 0.1
done

echo
echo "# Home 1: ping, message, file, benchmark"
on home1 pilotctl ping home-agent-2 --count 4
on home2 pilotctl recv 1000 --count 1 --timeout 20s >"$work/recv.out" 2>&1 &
receiver=$!
for _ in $(seq 100); do
  PILOT_HOME=$work/home2 pilotctl --json info | grep -Eq '"ports": ?5' && break
  sleep 0.1
done
on home1 pilotctl connect home-agent-2 --message "hello from behind NAT"
wait "$receiver"
cat "$work/recv.out"

head -c "$((megabytes << 20))" /dev/urandom >"$work/model.bin"
on home1 pilotctl send-file home-agent-2 "$work/model.bin"
printf '\n\033[1mhome2$\033[0m sha256sum ~/.pilot/received/*   (sent: %s)\n' "$(sha256sum "$work/model.bin" | cut -c1-64)"
received=$(sha256sum "$work"/home2/.pilot/received/model*.bin | cut -c1-64)
echo "$received"
[ "$received" = "$(sha256sum "$work/model.bin" | cut -c1-64)" ]
on home1 pilotctl bench home-agent-2 64
on home1 pilotctl path home-agent-2
on home1 pilotctl info

echo
on home1 pilotctl daemon stop
on home2 pilotctl daemon stop
echo
echo "# Stopped everything; nothing is left running."
