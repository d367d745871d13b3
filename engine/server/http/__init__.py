"""The HTTP port: `app.py` answers requests from a table of endpoints, `port.py` serves it."""
