"""The identity file, which other daemons must be able to read and write as well (transport.md 8)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilot.daemon.identity import IdentityFile, NodeIdentity
from pilot.errors import PilotError

HERE = Path(__file__).parents[1] / "vectors"
VECTORS = json.loads((HERE / "transport.json").read_text())
EXAMPLE = json.loads((HERE / "services.json").read_text())["identity_file_example_node1"]


def test_recorded_file() -> None:
    recorded = VECTORS["identity"]
    identity = NodeIdentity.from_json(recorded["file_utf8"].encode())
    assert identity.to_json() == recorded["file_utf8"], "the same bytes as others write"
    assert identity.public_text == recorded["public_key_base64"]
    assert NodeIdentity.from_json(json.dumps(EXAMPLE).encode()).public_text == EXAMPLE["public_key"]
    for row in recorded["signatures"]:
        if row["signer"] == "a":
            assert identity.sign(bytes.fromhex(row["message_hex"])).hex() == row["signature_hex"]


@pytest.mark.parametrize("row", VECTORS["identity_load"], ids=lambda row: row["name"])
def test_loading(row: dict, tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    path.write_text(row["file_utf8"])
    path.chmod(int(row["mode_octal"], 8))
    if row["current"] == "accept":
        file = IdentityFile(path)
        assert file.identity.public_text == VECTORS["identity"]["public_key_base64"]
        file.close()
        return
    with pytest.raises(PilotError) as caught:
        IdentityFile(path)
    assert path.read_text() == row["file_utf8"], "a damaged file is never overwritten"
    assert "QUJDREVGR0hJSktM" not in f"{caught.value.message} {caught.value.hint}", "the private key reached a message"
