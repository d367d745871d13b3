"""Addresses that name a model: `/models/NAME/rerank` is `/rerank` of the model NAME.

The bodies of several protocols cannot name a model. Their clients all take a base URL.
"""

from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

# The name of the model in the address of a request, in its ASGI scope.
MODEL_NAME = "kwise.model"

_MODELS = "models"
_PREFIX = f"/{_MODELS}/"


class ModelPath:
    """Takes the model's name off the path of a request, for the application behind it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["path"].startswith(_PREFIX):
            # The raw path, in which a slash of the name is "%2F", and any letter may be encoded.
            parts = scope["raw_path"].decode("latin-1").split("/", 3)
            if len(parts) == 4 and unquote(parts[1]) == _MODELS and parts[2]:
                scope = {**scope, "path": f"/{unquote(parts[3])}", MODEL_NAME: unquote(parts[2])}
        await self._app(scope, receive, send)
