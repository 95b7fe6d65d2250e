"""nftables rules that make a router an emulated NAT. Interfaces: `wan` outside, `lan` inside.

Connection tracking alone maps by address and port and filters by both. Cones of the wider kinds, and hairpin traffic, need what a
real cone has: tables of its outside ports, learned from what leaves (chain `learn`, after source NAT, where the outside port is
known) and refreshed by nothing else (RFC 4787 REQ-6).
"""

from __future__ import annotations

from collections.abc import Iterable

FIRST_PORT, LAST_PORT = 20000, 29999  # outside ports of every NAT: never equal to an inside port by accident
PORTS = f"{FIRST_PORT}-{LAST_PORT}"

KINDS = (
    "none",             # public host, no translation
    "full_cone",        # endpoint-independent mapping and filtering
    "restricted_cone",  # endpoint-independent mapping, address-dependent filtering
    "port_restricted_cone",  # endpoint-independent mapping, address-and-port-dependent filtering
    "symmetric",        # address-and-port-dependent mapping (random ports) and filtering
    "symmetric_sequential",  # the same with ports that count up
)  # fmt: skip
SYMMETRIC = ("symmetric", "symmetric_sequential")

# Which of the learned tables lets a packet in. From outside: by outside port and sender. From a neighbour: by inside endpoint and
# the sender's outside address and port, which exists only after source NAT.
_ADMIT = {
    "full_cone": 'iifname "wan" meta l4proto udp dnat ip to udp dport map @inside',
    "restricted_cone": 'iifname "wan" meta l4proto udp udp dport . ip saddr @hosts dnat ip to udp dport map @inside',
}
_ADMIT_TURN = {
    "full_cone": "accept",
    "restricted_cone": "ip daddr . udp dport . ip saddr @spoken accept",
    "port_restricted_cone": "ip daddr . udp dport . ip saddr . udp sport @spoken accept",
}


def nat(kind: str, public_ip: str, *, hairpin: bool, input_open: bool, timeout_s: int) -> str:
    """Rules of one NAT router whose outside address is `public_ip`."""
    if kind not in KINDS or kind == "none":
        raise ValueError(f"not a NAT kind: {kind}")
    if hairpin and kind in SYMMETRIC:
        raise ValueError("a symmetric NAT has no mapping that a neighbour could be sent through")
    source = {
        "symmetric": f"masquerade to :{PORTS} fully-random",
        "symmetric_sequential": f"masquerade to :numgen inc mod {LAST_PORT - FIRST_PORT} map {{ {_counting()} }}",
    }.get(kind, f"masquerade to :{PORTS}")
    # A packet for the router itself must leave no tracking entry: a confirmed one would take the outside port of a punch that is
    # about to go out. Dropping it in INPUT does that; `input_open` reproduces routers with that fault.
    guard = "" if input_open else f'meta l4proto udp ip daddr {public_ip} drop\n    iifname "wan" drop'
    turn_in = f'iifname "lan" ip daddr {public_ip} meta l4proto udp dnat ip to udp dport map @inside' if hairpin else ""
    turn_out = f'iifname "lan" oifname "lan" ct status dnat meta l4proto udp snat ip to {public_ip}:{PORTS}' if hairpin else ""
    rules = f"""
table ip nat {{
  map inside {{ type inet_service : ipv4_addr . inet_service; flags dynamic,timeout; timeout {timeout_s}s; size 65535; }}
  set hosts {{ type inet_service . ipv4_addr; flags dynamic,timeout; timeout {timeout_s}s; size 65535; }}
  chain pre {{
    type nat hook prerouting priority dstnat;
    {_ADMIT.get(kind, "")}
    {turn_in}
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    oifname "wan" meta l4proto udp {source}
    oifname "wan" masquerade
    {turn_out}
  }}
}}
table ip filter {{
  chain input {{
    type filter hook input priority filter;
    ct state established,related accept
    {guard}
  }}
  chain forward {{
    type filter hook forward priority filter;
    {"" if kind in _ADMIT else 'iifname "wan" ct state new drop'}
  }}
}}
"""
    if kind in _ADMIT or hairpin:
        rules += _LEARN
    return rules + (_turn(kind, timeout_s) if hairpin else "")


_LEARN = """
table ip nat {
  chain mapped { update @inside { udp sport : ct original ip saddr . ct original proto-src }; }
  chain learn {
    type filter hook postrouting priority 150;
    oifname "wan" meta l4proto udp ct direction original jump mapped
    oifname "wan" meta l4proto udp update @hosts { udp sport . ip daddr }
  }
}
"""


def _turn(kind: str, timeout_s: int) -> str:
    whom = "ip saddr . udp sport . ip daddr" + (" . udp dport" if kind == "port_restricted_cone" else "")
    types = "ipv4_addr . inet_service . ipv4_addr" + (" . inet_service" if kind == "port_restricted_cone" else "")
    return f"""
table ip nat {{
  set spoken {{ type {types}; flags dynamic,timeout; timeout {timeout_s}s; size 65535; }}
  chain speak {{
    type filter hook prerouting priority -150;
    iifname "lan" meta l4proto udp update @spoken {{ {whom} }}
  }}
  chain turn {{
    jump mapped
    {_ADMIT_TURN[kind]}
    drop
  }}
  chain learn {{
    iifname "lan" oifname "lan" ct status dnat meta l4proto udp ct direction original jump turn
  }}
}}
"""


def udp_blocked(tcp_ports: Iterable[int]) -> str:
    """Table `office`: no UDP in either direction, and TCP only to these ports."""
    ports = ", ".join(map(str, tcp_ports))
    return f"""
table ip office {{
  chain forward {{
    type filter hook forward priority -10;
    meta l4proto udp drop
    iifname "lan" meta l4proto tcp tcp dport != {{ {ports} }} drop
  }}
}}
"""


def deaf(sources: Iterable[str]) -> str:
    """Table `deaf`: UDP from these addresses does not come in; what goes out to them does."""
    return f"""
table ip deaf {{
  chain pre {{
    type filter hook prerouting priority -310;
    iifname "wan" meta l4proto udp ip saddr {{ {", ".join(sources)} }} drop
  }}
}}
"""


def wall(addresses: Iterable[str]) -> str:
    """Table `wall`: no UDP among these addresses."""
    among = ", ".join(addresses)
    return f"""
table ip wall {{
  chain forward {{
    type filter hook forward priority 0;
    meta l4proto udp ip saddr {{ {among} }} ip daddr {{ {among} }} drop
  }}
}}
"""


def _counting() -> str:
    """numgen gives an index; masquerade wants a port."""
    return ", ".join(f"{i} : {FIRST_PORT + i}" for i in range(LAST_PORT - FIRST_PORT))
