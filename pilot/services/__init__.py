"""What a node offers to its peers over streams, and what it tells the outside (services.md).

stream        streams for Python code: listen, dial, read, write
dataexchange  port 1001: messages and files; filestream: chunked transfers; mailbox, partial: their place on disk
eventstream   port 1002: topics            webhook  events of the node as POSTs
frames        reading from a stream with limits; diskwriter: from there into a file; inbox, ratelimit: limits
"""
