"""A server of one artifact: `serve.py` runs it, `service.py` knows no protocol.

Each protocol is a folder with its port: `grpc/`.
"""
