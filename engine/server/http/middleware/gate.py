"""The HTTP port's check of tokens: an ASGI application in front of all paths.

A request without a valid token is refused before its body is read, and before its path is looked
up. Paths are closed unless they are named as open, so that a new endpoint is not open by mistake.
"""

from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from kwise.engine.server.http.endpoint import Endpoint
from kwise.engine.server.http.errors import KWISE_ERRORS, ErrorForm, problem_of, response_of
from kwise.engine.server.security.credentials import Credentials
from kwise.errors import Unauthenticated

# The name of the token of a request, in its ASGI scope.
TOKEN_NAME = "kwise.token_name"


class Gate:
    """Lets requests with a valid token, and health checks, through to an application.

    Args:
        app: the application behind it.
        endpoints: the endpoints of the application: which are open, and how their errors look.
        credentials: the tokens.
    """

    def __init__(
        self, app: ASGIApp, endpoints: Sequence[Endpoint], credentials: Credentials
    ) -> None:
        self._app = app
        self._credentials = credentials
        self._open_paths = {endpoint.path for endpoint in endpoints if endpoint.is_open}
        self._errors = {endpoint.path: endpoint.errors for endpoint in endpoints}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or refuse it."""
        path = scope["path"]
        if path not in self._open_paths:
            headers = [
                value.decode("latin-1")
                for name, value in scope["headers"]
                if name == b"authorization"
            ]
            try:
                scope[TOKEN_NAME] = self._credentials.name_of(headers)
            except Unauthenticated as error:
                peer = scope["client"][0] if scope["client"] else ""
                self._credentials.log_refusal(peer, error)
                response = response_of(problem_of(error), self._errors_of(path))
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _errors_of(self, path: str) -> ErrorForm:
        """Return the form of the errors of a path; kwise's own for an unknown path."""
        if path in self._errors:
            return self._errors[path]
        for known, errors in self._errors.items():
            prefix, brace, _ = known.partition("{")
            if brace and path.startswith(prefix):  # the rest of the path is a parameter
                return errors
        return KWISE_ERRORS
