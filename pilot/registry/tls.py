"""Certificates of the registry's TLS port, and how clients trust them (registry.md section 1.1)."""

from __future__ import annotations

import hashlib
import os
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from pilot.errors import PilotError

VALID_DAYS = 365


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.3 with the given PEM files. Raises PilotError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise PilotError(
            "invalid_argument", f"cannot use TLS certificate {certificate} with key {key}: {error}",
            "both must be PEM files that belong together",
        ) from error  # fmt: skip
    return context


def ensure_certificate(directory: Path) -> tuple[Path, Path]:
    """(certificate, key) in `directory`; made at the first call and kept, so that its fingerprint can be pinned. Self-signed,
    ECDSA P-256, 365 days; made anew in its last month. Raises OSError."""
    certificate, key = directory / "registry-cert.pem", directory / "registry-key.pem"
    if not (certificate.exists() and key.exists()) or _expires_within(certificate, timedelta(days=30)):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        certificate_pem, key_pem = make_certificate()
        _write_private(key, key_pem)
        _write_private(certificate, certificate_pem)
    return certificate, key


def make_certificate() -> tuple[bytes, bytes]:
    """(certificate, key) in PEM, self-signed, for localhost and the loopback addresses."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Pilot Protocol")])
    hosts = [x509.DNSName("localhost"), *(x509.IPAddress(ip_address(ip)) for ip in ("127.0.0.1", "::1"))]
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def fingerprint(certificate: Path) -> str:
    """What clients pin: the lower-case hex SHA-256 of the first certificate in a PEM file."""
    pem = certificate.read_text()
    end = "-----END CERTIFICATE-----"
    return der_fingerprint(ssl.PEM_cert_to_DER_cert(pem[: pem.index(end) + len(end)]))


def der_fingerprint(der: bytes) -> str:
    """The same of a certificate as it comes over the wire."""
    return hashlib.sha256(der).hexdigest()


def client_context(pinned: bool) -> ssl.SSLContext:
    """pinned: chain, name and expiry are not checked, the caller compares the fingerprint. Otherwise the system's trust."""
    context = ssl.create_default_context()
    if pinned:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def check_pin(der: bytes | None, pin: str) -> None:
    """Raises PilotError unless the leaf certificate is the pinned one."""
    found = der_fingerprint(der or b"")
    if found != pin.lower():
        raise PilotError(
            "permission_denied", f"the registry's certificate is not the pinned one (it has {found})",
            "if the registry has a new certificate, set -registry-fingerprint to it; otherwise somebody is in between",
        )  # fmt: skip


def _expires_within(certificate: Path, span: timedelta) -> bool:
    from cryptography import x509

    try:
        until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except ValueError:
        return True
    return datetime.now(UTC) + span > until


def _write_private(path: Path, content: bytes) -> None:
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    os.replace(new, path)
