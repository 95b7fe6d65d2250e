"""The daemon: puts the parts of a node together and serves local clients.

main            the program                     node            assembly and life of one node
config, flags   settings                        identity        the key and its file; rotation: a new key
registration    place in the registry           whereabouts     what it registers, whom it believes
schedule        when the registry is told
ipc             order of local requests         ipc_streams, ipc_node   what they mean
local_socket    the Unix socket's file          names           hostnames of others, cached
opening         a stream to a peer              reactions       what the node does when something happens
info            what the node says of itself    metrics         the same for Prometheus
"""
