"""A small HTTP client for tests, next to the gRPC client of the same server."""

from collections.abc import Callable
from typing import Any

from kwise.client import RewardClient
from tests.http_client import ask, http_port
from tests.servers import Server

# What two ways to the same reward may differ by: they may be in different batches.
EXACT = 1e-4

PROMPT = "Why is the sky blue?"
RESPONSES = ["Air scatters blue light more than red.", "Because it likes blue.", "Dunno."]


class HttpCaller:
    """A client of one server: bodies over HTTP, and the rewards that the gRPC client gets.

    `headers` are those of the last reply, and `model` is the name of the model.
    """

    def __init__(
        self, server: Server, client: RewardClient, template: Callable[..., str] = str
    ) -> None:
        self.port = http_port(server)
        self.server = server
        self.client = client
        self.model = client.get_model().model
        self.headers: dict[str, str] = {}
        self._template = template

    def send(self, path: str, body: Any) -> tuple[int, Any]:
        """Return status and body of the reply to a POST, and keep its headers."""
        reply = ask(self.port, "POST", path, body)
        self.headers = dict(reply.headers)
        return reply.status, reply.json

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
