"""The engine's protocols: thin, one file each. gRPC and protobuf stay here."""
