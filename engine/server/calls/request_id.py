"""Ids by which a caller and the server's log name one call."""

import re
import secrets
from itertools import count

# The header of HTTP, and the metadata of gRPC, in both directions.
REQUEST_ID_KEY = "x-request-id"

# Short and without spaces, quotes and line ends, because it stands in lines of the log.
_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")

# A random beginning, so that ids of several servers in one log differ. A number is 20 times as
# cheap as a random id for each call.
_PREFIX = secrets.token_hex(6)
_numbers = count(1)


def accepted_request_id(given: str) -> str:
    """Return an id that a caller has given, or "" if it is not fit for the log."""
    return given if _ID.fullmatch(given) else ""


def new_request_id() -> str:
    """Return an id that no other call has."""
    return f"{_PREFIX}-{next(_numbers)}"
