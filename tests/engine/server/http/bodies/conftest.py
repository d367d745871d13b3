"""The server that the tests of bodies share, and a client of it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kwise.client import RewardClient
from tests.http_caller import HttpCaller
from tests.servers import running_server


@pytest.fixture(scope="session")
def caller(tiny_artifact: Path, smollm2_tokenizer: Any) -> Iterator[HttpCaller]:
    template = partial(smollm2_tokenizer.apply_chat_template, tokenize=False)
    with (
        running_server(tiny_artifact, "--http-port", "0") as server,
        RewardClient(server.address) as client,
    ):
        yield HttpCaller(server, client, template)
