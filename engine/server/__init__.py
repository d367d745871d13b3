"""A server of one artifact: `serve.py` runs it, `service.py` knows no protocol.

Each of the folders `grpc/` and `http/` is a port with its protocols. `samples/` scores single
responses for the protocols of both.
"""
