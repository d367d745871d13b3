"""Calls as a whole, whatever protocol they come in: how they end, and who is told of it."""
