"""The bodies of other protocols over HTTP: one module per protocol, and modules that they share."""
