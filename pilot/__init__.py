"""Pilot: an overlay network for software agents.

See docs/architecture.md for how the packages below fit together; imports point down only:
cli, sdk, gateway -> daemon -> services, trust, registry, beacon -> traversal, tunnel -> wire -> _core.
"""

__version__ = "0.1.0"
