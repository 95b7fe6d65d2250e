"""Commands of the published pilotctl that this program leaves to others. They answer `not_supported` and say what to do."""

from __future__ import annotations

from collections.abc import Sequence

from pilot.errors import PilotError

_APPS = "applications are no business of this program"
_BADGES = "address badges are issued and checked by a service outside the network"
_UPDATES = "this program does not update itself"
_SKILLS = "this program writes nothing into the folders of other tools"
_POLICY = "networks governed by policies are not part of this network"
_OPERATOR = "a function of the commercial registry"
_TASKS = "tasks left the protocol with release 1.18"

ELSEWHERE: dict[str, tuple[str, str]] = {
    "appstore": (_APPS, "install an application as you install other programs; it reaches the daemon through its socket"),
    "review": (_APPS, ""),
    "skills": (_SKILLS, "`pilotctl --json context` describes all commands for agents"),
    "verify": (_BADGES, "`pilotctl lookup TARGET` shows the key of a node; trust is what a handshake grants"),
    "recovery": ("lost identity keys are not recovered", "keep a copy of ~/.pilot/identity.json"),
    "update": (_UPDATES, "update the package: pip install --upgrade pilot-overlay"),
    "updates": (_UPDATES, "CHANGELOG.md tells what changed"),
    "trusted": ("no node is trusted without a handshake", "`pilotctl trust` shows whom this node trusts"),
    "task": (_TASKS, "send the work as a message: pilotctl send-message TARGET --type json --data ... --wait"),
    "gateway": ("this program bridges no TCP ports", "dial from a program: pilot.sdk, or pilotctl connect TARGET PORT"),
    "policy": (_POLICY, ""),
    "managed": (_POLICY, ""),
    "member-tags": (_POLICY, "`pilotctl set-tags` tags a node"),
    "network promote": (_POLICY, ""),
    "network demote": (_POLICY, ""),
    "network kick": (_POLICY, "delete the network, or change its token, to get rid of a member"),
    "network role": (_POLICY, ""),
    "network policy": (_POLICY, ""),
    "provision": (_OPERATOR, ""),
    "provision-status": (_OPERATOR, ""),
    "deprovision": (_OPERATOR, ""),
    "idp": (_OPERATOR, ""),
    "audit": (_OPERATOR, "the rendezvous writes a log and has metrics: docs/rendezvous.md"),
    "audit-export": (_OPERATOR, "the rendezvous writes a log and has metrics: docs/rendezvous.md"),
    "directory-sync": (_OPERATOR, ""),
    "directory-status": (_OPERATOR, ""),
}  # fmt: skip


# Flags that promise something of a command which is here: ignored they would be a promise broken.
FLAGS: dict[str, dict[str, tuple[str, str]]] = {
    "daemon start": {"proxy-cmd": ("proxy credentials cannot come from a command", "give them in --proxy or PILOT_PROXY")},
    "network create": {
        "enterprise": (_POLICY, "a network with a token: --join-rule token --token TEXT"),
        "rules": (_POLICY, ""),
        "rules-file": (_POLICY, ""),
    },
}


def refused_flag(name: str, unknown: Sequence[str]) -> PilotError | None:
    """Why a command cannot be run with one of these flags, None if they may be ignored."""
    for flag in (given.lstrip("-") for given in unknown):
        if flag in FLAGS.get(name, {}):
            reason, hint = FLAGS[name][flag]
            return PilotError("not_supported", f"{name} --{flag}: {reason}", hint or "leave the flag out if you can do without")
    return None


def refusal(words: Sequence[str]) -> PilotError | None:
    """Why the command line cannot be run here, None if it is no command of this kind."""
    for name in (" ".join(words[:2]), words[0]):
        if name in ELSEWHERE:
            reason, hint = ELSEWHERE[name]
            return PilotError("not_supported", f"{name}: {reason}", hint)
    return None
