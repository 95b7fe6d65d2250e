"""The daemon: puts the parts of a node together and serves local clients.

config, flags   settings                 node         assembly and life of one node
main            the program              ipc*         requests of local clients (ipc.md)
"""
