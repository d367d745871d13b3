"""Keep quiet about clients that have left, and about metadata that is not UTF-8.

gRPC logs a traceback of 40 lines if a reply or an error cannot be sent because the client has left
in the same moment (`ExecuteBatchError`). That is part of normal operation: a client gives up.

It also logs a traceback with the bytes of each value of metadata that is not UTF-8, before anything
checks the call's token, so that anybody could fill the log. It then reads the value as Latin-1.
"""

import asyncio
import logging
from typing import Any

import grpc

_LOG = logging.getLogger(__name__)
_GRPC_LOGGER = "grpc._cython.cygrpc"


def keep_quiet_about_departed_clients() -> None:
    """Log departed clients of this process and event loop at level debug, in one line."""
    logger = logging.getLogger(_GRPC_LOGGER)
    if not any(isinstance(known, _Quiet) for known in logger.filters):
        logger.addFilter(_Quiet())
    asyncio.get_running_loop().set_exception_handler(_handle)


class _Quiet(logging.Filter):
    """Drops gRPC's lines about messages that could not be sent and metadata that is not UTF-8."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, grpc.aio.InternalError):
            _log_departed()
            return False
        return not isinstance(error, UnicodeDecodeError)


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle an exception that no task retrieves."""
    if isinstance(context.get("exception"), grpc.aio.InternalError):
        _log_departed()
    else:
        loop.default_exception_handler(context)


def _log_departed() -> None:
    _LOG.debug("a client left before its reply was sent")
