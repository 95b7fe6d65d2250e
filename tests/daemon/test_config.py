"""What a user types, sets or writes in a file is what the daemon runs with; mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilot.daemon.config import DaemonConfig, load
from pilot.daemon.flags import help_text, parse_duration, parse_size, parse_spin
from pilot.daemon.processors import own_processors
from pilot.errors import PilotError

REG = ["-registry", "rv.example:9000"]


def refused(argv: list[str], env: dict[str, str] | None = None) -> str:
    with pytest.raises(PilotError) as e:
        load(argv, env or {})
    return e.value.message


def test_defaults_and_the_beacon_beside_the_registry() -> None:
    c = load(REG, {"HOME": "/home/u"})
    assert c.registry == ("rv.example", 9000)
    assert c.beacon == ("rv.example", 9001)
    assert c.listen == ("0.0.0.0", 0)
    assert c.socket == Path("/tmp/pilot.sock")
    assert c.home == Path("/home/u/.pilot")
    assert c.identity is None and c.trust_file is None
    assert (c.keepalive, c.public, c.max_conns_total) == (30.0, False, 65536)


@pytest.mark.parametrize("argv", [
    ["--hostname", "a", "--public"], ["-hostname=a", "-public=true"], ["--hostname=a", "-public"],
    ["-public=1", "-hostname", "a"],
])  # fmt: skip
def test_every_spelling_of_a_flag(argv: list[str]) -> None:
    c = load(REG + argv, {})
    assert (c.hostname, c.public) == ("a", True)


def test_a_boolean_does_not_swallow_the_next_flag_and_the_last_one_wins() -> None:
    c = load([*REG, "-public", "-hostname", "a", "-public=false", "-hostname", "b"], {})
    assert (c.public, c.hostname) == (False, "b")


def test_flag_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps({
        "registry": "file:1", "beacon": "file:2", "socket": "/file.sock", "max_conns_per_port": 7,
        "no-echo": True, "keepalive": 45, "networks": [3, 4],
    }))  # fmt: skip
    env = {"PILOT_REGISTRY": "env:1", "PILOT_SOCKET": "/env.sock"}
    c = load(["-config", str(file), "-socket", "/flag.sock"], env)
    assert c.registry == ("env", 1)
    assert c.beacon == ("file", 2)
    assert c.socket == Path("/flag.sock")
    assert (c.max_conns_per_port, c.no_echo, c.keepalive, c.networks) == (7, True, 45.0, (3, 4))
    assert c.time_wait == 10.0


def test_owner_is_the_old_name_of_email() -> None:
    assert load([*REG, "-owner", "a@example.org"], {}).email == "a@example.org"


def test_identity_places_the_trust_file() -> None:
    c = load([*REG, "-identity", "/x/identity.json"], {})
    assert c.trust_file == Path("/x/trust.json")


def test_home_follows_pilot_home() -> None:
    assert load(REG, {"PILOT_HOME": "/p", "HOME": "/h"}).home == Path("/p/.pilot")


@pytest.mark.parametrize(("argv", "says"), [
    ([], "no registry"),
    (["-registry", "name"], "registry: want host:port"),
    (["-registry", "name:x"], "'x' is not a port"),
    (["-registry", "name:70000"], "not a port"),
    ([*REG, "-nope"], "unknown flag -nope"),
    ([*REG, "stray"], "unexpected argument 'stray'"),
    ([*REG, "-hostname"], "flag -hostname needs a value"),
    ([*REG, "-public=maybe"], "flag -public: want true or false"),
    ([*REG, "-keepalive", "soon"], "flag -keepalive: want a duration"),
    ([*REG, "-keepalive", "1h"], "-keepalive: want 1s to 120s"),
    ([*REG, "-listen", "example.org:1"], "listen: want ip:port"),
    ([*REG, "-endpoint", "1.2.3.4:0"], "endpoint: port 0"),
    ([*REG, "-endpoint", "host:1"], "endpoint: want ip:port"),
    ([*REG, "-encrypt=false"], "plaintext tunnels are not supported"),
    ([*REG, "-max-segment", "100"], "-max-segment"),
    ([*REG, "-log-level", "loud"], "want one of debug, info, warn, error"),
    ([*REG, "-networks", "1,x"], "want network numbers"),
    ([*REG, "-relay-only", "-endpoint", "1.2.3.4:5"], "-relay-only"),
    ([*REG, "-registry-tls"], "-registry-fingerprint"),
    (["-config", "/nonexistent/c.json"], "/nonexistent/c.json"),
])  # fmt: skip
def test_mistakes_are_named(argv: list[str], says: str) -> None:
    assert says in refused(argv)


@pytest.mark.parametrize(("text", "says"), [
    ("{", "not JSON"), ("[]", "want one JSON object"), ('{"nope":1}', "unknown key 'nope'"),
    ('{"registry":null}', "registry: want a string"), ('{"keepalive":"x"}', "config file: keepalive"),
    ("[" * 100_000, "not JSON"),
])  # fmt: skip
def test_a_broken_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    assert says in refused(["-config", str(file), *REG])


def test_a_bad_environment_variable_is_named() -> None:
    assert refused(REG, {"PILOT_LOG_LEVEL": "x"}).startswith("PILOT_LOG_LEVEL: ")


def test_help_names_every_flag() -> None:
    text = help_text()
    for name in ("registry", "beacon", "listen", "socket", "identity", "log-format", "trust-auto-approve", "transport", "proxy"):
        assert f"  -{name}" in text


def test_units() -> None:
    assert parse_duration("1m30s") == 90.0
    assert parse_duration("500ms") == 0.5
    assert parse_duration("2") == 2.0
    assert parse_size("2GiB") == 2 << 30
    for bad in ("", "s", "1x", "-1s", "1s "):
        with pytest.raises(ValueError, match="duration"):
            parse_duration(bad)


def test_era_1_is_accepted_only_on_request(tmp_path: Path) -> None:
    assert load(REG, {}).accept_era1 is False
    assert load([*REG, "-accept-era1"], {}).accept_era1 is True
    file = tmp_path / "c.json"
    file.write_text('{"registry": "file:1", "accept_era1": true}')
    assert load(["-config", str(file)], {}).accept_era1 is True
    assert load(["-config", str(file), "-accept-era1=false"], {}).accept_era1 is False


def test_waiting_awake(tmp_path: Path) -> None:
    assert load(REG, {}).spin is None
    assert load([*REG, "-spin", "50us"], {}).spin == pytest.approx(50e-6)
    assert load([*REG, "-spin", "0"], {}).spin == 0
    for bad in ("2ms", "-1", "often"):
        with pytest.raises(ValueError, match="want"):
            parse_spin(bad)


def test_processors(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    mine = own_processors(quota)
    assert mine >= 1
    for text, want in (("max 100000", mine), ("50000 100000", 0.5), ("damaged", mine), ("1 0", mine)):
        quota.write_text(text)
        assert own_processors(quota) == want


def test_config_is_frozen() -> None:
    c: DaemonConfig = load(REG, {})
    with pytest.raises(AttributeError):
        c.hostname = "x"  # type: ignore[misc]


# ---- the machine's daemon: what ~/.pilot holds counts too ----


def installed(home: Path, argv: list[str] | None = None, **env: str) -> DaemonConfig:
    return load(argv or [], {"PILOT_HOME": str(home), **env}, installed=True)


def state(home: Path, **files: str) -> Path:
    for name, text in files.items():
        path = home / ".pilot" / name.replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return home


def test_the_settings_of_pilotctl_are_the_daemons(tmp_path: Path) -> None:
    state(tmp_path, config_json=json.dumps({"registry": "file:1", "beacon": "file:2", "hostname": "bot", "socket": "/f.sock"}))
    c = installed(tmp_path)
    assert (c.registry, c.beacon, c.hostname, c.socket) == (("file", 1), ("file", 2), "bot", Path("/f.sock"))
    c = installed(tmp_path, ["-hostname", "flag"], PILOT_SOCKET="/e.sock")
    assert (c.hostname, c.socket) == ("flag", Path("/e.sock"))
    assert load(REG, {"PILOT_HOME": str(tmp_path)}).hostname == "", "nodes inside applications do not read it"
    other = tmp_path / "other.json"
    other.write_text('{"registry": "other:1"}')
    assert installed(tmp_path, ["-config", str(other)]).hostname == "", "a named file takes its place"


def test_the_files_beacon_does_not_go_with_another_registry(tmp_path: Path) -> None:
    state(tmp_path, config_json=json.dumps({"registry": "file:1", "beacon": "beacon:2"}))
    assert installed(tmp_path, ["-registry", "file:1"]).beacon == ("beacon", 2)
    assert installed(tmp_path, ["-registry", "new:1"]).beacon == ("new", 9001)
    assert installed(tmp_path, PILOT_REGISTRY="new:1").beacon == ("new", 9001)


def test_mail_and_webhook_of_earlier_starts(tmp_path: Path) -> None:
    state(tmp_path, account_json='{"email": "ops@example.com"}', webhook_url="http://h.example/x\n")
    identity = str(tmp_path / ".pilot" / "identity.json")
    c = installed(tmp_path, [*REG, "-identity", identity])
    assert (c.email, c.webhook) == ("ops@example.com", "http://h.example/x")
    c = installed(tmp_path, [*REG, "-identity", identity, "-email", "me@example.com", "-webhook="])
    assert (c.email, c.webhook) == ("me@example.com", "")
    assert installed(tmp_path, REG).email == "", "without a kept identity there is no account"


def test_the_socket_lies_where_clients_look_first(tmp_path: Path) -> None:
    assert installed(tmp_path, REG, XDG_RUNTIME_DIR=str(tmp_path)).socket == tmp_path / "pilot.sock"
    assert installed(tmp_path, REG, XDG_RUNTIME_DIR=str(tmp_path / "none")).socket == Path("/tmp/pilot.sock")
    assert installed(tmp_path, [*REG, "-socket="], XDG_RUNTIME_DIR=str(tmp_path)).socket is None


def test_foreign_settings_are_noted(tmp_path: Path) -> None:
    state(tmp_path, config_json='{"registry": "file:1", "telemetry_url": "http://t", "apps": {"x": 1}, "no_path_watch": true}')
    notes = installed(tmp_path, ["-motd-interval", "3m"]).ignored
    assert len(notes) == 4
    for name in ("telemetry-url", "apps", "no-path-watch", "-motd-interval"):
        assert any(name in note for note in notes), name


@pytest.mark.parametrize(("argv", "env"), [
    (["-sandbox"], {}), (["-security-profile=enterprise"], {}), (["-strict-dataplane-trust"], {}),
    ([], {"PILOT_STRICT_DATAPLANE_TRUST": "1"}), (["-proxy-cmd", "cat x"], {}),
])  # fmt: skip
def test_promises_that_would_be_lost_are_refused(tmp_path: Path, argv: list[str], env: dict[str, str]) -> None:
    with pytest.raises(PilotError) as e:
        installed(tmp_path, REG + argv, **env)
    assert e.value.code == "not_supported"
    assert installed(tmp_path, [*REG, "-sandbox=false", "-security-profile", "compatible"]).ignored


@pytest.mark.parametrize(("name", "text"), [
    ("config_json", "{"), ("config_json", "[]"), ("account_json", '{"em'), ("account_json", '{"email": 5}'),
    ("webhook_url", "\0"), ("webhook_url", "ftp://x"),
])  # fmt: skip
def test_damaged_state_is_named_and_stays(tmp_path: Path, name: str, text: str) -> None:
    state(tmp_path, **{name: text})
    with pytest.raises(PilotError) as e:
        installed(tmp_path, [*REG, "-identity", str(tmp_path / ".pilot" / "identity.json"), "-email", "a@b.c", "-webhook="])
    path = tmp_path / ".pilot" / name.replace("_json", ".json")
    assert path.name in e.value.message and path.read_text() == text
