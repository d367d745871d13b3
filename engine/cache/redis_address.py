"""The address of a Redis server, from a URL and the environment. Imports the standard library only.

A URL may hold a password, so no message and no `repr` shows the URL or a part of it that the user
may have meant as a password.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from kwise.errors import ConfigError

USERNAME, PASSWORD = "KWISE_REDIS_USERNAME", "KWISE_REDIS_PASSWORD"

_FORMS = "redis://HOST:PORT/DB, rediss://HOST:PORT/DB (TLS) or unix:///PATH?db=DB"
# Of the many parameters of redis-py, those that say where Redis is and whom to trust. Others, such
# as socket_timeout or decode_responses, would change what the cache relies on.
_PARAMETERS: Mapping[str, frozenset[str]] = {
    "redis": frozenset(),
    "rediss": frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"}),
    "unix": frozenset({"db"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisAddress:
    """Where Redis is, and how to log in.

    Attributes:
        url: the URL that the user gave; it may hold a password.
        username, password: those of the environment, for what the URL lacks.
        shown: the address without user and password, for messages.
    """

    url: str = field(repr=False)
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)
    shown: str


def parse_redis_url(url: str, option: str, environ: Mapping[str, str] = os.environ) -> RedisAddress:
    """Return the address in the value of a command-line option.

    Args:
        url: redis://, rediss:// (TLS) or unix://, with or without user and password.
        option: the name of the option, for messages.
        environ: the environment, with user and password if the URL has none.

    Raises:
        ConfigError: the URL has another form.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _PARAMETERS:
        raise ConfigError(f"{option}: the URL has another form than {_FORMS}")
    try:
        parts = urlsplit(url)
        port = 6379 if parts.port is None else parts.port
    except ValueError:  # its message may show a part of the password
        parts, port = None, 0
    if parts is None or port == 0 or parts.fragment:
        raise ConfigError(
            f"{option}: the URL has another form than {_FORMS}; write %23, %2F, %3F and %40 for "
            "the characters # / ? @ in a user or password"
        )
    parameters = dict(parse_qsl(parts.query, keep_blank_values=True))
    allowed = _PARAMETERS[scheme]
    if not parameters.keys() <= allowed:
        names = ", ".join(sorted(allowed)) or "none"
        raise ConfigError(f"{option}: parameters of a {scheme}:// URL may be: {names}")
    if scheme == "unix":
        place, database = unquote(parts.path), parameters.get("db", "0")
        shown = f"unix://{place}?db={database}"
    else:
        place, database = parts.hostname or "", parts.path.strip("/") or "0"
        host = f"[{place}]" if ":" in place else place
        shown = f"{scheme}://{host}:{port}/{database}"
    if not place or not (database.isascii() and database.isdigit()):
        raise ConfigError(f"{option}: the URL has another form than {_FORMS}")
    return RedisAddress(
        url=url,
        username=None if parts.username else environ.get(USERNAME),
        password=None if parts.password else environ.get(PASSWORD),
        shown=shown,
    )
