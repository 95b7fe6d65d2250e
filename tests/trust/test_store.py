"""trust.json: both generations are read, nothing is lost on a crash, a damaged file is never replaced."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from pilot.errors import PilotError
from pilot.trust.store import PendingRequest, TrustedPeer, TrustStore

KEY = bytes(range(32))


def test_what_is_saved_is_loaded_and_only_the_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "trust.json"
    store = TrustStore(path)
    store.trusted[5] = TrustedPeer(5, KEY, 1_700_000_000.0, True, 3)
    store.pending[6] = PendingRequest(6, b"", "please & <thanks>", 1_700_000_100.0)
    store.revoked[7] = 1_700_000_200.0
    store.save()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = TrustStore.load(path)
    assert (again.trusted, again.pending, again.revoked) == (store.trusted, store.pending, store.revoked)
    assert os.listdir(path.parent) == ["trust.json"]


def test_empty_store_looks_as_in_both_generations(tmp_path: Path) -> None:
    assert TrustStore(tmp_path / "t").to_json() == '{\n  "trusted": null\n}'


@pytest.mark.parametrize("text", [
    '{\n  "trusted": [\n    {\n      "node_id": 1,\n      "public_key": "",\n'
    '      "approved_at": "2026-11-22T16:34:34Z",\n      "mutual": false\n    }\n  ]\n}',
    '{"trusted":[{"node_id":1,"public_key":"","approved_at":"2026-11-22T17:34:34.123456789+01:00","mutual":false}]}',
])  # fmt: skip
def test_files_of_either_generation(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trust.json"
    path.write_text(text)
    store = TrustStore.load(path)
    assert list(store.trusted) == [1]
    assert int(store.trusted[1].approved_at) == 1795365274


def test_revoked_of_1_18(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    path.write_text('{"trusted": null, "revoked": [{"node_id": 1, "until": "2026-11-22T16:46:16Z"}]}')
    assert TrustStore.load(path).revoked == {1: 1795365976.0}


def refused(path: Path) -> PilotError:
    before = path.read_bytes()
    with pytest.raises(PilotError) as caught:
        TrustStore.load(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]
    return caught.value


@pytest.mark.parametrize(("text", "says"), [
    ('{"trusted":[{"node', "not JSON"), ("", "not JSON"), ("[" * 200_000, "not JSON"), ("[]", "not a JSON object"),
    ('{"trusted": {}}', "'trusted' is not a list"), ('{"pending": "x"}', "'pending' is not a list"),
])  # fmt: skip
def test_a_damaged_file_is_refused_and_stays(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "trust.json"
    path.write_text(text)
    error = refused(path)
    assert str(path) in error.message and "damaged" in error.message and says in error.message
    assert "backup" in error.hint


@pytest.mark.parametrize(("row", "says"), [
    ({}, "lacks 'node_id'"), (3, "entry 1"), ({"node_id": -1}, "bad node number"), ({"node_id": True}, "bad node number"),
    ({"node_id": 2, "public_key": "!!"}, "entry 1"), ({"node_id": 3, "public_key": "QUJD"}, "key is not 32 bytes"),
    ({"node_id": 4, "approved_at": "now"}, "entry 1"), ({"node_id": 0xFFFFFFFF}, "bad node number"),
    ({"node_id": 5, "network": 70000}, "bad network number"),
])  # fmt: skip
def test_one_damaged_row_would_be_lost_with_the_next_change(tmp_path: Path, row: object, says: str) -> None:
    good = {"node_id": 9, "public_key": "", "approved_at": "2026-11-22T16:34:34Z", "mutual": True}
    path = tmp_path / "trust.json"
    path.write_text(json.dumps({"trusted": [good, row]}))
    message = refused(path).message
    assert "entry 1 of 'trusted'" in message and says in message


def test_what_others_wrote_survives_our_changes(tmp_path: Path) -> None:
    """1.18.0 keeps where a request came from; a later release may keep more."""
    path = tmp_path / "trust.json"
    path.write_text(json.dumps({
        "trusted": [{"node_id": 1, "public_key": "", "approved_at": "2026-11-22T16:34:34Z", "mutual": True, "note": [1]}],
        "pending": [{"node_id": 3, "justification": "x", "received_at": "2026-11-22T16:34:34Z", "source": 3}],
        "later": {"a": 1},
    }))  # fmt: skip
    store = TrustStore.load(path)
    store.trusted[7] = TrustedPeer(7, KEY, 0.0, False)
    store.save()
    written = json.loads(path.read_text())
    assert written["later"] == {"a": 1} and written["trusted"][0]["note"] == [1] and written["pending"][0]["source"] == 3
    del store.pending[3]
    store.save()
    store.pending[3] = PendingRequest(3, KEY, "again", 0.0)
    store.save()
    assert "source" not in json.loads(path.read_text())["pending"][0], "that was another request"


def test_a_pinned_key_stays(tmp_path: Path) -> None:
    store = TrustStore(None)
    store.trusted[5] = TrustedPeer(5, b"", 0.0, True)
    assert store.pin(5, KEY)
    assert store.pin(5, KEY)
    assert not store.pin(5, bytes(32))
    assert store.trusted[5].public_key == KEY
    assert not store.pin(6, KEY)
    store.save()  # memory only: no file, no error
