"""The gRPC port: `services.py` is the table of its services, `port.py` serves them."""
