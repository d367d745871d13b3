"""Serve a scorer over gRPC.

`service.py` knows no protocol. The other modules are gRPC's: the rpcs (`grpc_service.py`), a stream
(`stream.py`), the messages (`messages.py`) and the process (`serve.py`, `reload.py`, `command.py`).
"""
