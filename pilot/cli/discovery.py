"""find, lookup, register, and what this node shows of itself (cli.md section 3)."""

from __future__ import annotations

from pilot.cli.args import usage
from pilot.cli.output import clean
from pilot.cli.session import Session
from pilot.errors import PilotError


def find(s: Session) -> None:
    """Address of a name."""
    name = s.args.need("hostname")[0]
    reply = s.find(name)
    data = {k: reply.get(k) for k in ("hostname", "node_id", "address", "public")}
    data["hostname"] = data["hostname"] or name
    data["public"] = data["public"] is True
    lines = (
        f"Hostname:  {clean(str(data['hostname']))}",
        f"Node ID:   {data['node_id']}",
        f"Address:   {clean(str(data['address']))}",
        f"Visible:   {'public' if data['public'] else 'private'}",
    )
    s.out.done(data, "\n".join(lines))


def lookup(s: Session) -> None:
    """The registry's entry of a node, without its endpoints."""
    s.args.need("target")
    reply = s.lookup(s.target(s.args.at(0)).address.node)
    hidden = ("endpoint", "real_addr", "lan_addrs", "public_addr", "stun_addr", "observed_addr")
    s.out.done({k: v for k, v in reply.items() if k not in hidden})


def register(s: Session) -> None:
    """Sends the key of this node's daemon to the registry again, which answers with its address."""
    from pilot.cli.lookup import ask

    info = s.client.info()
    request = {"type": "register", "public_key": str(info.get("public_key", "")), "listen_addr": s.args.at(0)}
    s.out.done(ask(s.settings.registry or str(info.get("registry_addr", "")), request))


def deregister(s: Session) -> None:
    """Takes this node out of the registry."""
    s.out.done(s.client.deregister())


def rotate_key(s: Session) -> None:
    """A new identity key, through the daemon."""
    s.out.done(s.client.rotate_key())


def set_hostname(s: Session) -> None:
    """Names this node, now and for the next start."""
    name = s.args.need("name")[0]
    reply = s.client.set_hostname(name)
    s.settings.update({"hostname": name})
    taken = str(reply.get("hostname", name))
    s.out.done({"hostname": taken, "node_id": reply.get("node_id")}, f"hostname set: {clean(taken)}")


def clear_hostname(s: Session) -> None:
    """Removes the name."""
    s.client.set_hostname("")
    s.settings.update({"hostname": None})
    s.out.done({"hostname": ""}, "hostname cleared")


def set_public(s: Session) -> None:
    """Visible and reachable for all, now and after a restart."""
    _visibility(s, True)


def set_private(s: Session) -> None:
    """Visible for trusted nodes, now and after a restart: a node must not become public again by itself."""
    _visibility(s, False)


def _visibility(s: Session, public: bool) -> None:
    reply = s.client.set_visibility(public)
    s.settings.update({"public": public})
    s.out.done(reply)


def set_tags(s: Session) -> None:
    """Replaces the tags of this node."""
    tags = [t.removeprefix("#") for t in s.args.positional]
    if not 1 <= len(tags) <= 3:
        raise usage(f"set-tags takes 1 to 3 tags, got {len(tags)}")
    reply = s.client.set_tags(tags)
    kept = reply.get("tags")
    kept = [str(t) for t in kept] if isinstance(kept, list) else tags
    s.out.done({"node_id": reply.get("node_id"), "tags": kept}, "tags set: " + " ".join(f"#{clean(t)}" for t in kept))


def clear_tags(s: Session) -> None:
    """Removes all tags."""
    s.client.set_tags([])
    s.out.done({"tags": []}, "tags cleared")


def enable_tasks(s: Session) -> None:
    """The registry tells that this node takes tasks."""
    s.out.done(s.client.set_task_exec(True))


def disable_tasks(s: Session) -> None:
    """The registry tells no more that this node takes tasks."""
    s.out.done(s.client.set_task_exec(False))


def set_webhook(s: Session) -> None:
    """Where the daemon posts events."""
    url = s.args.need("url")[0]
    if not url.lower().startswith(("http://", "https://")):
        raise usage(f"webhook: want an http or https URL, got {url}")
    _webhook(s, url, f"webhook set: {url}")


def clear_webhook(s: Session) -> None:
    """Events are posted nowhere."""
    _webhook(s, "", "webhook cleared")


def _webhook(s: Session, url: str, text: str) -> None:
    try:
        s.client.set_webhook(url)
        applied = True
    except PilotError as e:
        if e.code != "not_running":
            raise
        applied = False
    s.settings.update({"webhook": url or None})
    when = "applied to running daemon" if applied else "will take effect on next daemon start"
    s.out.done({"webhook": url, "applied": applied}, f"{text}\n{when}")
