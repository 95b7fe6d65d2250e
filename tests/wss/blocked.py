"""The laboratory with a WebSocket door at the beacon, and sites that let nothing but TCP 443 out."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fleet import BIN, Agent, Fleet, wait_for
from lab import Host, Lab


def certificate(folder: Path, ip: str) -> tuple[Path, Path]:
    """(certificate, key) for an address, its own authority: who has it in the trust store believes the host."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "laboratory")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(ip)), x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = folder / f"{ip}.pem", folder / f"{ip}.key"
    certificate_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate_file, key_file


class WssFleet(Fleet):
    """The rendezvous also serves nodes without UDP; its certificate is in the trust store of every agent."""

    def __init__(self, lab: Lab) -> None:
        self.certificate = self.key = Path()
        super().__init__(lab)

    def start_rendezvous(self) -> None:
        if not self.certificate.name:
            self.certificate, self.key = certificate(self.root, self.host.ip)
        self.rendezvous.spawn(
            str(BIN / "pilot-rendezvous"), "-registry-addr", self.registry, "-beacon-addr", self.beacon,
            "-store", str(self.root / "registry.db"), "-network", "1", "-registration-rate", "100000",
            "-wss-addr", f"{self.host.ip}:443", "-wss-cert", str(self.certificate), "-wss-key", str(self.key),
        )  # fmt: skip
        wait_for(lambda: self.rendezvous.alive() and "beacon listening" in self.rendezvous.log, "the rendezvous", 30)

    def agent(self, host: Host, name: str, *extra: str, beacon: str = "", start: bool = True, trusting: bool = True) -> Agent:
        made = WssAgent(self, host, name, beacon or self.beacon, extra)
        made.trusted = str(self.certificate) if trusting else ""
        self.agents[name] = made
        if start:
            made.begin()
            made.ready()
        return made


class WssAgent(Agent):
    trusted = ""

    @property
    def env(self) -> dict[str, str]:
        env = {k: v for k, v in super().env.items() if not k.lower().endswith("_proxy")}
        return {**env, "SSL_CERT_FILE": self.trusted} if self.trusted else env


def info(agent: Agent) -> dict[str, Any]:
    done = agent.ctl("--json", "info")
    data: dict[str, Any] = json.loads(done.stdout)["data"]
    return data


def transport(agent: Agent) -> str:
    return str(info(agent)["transport"])


def drop_udp(host: Host) -> None:
    """From now on the host's network lets no UDP out or in; the rest stays."""
    host.nft("""
table inet udpdrop {
  chain out { type filter hook output priority -10; oifname != "lo" meta l4proto udp drop; }
  chain in { type filter hook input priority -10; iifname != "lo" meta l4proto udp drop; }
}
""")


def allow_udp(host: Host) -> None:
    host.nft("delete table inet udpdrop")


def echo(agent: Agent, peer: str, count: int = 1) -> float:
    """Pings a peer; seconds until the command was through."""
    before = time.monotonic()
    agent.ctl("ping", peer, "--count", str(count))
    return time.monotonic() - before
