"""Keep quiet about clients that have left.

gRPC logs a traceback of 40 lines if a reply or an error cannot be sent because the client has left
in the same moment (`ExecuteBatchError`). That is part of normal operation: a client gives up.
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
    """Drops the lines of gRPC that say that a message could not be sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, grpc.aio.InternalError):
            _log_departed()
            return False
        return True


def _handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Handle an exception that no task retrieves."""
    if isinstance(context.get("exception"), grpc.aio.InternalError):
        _log_departed()
    else:
        loop.default_exception_handler(context)


def _log_departed() -> None:
    _LOG.debug("a client left before its reply was sent")
