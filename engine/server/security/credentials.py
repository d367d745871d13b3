"""The tokens and certificates of a server, and the log of the calls that it refuses."""

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from kwise.engine.server.config import ServerConfig
from kwise.engine.server.security.files import WatchedFiles
from kwise.engine.server.security.tls import Tls, newest_context, read_tls
from kwise.engine.server.security.tokens import (
    ADMIN_TOKEN_OPTION,
    TOKEN_OPTION,
    Tokens,
    read_tokens,
)
from kwise.errors import ConfigError, Unauthenticated

_LOG = logging.getLogger(__name__)

_REREAD_S = 1.0
# Anybody can cause refusals, so they must not fill the log.
_REFUSAL_LOG_S = 10.0


class Credentials:
    """The tokens and the TLS context of a server. All of its ports share one object.

    Raises:
        ConfigError: a file cannot be read or is not valid. Names the option and the file.
    """

    def __init__(self, config: ServerConfig, now: Callable[[], float] = monotonic) -> None:
        self._tokens: WatchedFiles[Tokens] | None = None
        self._admin_tokens: WatchedFiles[Tokens] | None = None
        self._tls: WatchedFiles[Tls] | None = None
        self._now = now
        self._num_refused = 0
        self._log_refusals_at = now()
        if (token_file := config.token_file) is not None:
            self._tokens = WatchedFiles([token_file], lambda: read_tokens(token_file), "tokens")
        if (admin_file := config.admin_token_file) is not None:
            self._admin_tokens = WatchedFiles(
                [admin_file], lambda: read_tokens(admin_file, ADMIN_TOKEN_OPTION), "admin tokens"
            )
            if self._tokens and self._admin_tokens.value.shares(self._tokens.value):
                raise ConfigError(
                    f"{ADMIN_TOKEN_OPTION} {admin_file}: one of its tokens is in {TOKEN_OPTION} as "
                    "well, so that a caller could change the models; give administrators tokens of "
                    "their own"
                )
        cert, key, client_ca = config.tls_cert, config.tls_key, config.tls_client_ca
        if cert is not None and key is not None:
            paths = [cert, key, *([client_ca] if client_ca else [])]
            self._tls = WatchedFiles(paths, lambda: read_tls(cert, key, client_ca), "TLS files")

    @property
    def needs_token(self) -> bool:
        """True if calls need a token."""
        return self._tokens is not None

    @property
    def has_admins(self) -> bool:
        """True if somebody may change the models."""
        return self._admin_tokens is not None

    @property
    def tls(self) -> Tls | None:
        """The newest valid TLS files; None without TLS."""
        return None if self._tls is None else self._tls.value

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        """A context for asyncio that follows changes of the files; None without TLS."""
        if (files := self._tls) is None:
            return None
        return newest_context(lambda: files.value.context)

    @property
    def description(self) -> str:
        """A summary for the log: TLS or not, client certificates, and the number of tokens."""
        parts = ["TLS" if self._tls else "no TLS"]
        if self.tls is not None and self.tls.client_ca is not None:
            parts.append("client certificates needed")
        if self._tokens is not None:
            parts.append(f"{len(self._tokens.value)} tokens")
        if self._admin_tokens is not None:
            parts.append(f"{len(self._admin_tokens.value)} admin tokens")
        return ", ".join(parts)

    def name_of(self, headers: Sequence[str]) -> str:
        """Return the name of a caller; "" if calls need no token.

        Args:
            headers: the values of the call's `authorization` headers.

        Raises:
            Unauthenticated: the call has no valid token.
        """
        return "" if self._tokens is None else self._tokens.value.name_of(headers)

    def admin_name_of(self, headers: Sequence[str]) -> str:
        """Return the name of a caller who may change the models. `headers` is as in `name_of`.

        Raises:
            Unauthenticated: the call has no valid token of an administrator.
        """
        if self._admin_tokens is None:
            raise Unauthenticated("this server has no administrators (--admin-token-file)")
        try:
            name = self._admin_tokens.value.name_of(headers)
        except Unauthenticated as error:
            if not error.is_wrong:
                raise
            problem = "the server does not know this token; it must be one of --admin-token-file"
            raise Unauthenticated(problem, is_wrong=True) from None
        if self._tokens is not None:
            # The files were compared at start, and may have changed.
            try:
                self._tokens.value.name_of(headers)
            except Unauthenticated:
                return name
            raise Unauthenticated(
                f"this token is in {TOKEN_OPTION} as well, so it is not that of an administrator",
                is_wrong=True,
            )
        return name

    def log_refusal(self, peer: Any, error: Unauthenticated) -> None:
        """Log that calls were refused: one line in 10 seconds at most."""
        self._num_refused += 1
        if self._now() >= self._log_refusals_at:
            _LOG.warning(
                "%d call%s had no valid token since the last line like this; the last came from "
                "%s: %s",
                self._num_refused,
                "" if self._num_refused == 1 else "s",
                peer,
                error,
            )
            self._num_refused = 0
            self._log_refusals_at = self._now() + _REFUSAL_LOG_S

    async def watch(self) -> None:
        """Read files that have changed, once a second, for ever."""
        while True:
            await asyncio.sleep(_REREAD_S)
            self.reread()

    def reread(self) -> None:
        """Read files that have changed."""
        for files in (self._tokens, self._admin_tokens, self._tls):
            if files is not None:
                files.reread()
