"""A server with an HTTP port, and a small client of it."""

import json
import re
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from kwise.client import RewardClient
from tests.servers import PATIENCE_S, running_server

PROMPT = "Why is the sky blue?"
RESPONSES = ["Air scatters blue light more than red.", "Because it likes blue.", "Dunno."]


class Caller:
    """A client of one server: bodies over HTTP, and the rewards that the gRPC client gets."""

    def __init__(self, port: int, client: RewardClient, template: Callable[..., str]) -> None:
        self._port = port
        self._template = template
        self.client = client
        self.model = client.get_model().model
        self.headers: dict[str, str] = {}

    def send(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and body of the reply to a POST, and keep its headers."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        try:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", path, data, {"content-type": "application/json"})
            response = connection.getresponse()
            self.headers = {name.lower(): value for name, value in response.getheaders()}
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def ok(self, path: str, body: Any) -> Any:
        """Return the body of a reply that is a success."""
        status, answer = self.send(path, body)
        assert status == 200, (status, answer)
        return answer

    def rewards(self, responses: list[str], prompt: Any = PROMPT) -> list[float]:
        """Return the rewards that the gRPC client gets."""
        values = self.client.score(prompt, responses).values
        return [value for value in values if value is not None]

    def templated(self, response: str, prompt: str = PROMPT) -> str:
        """Return a whole conversation with the chat template applied."""
        return self._template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        )


@pytest.fixture(scope="session")
def caller(tiny_artifact: Path, smollm2_tokenizer: Any) -> Iterator[Caller]:
    with running_server(tiny_artifact, "--http-port", "0") as server:
        match = re.search(r"listening on http://\S+:(\d+)", server.log.text)
        assert match is not None, server.log.text
        with RewardClient(server.address) as client:
            yield Caller(
                int(match[1]),
                client,
                lambda messages: smollm2_tokenizer.apply_chat_template(messages, tokenize=False),
            )
