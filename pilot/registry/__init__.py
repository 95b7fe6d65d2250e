"""The registry: who is a node, which key and endpoint it has, who trusts whom (registry.md).

server      TCP (and TLS) around it              connection  one client: frames in, replies out, in order
core        what all commands share              ops_*       the commands, by theme
state       tables and indexes in memory         store       the same on disk, in group commits
fields, endpoint, texts, signatures, limits      small pure pieces
client      the daemon's asyncio client, on a pool   blocking    one connection without asyncio, for short-lived programs
calls       requests and error texts as clients see them
tls         certificates and pins

Nothing is imported here: the command line pays only for what it uses.
"""
