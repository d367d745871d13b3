"""ASGI applications in front of all paths: tokens, and the model that a path names."""
