"""The server's certificate and key, and the authority that client certificates must come from."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kwise.engine.server.security.files import read_file
from kwise.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """The content of one version of the TLS files.

    Attributes:
        cert, key: the certificate chain and its private key, as PEM.
        client_ca: the certificates of the authorities of clients, as PEM; None if clients need no
            certificate.
        context: the same for Python's ssl module.
    """

    cert: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


def read_tls(cert: Path, key: Path, client_ca: Path | None) -> Tls:
    """Read the TLS files and check that they fit together.

    Raises:
        ConfigError: a file cannot be read, is not PEM, or the key is not the certificate's. Names
            the option and the file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # TLS 1.2 or newer
    cert_pem, key_pem = read_file("--tls-cert", cert), read_file("--tls-key", key)
    try:
        context.load_cert_chain(cert, key, password=_refuse_password)
    except ssl.SSLError as error:
        raise ConfigError(f"--tls-cert {cert} --tls-key {key}: {_explained(error)}") from None
    except OSError as error:
        raise ConfigError(f"--tls-cert {cert} --tls-key {key}: {error.strerror}") from None
    ca_pem = None
    if client_ca is not None:
        ca_pem = read_file("--tls-client-ca", client_ca)
        try:
            context.load_verify_locations(cadata=ca_pem.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise ConfigError(
                f"--tls-client-ca {client_ca}: it must have certificates in PEM and ASCII only"
            ) from None
        context.verify_mode = ssl.CERT_REQUIRED
    return Tls(cert=cert_pem, key=key_pem, client_ca=ca_pem, context=context)


class NewestContext(ssl.SSLContext):
    """A TLS context for asyncio that begins each connection with the newest certificate.

    asyncio keeps the context that a server was started with. A context cannot drop authorities, so
    to load the files into it again would not be enough. It also has the keys of session tickets,
    so a new context accepts no session of a client whose authority was removed.

    Attributes:
        newest: returns the context of the next connection.
    """

    newest: Callable[[], ssl.SSLContext]

    def wrap_bio(self, *arguments: Any, **keywords: Any) -> ssl.SSLObject:
        """Begin a connection with the newest context."""
        return self.newest().wrap_bio(*arguments, **keywords)


def newest_context(newest: Callable[[], ssl.SSLContext]) -> NewestContext:
    """Return a context that begins each connection with what `newest` returns."""
    context = NewestContext(ssl.PROTOCOL_TLS_SERVER)
    context.newest = newest
    return context


def _refuse_password() -> str:
    """Refuse an encrypted key. OpenSSL would ask for its password at the terminal."""
    raise ConfigError("--tls-key: the key is encrypted; give a key without a password")


def _explained(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key does not belong to the certificate"
    return f"they are not a certificate and a key in PEM ({error.reason or error})"
