"""The servers of a client: their addresses, which of them are up, and the channels to them."""
