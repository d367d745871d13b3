"""The bodies of other protocols over HTTP: one module per family, and what the families share."""
