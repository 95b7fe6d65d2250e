"""Pilot: an overlay network for software agents.

`pilot.Node` and `pilot.BlockingNode` are nodes inside the application; `pilot.sdk` are clients of the local daemon.
See docs/architecture.md for how the packages below fit together; imports point down only:
blocking -> node, and cli, sdk, gateway -> daemon -> services, trust, registry, beacon -> traversal, tunnel -> wire -> _core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilot.blocking import BlockingNode
    from pilot.node import Node

__version__ = "0.1.0"
__all__ = ["BlockingNode", "Node", "__version__"]


def __getattr__(name: str) -> Any:
    """Nodes are imported when first used: clients and the CLI start without them."""
    if name == "Node":
        from pilot.node import Node

        return Node
    if name == "BlockingNode":
        from pilot.blocking import BlockingNode

        return BlockingNode
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
