"""The commands that score rows."""
