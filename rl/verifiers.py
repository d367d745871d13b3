"""The reward function for verifiers and prime-rl. The configuration of a task names it:

    [env.taskset.task.rewards]
    kwise = { fn = "kwise.rl.verifiers:reward", weight = 1.0 }

verifiers scores each rollout when it ends. An error marks the rollout as failed.
"""

from typing import Any

from kwise.client.several.targets import TargetLike
from kwise.rl.scoring import Scoring
from kwise.rl.single import score_one_async

# Keys of a message: the reasoning, and the provider's signed or encrypted form of it.
_REASONING = {"reasoning_content", "provider_state"}


class RewardFunction:
    """A reward function for verifiers.

    Args:
        address: the server or servers; None for KWISE_ADDRESS in the environment of the process
            that scores.
        without_reasoning: leave the reasoning out of each message. Otherwise a message with
            reasoning is refused, because kwise scores the text of messages only.
        options: further arguments of `Scoring`, but not `on_error`.
    """

    def __init__(
        self, address: TargetLike | None = None, *, without_reasoning: bool = False, **options: Any
    ) -> None:
        self._scoring = Scoring.raising(address, **options)
        self._without_reasoning = without_reasoning

    async def __call__(self, trace: Any) -> float:
        """Return the reward of the last message of a trace, given the messages before it.

        Raises:
            ValueError: the last message is not the assistant's, the trace has tools, or a message
                has reasoning, tool calls or images.
            NotScored, ModelChanged, RewardServiceError: see `Scoring.score`.
        """
        if trace.tools:
            raise ValueError("the trace has tools, and kwise scores texts only")
        messages = [message.model_dump(exclude_none=True) for message in trace.messages]
        if self._without_reasoning:
            messages = [
                {key: value for key, value in message.items() if key not in _REASONING}
                for message in messages
            ]
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError("the last message of the trace is not the assistant's")
        *prompt, answer = messages
        if others := sorted(answer.keys() - {"role", "content"}):
            advice = "; reward_without_reasoning leaves it out" if _REASONING & {*others} else ""
            raise ValueError(f"the answer has {others[0]}, and kwise scores texts only{advice}")
        return (await score_one_async(self._scoring, prompt, answer.get("content", ""))).reward


reward = RewardFunction()
reward_without_reasoning = RewardFunction(without_reasoning=True)
