"""Serving: an artifact in, rewards over gRPC out. Imports neither torch nor transformers; `kwise.client` needs
only grpcio and protobuf."""
