"""The token and the certificates with which a client calls a server."""

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from kwise.errors import InvalidRequest

TOKEN_VARIABLE = "KWISE_TOKEN"
CA_VARIABLE = "KWISE_TLS_CA"
CERT_VARIABLE = "KWISE_TLS_CERT"
KEY_VARIABLE = "KWISE_TLS_KEY"

# The value of `tls_ca` for the authorities that come with gRPC, which are those of browsers.
PUBLIC_CA = "public"

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """The token and the certificates with which a client calls a server.

    `RewardClient` takes those of the environment if it is given none. Files are read when a client
    opens a connection.

    Attributes:
        token: the token of the server's `--token-file`; "" for none. Without TLS it crosses the
            network unencrypted.
        tls_ca: a file with the certificates of the authorities that servers' certificates come
            from, in PEM; "public" for the public ones; "" for a connection without TLS.
        tls_cert, tls_key: files with the client's own certificate and its private key in PEM, for
            a server with `--tls-client-ca`; "" for none.

    Raises:
        InvalidRequest: the token has a character that tokens cannot have, or a file is named
            without the one that belongs to it. The error names the attribute, or the environment
            variable.
    """

    token: str = field(default="", repr=False)
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    def __post_init__(self) -> None:
        _check({name: getattr(self, name) for name in _VARIABLES}, {})

    @classmethod
    def from_environment(cls) -> "Credentials":
        """Return those of KWISE_TOKEN, KWISE_TLS_CA, KWISE_TLS_CERT and KWISE_TLS_KEY.

        Raises:
            InvalidRequest: as the class; names the variable.
        """
        values = {name: os.environ.get(variable, "") for name, variable in _VARIABLES.items()}
        _check(values, _VARIABLES)
        return cls(**values)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of each call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """Read the files, and return gRPC's credentials of a channel; None without TLS.

        Raises:
            InvalidRequest: a file cannot be read, is not PEM, or the key is not the certificate's.
                Names the file.
        """
        if not self.tls_ca:
            return None
        # gRPC would say no more than that the server is away.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca = None
        if self.tls_ca != PUBLIC_CA:
            ca = _content("tls_ca", self.tls_ca)
            try:
                context.load_verify_locations(cadata=ca.decode("ascii"))
            except (ssl.SSLError, ValueError):
                problem = "it must have certificates in PEM and ASCII only"
                raise InvalidRequest("tls_ca", f"{self.tls_ca}: {problem}") from None
        if not self.tls_cert:
            return grpc.ssl_channel_credentials(ca)
        cert, key = _content("tls_cert", self.tls_cert), _content("tls_key", self.tls_key)
        try:
            context.load_cert_chain(self.tls_cert, self.tls_key, password=_refuse_password)
        except ssl.SSLError as error:
            raise InvalidRequest(
                "tls_cert, tls_key",
                f"{self.tls_cert} and {self.tls_key} are not a certificate and its key in PEM "
                f"({error.reason or error})",
            ) from None
        return grpc.ssl_channel_credentials(ca, key, cert)


_VARIABLES = {
    "token": TOKEN_VARIABLE,
    "tls_ca": CA_VARIABLE,
    "tls_cert": CERT_VARIABLE,
    "tls_key": KEY_VARIABLE,
}


def _check(values: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Check the attributes. Errors call an attribute by its name in `names`, or else by its own."""

    def name_of(attribute: str) -> str:
        return names.get(attribute, attribute)

    for attribute, value in values.items():
        if not isinstance(value, str):
            raise TypeError(f"{attribute} must be a str, not {type(value).__name__}")
    if values["token"] and _TOKEN.fullmatch(values["token"]) is None:
        raise InvalidRequest(
            name_of("token"),
            "must have letters, digits and any of -._~+/ only, with = at the end only, and no "
            "spaces or newlines",
        )
    if bool(values["tls_cert"]) != bool(values["tls_key"]):
        given, missing = "tls_cert", "tls_key"
        if values["tls_key"]:
            given, missing = missing, given
        raise InvalidRequest(name_of(given), f"needs {name_of(missing)} too")
    if values["tls_cert"] and not values["tls_ca"]:
        raise InvalidRequest(
            name_of("tls_cert"),
            f"is for TLS; give {name_of('tls_ca')} too (a file, or {PUBLIC_CA!r})",
        )


def _content(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(name, f"{path}: {error.strerror or error}") from None


def _refuse_password() -> str:
    """Refuse an encrypted key. OpenSSL would ask for its password at the terminal."""
    raise InvalidRequest("tls_key", "the key is encrypted; give a key without a password")
