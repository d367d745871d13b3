"""Addresses that name a model: `/models/NAME/rerank` is `/rerank` of the model NAME.

The bodies of several protocols cannot name a model. Their clients all take a base URL.
"""

from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

# The name of the model in the address of a request, in its ASGI scope.
MODEL_NAME = "kwise.model"

_PREFIX = "/models/"


class ModelPath:
    """Takes the model's name off the path of a request, for the application behind it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path: str = scope["path"]
        if path.startswith(_PREFIX):
            # The raw path, in which a slash of the name is "%2F".
            name, slash, rest = scope["raw_path"].decode("latin-1")[len(_PREFIX) :].partition("/")
            if name and slash:
                path = f"/{unquote(rest)}"
                scope = {**scope, "path": path, MODEL_NAME: unquote(name)}
        await self._app(scope, receive, send)
