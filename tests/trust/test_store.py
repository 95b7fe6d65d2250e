"""trust.json: both generations are read, nothing is lost on a crash, a broken file costs no start."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

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
    problems: list[str] = []
    store = TrustStore.load(path, problems.append)
    assert list(store.trusted) == [1]
    assert int(store.trusted[1].approved_at) == 1795365274
    assert problems == []


def test_revoked_of_1_18(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    path.write_text('{"trusted": null, "revoked": [{"node_id": 1, "until": "2026-11-22T16:46:16Z"}]}')
    assert TrustStore.load(path).revoked == {1: 1795365976.0}


def test_a_broken_file_is_kept_aside_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    path.write_bytes(b'{"trusted":[{"node')
    problems: list[str] = []
    assert TrustStore.load(path, problems.append).trusted == {}
    assert len(problems) == 1
    assert (tmp_path / "trust.json.broken").read_bytes() == b'{"trusted":[{"node'


def test_broken_rows_do_not_cost_the_good_ones(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    good = {"node_id": 9, "public_key": "", "approved_at": "2026-11-22T16:34:34Z", "mutual": True}
    rows = [
        good, {}, 3, {"node_id": -1}, {"node_id": True}, {"node_id": 2, "public_key": "!!"},
        {"node_id": 3, "public_key": "QUJD"}, {"node_id": 4, "approved_at": "now"}, {"node_id": 0xFFFFFFFF},
        {"node_id": 5, "network": 70000},
    ]  # fmt: skip
    path.write_text(json.dumps({"trusted": rows, "pending": "x", "revoked": [None]}))
    problems: list[str] = []
    store = TrustStore.load(path, problems.append)
    assert list(store.trusted) == [9]
    assert len(problems) == 3


def test_deeply_nested_file(tmp_path: Path) -> None:
    path = tmp_path / "trust.json"
    path.write_text("[" * 200_000)
    assert TrustStore.load(path).trusted == {}


def test_a_pinned_key_stays(tmp_path: Path) -> None:
    store = TrustStore(None)
    store.trusted[5] = TrustedPeer(5, b"", 0.0, True)
    assert store.pin(5, KEY)
    assert store.pin(5, KEY)
    assert not store.pin(5, bytes(32))
    assert store.trusted[5].public_key == KEY
    assert not store.pin(6, KEY)
    store.save()  # memory only: no file, no error
