"""The gRPC port's check of tokens, and its TLS.

A call without a valid token is refused before its first message is received. The answer is that of
a stream, whatever the method is: gRPC receives the message of a unary call before it calls the
handler, and a stream's messages only when the handler reads them. On the wire the two are alike.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from kwise.engine.server.security.credentials import Credentials
from kwise.engine.server.security.tls import Tls
from kwise.errors import Unauthenticated
from kwise.protos.kwise.v1 import admin_pb2

# The name of the token of the present call; "" if calls need none. gRPC runs interceptors and the
# handler of a call in one task, which has a context of its own.
TOKEN_NAME: ContextVar[str] = ContextVar("kwise_token_name", default="")

# Health checks are open, because probes and load balancers have no token.
_OPEN = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/"


_ADMIN = f"/{admin_pb2.DESCRIPTOR.services_by_name['AdminService'].full_name}/"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without a valid token, except health checks.

    Calls of the admin service need a token of an administrator.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of the call, or one that refuses it."""
        details: Any = handler_call_details
        if not details.method.startswith(_OPEN):
            headers = [
                value if isinstance(value, str) else value.decode("latin-1")
                for key, value in details.invocation_metadata or ()
                if key == "authorization"
            ]
            try:
                is_admin = details.method.startswith(_ADMIN)
                name_of = self._credentials.admin_name_of if is_admin else self._credentials.name_of
                TOKEN_NAME.set(name_of(headers))
            except Unauthenticated as error:
                return self._refuse(error)
        return await continuation(handler_call_details)

    def _refuse(self, error: Unauthenticated) -> Any:
        async def refuse(_: AsyncIterator[bytes], context: Any) -> None:
            self._credentials.log_refusal(context.peer(), error)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))

        return grpc.stream_stream_rpc_method_handler(refuse)


def server_credentials(credentials: Credentials) -> grpc.ServerCredentials | None:
    """Return gRPC's credentials, which follow changes of the TLS files; None without TLS."""
    given = credentials.tls
    if given is None:
        return None

    def newest() -> grpc.ServerCertificateConfiguration | None:
        """Return the files if they changed since the last handshake. gRPC calls this at each."""
        nonlocal given
        tls = credentials.tls
        if tls is None or tls is given:
            return None
        given = tls
        return _configuration(tls)

    fetcher: Any = newest  # the stubs do not know that it may return None
    return grpc.dynamic_ssl_server_credentials(
        _configuration(given), fetcher, require_client_authentication=given.client_ca is not None
    )


def _configuration(tls: Tls) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(tls.key, tls.cert)], root_certificates=tls.client_ca
    )
