"""The identity file: whose it is, what it must look like, and what a crash in the middle of a change leaves."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from world import umask_zero

from pilot.daemon.identity import IdentityFile, NodeIdentity
from pilot.errors import PilotError


def refused(path: Path) -> PilotError:
    with pytest.raises(PilotError) as e:
        IdentityFile(path)
    return e.value


def test_made_once_private_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "dir" / "identity.json"
    with umask_zero():
        first = IdentityFile(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    key = first.identity.public_key
    first.close()
    again = IdentityFile(path)
    assert again.identity.public_key == key
    Ed25519PublicKey.from_public_bytes(key).verify(again.identity.sign(b"x"), b"x")
    again.close()


def test_layout_of_the_file(tmp_path: Path) -> None:
    """Other implementations must be able to read it: member order, indentation, no newline at the end."""
    path = tmp_path / "identity.json"
    IdentityFile(path).close()
    text = path.read_text()
    data = json.loads(text)
    assert list(data) == ["private_key", "public_key"] and text == json.dumps(data, indent=2)
    private, public = (base64.b64decode(data[n], validate=True) for n in data)
    assert len(private) == 64 and private[32:] == public


def test_the_private_key_is_in_no_text_of_the_object() -> None:
    identity = NodeIdentity.generate()
    private = json.loads(identity.to_json())["private_key"]
    assert private[:20] not in repr(identity) + str(identity) + repr(vars(identity))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777])
def test_a_file_open_to_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.json"
    IdentityFile(path).close()
    path.chmod(mode)
    error = refused(path)
    assert error.code == "permission_denied" and error.hint == f"chmod 600 {path}"


@pytest.mark.parametrize("text", [
    "", "{", "[]", "{}", "[" * 50_000,
    '{"private_key":1,"public_key":"x"}',
    '{"private_key":"!!","public_key":"AA=="}',
    json.dumps({"private_key": base64.b64encode(bytes(64)).decode(), "public_key": base64.b64encode(bytes(32)).decode()}),
])  # fmt: skip
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, text: str) -> None:
    """Overwriting it would cost the user the address."""
    path = tmp_path / "identity.json"
    path.write_text(text)
    path.chmod(0o600)
    error = refused(path)
    assert "damaged" in error.message and error.hint
    assert path.read_text() == text


def test_two_daemons_cannot_share_an_identity(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    first = IdentityFile(path)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    for other in (path, link):
        error = refused(other)
        assert error.code == "already_exists" and "already running" in error.message
    first.close()
    IdentityFile(path).close()


def test_a_directory_is_no_identity(tmp_path: Path) -> None:
    assert refused(tmp_path).code in ("permission_denied", "internal")


def test_change_of_key_in_two_steps(tmp_path: Path) -> None:
    """A crash after `prepare` keeps the old key in force and shows the new one to the next start."""
    path = tmp_path / "identity.json"
    file = IdentityFile(path)
    old, new = file.identity.public_key, NodeIdentity.generate()
    file.prepare(new, 8)
    file.close()  # crash
    file = IdentityFile(path)
    assert file.identity.public_key == old
    assert file.prepared and (file.prepared[0].public_key, file.prepared[1]) == (new.public_key, 8)
    holder = file.identity
    file.commit()
    assert holder.public_key == new.public_key
    assert refused(path).code == "already_exists"  # the lock has moved to the new file
    file.close()
    file = IdentityFile(path)
    assert file.identity.public_key == new.public_key and file.prepared is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["identity.json", "identity.json.links"]
    file.close()


def test_half_a_change_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    IdentityFile(path).close()
    for junk in ("", "{", '{"node_id": 1}', "[]"):
        (tmp_path / "identity.json.next").write_text(junk)
        os.chmod(tmp_path / "identity.json.next", 0o600)
        file = IdentityFile(path)
        assert file.prepared is None
        file.close()
