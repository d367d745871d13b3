"""The agent for OpenRLHF over gRPC: `--train.agent_func_path $(kwise rl-path openrlhf)`.

OpenRLHF's own client (`--reward.remote_url http://HOST:PORT/get_reward`) needs no file. But it
opens a connection for each sample, gives up after five tries, and drops the error, so that the run
ends later without naming the cause. This agent keeps one connection, waits for a server that
restarts, and raises the error.
"""

from typing import Any

from openrlhf.utils.agent import (  # pyright: ignore[reportMissingImports]
    SingleTurnAgentExecutor,
)

from kwise.rl.scoring import Scoring
from kwise.rl.single import score_one_async
from kwise.types import TemplatedText


class AgentExecutor(SingleTurnAgentExecutor):
    """OpenRLHF's agent of one turn, with rewards from a kwise server.

    Attributes:
        scoring: gives the rewards. The address is KWISE_ADDRESS in the environment of OpenRLHF's
            rollout actors; a subclass in your own file may have another.
    """

    scoring = Scoring()

    async def execute(
        self, *arguments: Any, hf_tokenizer: Any, images: Any = None, **options: Any
    ) -> dict[str, Any]:
        """Generate a response with OpenRLHF's own code, and add its reward.

        Raises:
            ValueError: the prompt has images.
            NotScored, ModelChanged, RewardServiceError: see `Scoring.score`. OpenRLHF ends the run.
        """
        if images:
            raise ValueError("the prompt has images; kwise scores texts only")
        output: dict[str, Any] = await super().execute(
            *arguments, hf_tokenizer=hf_tokenizer, images=images, **options
        )
        prompt, response = _texts(hf_tokenizer, output)
        scored = await score_one_async(self.scoring, prompt, response)
        # OpenRLHF makes a tensor of each extra log: numbers only, always with the same keys.
        return output | {
            "reward": scored.reward,
            "scores": scored.reward,
            "extra_logs": scored.metrics,
        }


def _texts(tokenizer: Any, output: dict[str, Any]) -> tuple[TemplatedText, str]:
    """Return the prompt and the response as texts, special tokens included."""
    token_ids = output["observation_tokens"]
    ((start, _),) = output["action_ranges"]
    prompt = tokenizer.decode(token_ids[:start], skip_special_tokens=False)
    whole = tokenizer.decode(token_ids, skip_special_tokens=False)
    if whole.startswith(prompt):
        return TemplatedText(text=prompt), whole[len(prompt) :]
    # The text of a token may depend on the token before it. Then only the whole text is right.
    return TemplatedText(text=""), whole
