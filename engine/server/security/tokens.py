"""Bearer tokens: which callers the server knows, and the name of each.

A token file has one `name:token` a line; lines that are empty or begin with # are skipped. Only
the tokens' SHA-256 digests are kept in memory. Messages name lines by their number and never quote
them, because a line may hold a token.
"""

import hmac
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from kwise.engine.server.security.files import read_file
from kwise.errors import ConfigError, Unauthenticated

TOKEN_OPTION = "--token-file"
ADMIN_TOKEN_OPTION = "--admin-token-file"
MIN_TOKEN_CHARACTERS, MAX_TOKEN_CHARACTERS = 16, 512
# Each call is compared with every token: 0.1 ms for 1,000.
MAX_TOKENS = 1000

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # b64token of RFC 6750, which headers can carry
_BEARER = re.compile(r"bearer +(?P<token>[!-~]+)[ \t]*", re.IGNORECASE)
_MAX_HEADER_CHARACTERS = 2 * MAX_TOKEN_CHARACTERS
_ADVICE = "send the header 'authorization: Bearer TOKEN' (kwise clients: KWISE_TOKEN)"


class Tokens:
    """The tokens that a server accepts.

    Args:
        digests: the SHA-256 of each token, with the name of its owner.
    """

    def __init__(self, digests: Sequence[tuple[bytes, str]]) -> None:
        self._digests = tuple(digests)

    def __len__(self) -> int:
        return len(self._digests)

    def shares(self, other: "Tokens") -> bool:
        """Return whether some token is one of `other` as well."""
        return not {digest for digest, _ in self._digests}.isdisjoint(
            digest for digest, _ in other._digests
        )

    def name_of(self, headers: Sequence[str]) -> str:
        """Return the name of a caller.

        The time that this takes does not depend on how much of a token is right, nor on which of
        the tokens it is.

        Args:
            headers: the values of the call's `authorization` headers.

        Raises:
            Unauthenticated: there is not exactly one, or it has no token that is known.
        """
        if not headers:
            raise Unauthenticated(f"the call has no token; {_ADVICE}")
        if len(headers) > 1:
            raise Unauthenticated("the call has several authorization headers; send one")
        header = headers[0]
        match = _BEARER.fullmatch(header) if len(header) <= _MAX_HEADER_CHARACTERS else None
        if match is None:
            raise Unauthenticated(f"the authorization header has another form; {_ADVICE}")
        digest = sha256(match["token"].encode("ascii")).digest()
        name = ""
        for known, owner in self._digests:
            if hmac.compare_digest(known, digest):
                name = owner
        if not name:
            raise Unauthenticated("the server does not know this token", is_wrong=True)
        return name


def read_tokens(path: Path, option: str = TOKEN_OPTION) -> Tokens:
    """Read a token file, which `option` names.

    Several tokens may have one name, so that a client can change its token while both are valid.

    Raises:
        ConfigError: the file cannot be read, has no token, or a line is not valid. The message
            names the line by its number and does not quote it.
    """
    place = f"{option} {path}"
    try:
        text = read_file(option, path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{place}: it is not UTF-8") from None
    lines: dict[bytes, int] = {}
    digests: list[tuple[bytes, str]] = []
    # Not splitlines, which also breaks lines at characters such as U+2028.
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        entry = line.strip(" \t")
        if not entry or entry.startswith("#"):
            continue
        name, colon, token = entry.partition(":")
        if not colon:
            raise ConfigError(f"{place}, line {number}: it must have the form NAME:TOKEN")
        if problem := _problem(name, token):
            raise ConfigError(f"{place}, line {number}: {problem}")
        digest = sha256(token.encode("ascii")).digest()
        if digest in lines:
            raise ConfigError(
                f"{place}, line {number}: line {lines[digest]} has the same token; a token must "
                "have one name"
            )
        lines[digest] = number
        digests.append((digest, name))
    if not digests:
        raise ConfigError(f"{place}: it has no token; write one NAME:TOKEN a line")
    if len(digests) > MAX_TOKENS:
        raise ConfigError(f"{place}: it has {len(digests)} tokens; the limit is {MAX_TOKENS}")
    return Tokens(digests)


def _problem(name: str, token: str) -> str:
    """Return what is wrong with an entry, without quoting it; "" if nothing is."""
    if _NAME.fullmatch(name) is None:
        return "the name must have 1 to 64 letters, digits, '.', '_' or '-'"
    if _TOKEN.fullmatch(token) is None:
        return (
            "the token must have letters, digits and any of -._~+/ only, with = at the end only, "
            "and no spaces"
        )
    if not MIN_TOKEN_CHARACTERS <= len(token) <= MAX_TOKEN_CHARACTERS:
        return (
            f"the token has {len(token)} characters; it must have {MIN_TOKEN_CHARACTERS} to "
            f"{MAX_TOKEN_CHARACTERS}, as `openssl rand -hex 32` writes"
        )
    return ""
