"""What an operator types or sets is what the rendezvous runs with; mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot.errors import PilotError
from pilot.rendezvous_flags import FLAGS, load


def refused(*argv: str, env: dict[str, str] | None = None) -> str:
    with pytest.raises(PilotError) as e:
        load(argv, env or {})
    assert e.value.code == "invalid_argument" and "pilot-rendezvous -help" in e.value.hint
    return e.value.message


def test_defaults_are_those_of_the_published_program() -> None:
    c = load([], {})
    assert (c.registry_addr, c.beacon_addr) == (("", 9000), ("", 9001))
    assert (c.store, c.network, c.admin_token, c.peers, c.beacon_id) == ("", 0, "", (), 0)
    assert (c.registration_rate, c.log_level, c.log_format) == (10, "info", "text")
    assert (c.beacon_alt_addr, c.probe_ports) == ("", (0, 0))
    assert c.relay_rate * 8 == 10**10, "published beacons know no budget: ours is beyond what one flow can use"


@pytest.mark.parametrize("argv", [
    ["-registry-addr", ":1", "-network", "7"], ["--registry-addr=:1", "--network=7"], ["-registry-addr=:1", "--network", "7"],
])  # fmt: skip
def test_every_spelling_of_a_flag(argv: list[str]) -> None:
    c = load(argv, {})
    assert (c.registry_addr, c.network) == (("", 1), 7)


def test_values() -> None:
    c = load([
        "-beacon-addr", "[::1]:9001", "-peers", "a.example:1, [2001:db8::1]:2,", "-beacon-id", "4294967295",
        "-registry", "r.example:9000", "-beacon-only", "-relay-rate", "10M", "-advertise-addr", "b.example:9001",
        "-log-format=json",
    ], {"PILOT_ADMIN_TOKEN": "t", "PILOT_LOG_LEVEL": "debug"})  # fmt: skip
    assert c.beacon_addr == ("::1", 9001)
    assert c.peers == (("a.example", 1), ("2001:db8::1", 2))
    assert (c.beacon_id, c.registry, c.advertise_addr) == (0xFFFFFFFF, ("r.example", 9000), ("b.example", 9001))
    assert (c.relay_rate, c.admin_token, c.log_level, c.log_format) == (10 << 20, "t", "debug", "json")
    assert load(["-admin-token", "flag"], {"PILOT_ADMIN_TOKEN": "env"}).admin_token == "flag"


@pytest.mark.parametrize(("argv", "named"), [
    (["-registry-addr", "9000"], "-registry-addr"), (["-registry-addr", ":70000"], "-registry-addr"),
    (["-beacon-addr", "::1:9001"], "-beacon-addr"), (["-network", "65536"], "-network"), (["-network", "-1"], "-network"),
    (["-peers", "a.example"], "-peers"), (["-peers", ":9001"], "-peers"), (["-advertise-addr", "a.example:0"], "-advertise-addr"),
    (["-beacon-alt-addr", "name.example"], "-beacon-alt-addr"), (["-beacon-alt-addr", "0.0.0.0"], "-beacon-alt-addr"),
    (["-probe-ports", "9002"], "-probe-ports"), (["-probe-ports", "9002,9002"], "-probe-ports"),
    (["-probe-ports", "1,65536"], "-probe-ports"),
    (["-relay-rate", "fast"], "-relay-rate"), (["-registration-rate", "0"], "-registration-rate"),
    (["-log-level", "loud"], "-log-level"), (["-store"], "-store needs a value"), (["-colour"], "-colour"),
    (["start"], "'start'"),
    (["-registry-only", "-beacon-only"], "nothing to run"), (["-registry-only", "-peers", "a.example:1"], "-registry-only"),
    (["-tls-cert", "a.pem"], "-tls-key"), (["-registry", "r.example:1"], "-beacon-id"),
    (["-beacon-id", "1"], "-admin-token"), (["-beacon-id", "1", "-admin-token", "t"], "-advertise-addr"),
    (["-beacon-id", "1", "-beacon-only"], "-registry"),
    (["-beacon-id", "1", "-admin-token", "t", "-registry-addr", ":0"], "-registry-addr"),
])  # fmt: skip
def test_mistakes_are_named(argv: list[str], named: str) -> None:
    assert named in refused(*argv)


def test_a_wrong_variable_is_named() -> None:
    assert "PILOT_LOG_LEVEL" in refused(env={"PILOT_LOG_LEVEL": "loud"})


def test_help_lists_every_flag() -> None:
    text = FLAGS.help_text()
    for flag in FLAGS.flags:
        assert f"-{flag.name}" in text
    assert "PILOT_ADMIN_TOKEN" in text


def test_the_secret_of_beacons(tmp_path: Path) -> None:
    secret = "0123456789abcdef"
    file = tmp_path / "secret"
    file.write_text(f"{secret}\nnot this\n")
    file.chmod(0o600)
    peers = ["-peers", "b.example:9001"]
    for config in (
        load([*peers, "-beacon-secret-file", str(file)], {}), load(peers, {"PILOT_BEACON_SECRET": secret}),
        load([*peers, "-beacon-secret", secret], {}),
    ):  # fmt: skip
        assert config.beacon_secret == secret and secret not in repr(config)
    assert "give one of them" in refused(*peers, "-beacon-secret-file", str(file), env={"PILOT_BEACON_SECRET": secret})
    short = refused(*peers, "-beacon-secret", "hushhush")
    assert "16 characters" in short and "hushhush" not in short
    assert "-peers" in refused("-beacon-secret", secret)
    file.chmod(0o640)
    assert "mode 0600" in refused(*peers, "-beacon-secret-file", str(file))
    assert "No such file" in refused(*peers, "-beacon-secret-file", str(tmp_path / "none"))
    file.chmod(0o600)
    file.write_text("\n")
    assert "empty" in refused(*peers, "-beacon-secret-file", str(file))
