"""What is special about verifiers: traces with more than texts."""

from typing import Any

import pytest

from kwise.client import RewardClient
from tests.rl.rollouts import TOLERANCE, library, verifiers_score, verifiers_trace
from tests.servers import Server

pytestmark = pytest.mark.filterwarnings("ignore")  # verifiers' own

REWARD = "kwise.rl.verifiers:reward"
WITHOUT_REASONING = "kwise.rl.verifiers:reward_without_reasoning"


@pytest.fixture
def types(tiny_server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The types of verifiers' messages. The address comes from the environment."""
    monkeypatch.setenv("KWISE_ADDRESS", tiny_server.address)
    return library("verifiers.v1.types")


def test_reasoning_is_refused_or_left_out_by_name(types: Any, tiny_server: Server) -> None:
    question = types.UserMessage(content="Name a prime number.")
    answer = types.AssistantMessage(content="7", reasoning_content="It has no divisors.")
    with pytest.raises(Exception, match="reward_without_reasoning"):
        verifiers_score(verifiers_trace(question, answer), REWARD)
    with RewardClient(tiny_server.address) as client:
        (expected,) = client.score("Name a prime number.", ["7"]).values
    reward = verifiers_score(verifiers_trace(question, answer), WITHOUT_REASONING)
    assert reward == pytest.approx(expected, abs=TOLERANCE)


def test_what_is_not_a_text_is_refused(types: Any) -> None:
    question = types.UserMessage(content="Name a prime number.")
    answer = types.AssistantMessage(content="7")
    call = types.ToolCall(id="1", name="divide", arguments="{}")
    tool = types.Tool(name="divide", description="", parameters={})
    for trace, message in [
        (verifiers_trace(question), "not the assistant's"),
        (verifiers_trace(question, answer, tools=[tool]), "the trace has tools"),
        (
            verifiers_trace(question, types.AssistantMessage(content="7", tool_calls=[call])),
            "the answer has tool_calls",
        ),
        (
            verifiers_trace(
                question,
                types.AssistantMessage(tool_calls=[call]),
                types.ToolMessage(tool_call_id="1", content="7"),
                answer,
            ),
            "tool_calls",
        ),
    ]:
        with pytest.raises(Exception, match=message):
            verifiers_score(trace, REWARD)
