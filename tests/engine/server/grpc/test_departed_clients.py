"""A client that leaves before its reply is sent leaves no traceback in the log."""

import asyncio
import logging

import grpc
import pytest

from kwise.engine.server.grpc.departed_clients import keep_quiet_about_departed_clients


async def test_errors_of_sending_are_one_line_and_others_stay(
    caplog: pytest.LogCaptureFixture,
) -> None:
    keep_quiet_about_departed_clients()
    logger = logging.getLogger("grpc._cython.cygrpc")
    for kind in (grpc.aio.InternalError, ZeroDivisionError):
        try:
            raise kind("of a test")
        except Exception:
            logger.exception("raised by a servicer")
    assert [record.exc_info is not None for record in caplog.records] == [True]
    caplog.clear()
    loop = asyncio.get_running_loop()
    for error in (grpc.aio.InternalError("of a test"), ZeroDivisionError()):
        loop.call_exception_handler({"message": "never retrieved", "exception": error})
    assert [record.exc_info is not None for record in caplog.records] == [True]
