"""The API's protocol buffers.

`kwise/v1/*_pb2*` are generated: edit the .proto files and run `make protos`.
"""
