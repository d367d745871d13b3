"""The reward manager for verl: `reward.reward_manager.name=kwise`.

verl imports this module through the entry point `kwise` of the group `verl.plugins`, where the
class registers itself. It can also be named by its module:

    reward.reward_manager.source=importlib reward.reward_manager.name=RewardManager
    reward.reward_manager.module.path=pkg://kwise.rl.verl

verl scores each sample when its rollout ends, in a random one of `reward.num_workers` processes,
and the server joins the samples of a prompt. The adapter is a manager and not a function for
`reward.custom_reward_function`, because verl does not give the prompt to a function.

An error is raised and never becomes 0.0. verl then marks the group as failed, or ends the run.
"""

import asyncio
from typing import Any

from verl import DataProto  # pyright: ignore[reportMissingImports]
from verl.experimental.reward_loop.reward_manager import (  # pyright: ignore[reportMissingImports]
    register,
)
from verl.experimental.reward_loop.reward_manager.base import (  # pyright: ignore[reportMissingImports]
    RewardManagerBase,
)

from kwise.rl.scoring import Scoring
from kwise.rl.single import score_one_async

_MAX_TURNS = 2  # of a rollout of one turn: verl counts the prompt and the response
_OPTIONS = ("address", "allow_model_change", "client", "model", "timeout_s")


@register("kwise")
class RewardManager(RewardManagerBase):
    """A reward manager that asks a kwise server.

    Options of `Scoring` come from the configuration, for example `+reward.kwise.address=HOST:PORT`.
    The default address is KWISE_ADDRESS in the environment of verl's workers.

    Raises:
        ValueError: `reward.custom_reward_function` is set as well, or an option is unknown.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        if (config.reward.get("custom_reward_function") or {}).get("path"):
            raise ValueError(
                "reward.custom_reward_function.path is set, but the reward manager kwise takes its "
                "rewards from the server; leave out one of the two"
            )
        options = dict(config.reward.get("kwise") or {})
        if unknown := sorted(options.keys() - {*_OPTIONS}):
            raise ValueError(
                f"reward.kwise.{unknown[0]} is unknown; the options are {', '.join(_OPTIONS)}"
            )
        self._scoring = Scoring(options.pop("address", None), **options)

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Return the reward of the last sequence of `data`, and numbers for verl's metrics.

        Raises:
            ValueError: the batch has no messages of the prompt, or the rollout has several turns.
            NotScored, ModelChanged, RewardServiceError: see `Scoring.score`.
        """
        item = data[-1:][0]
        fields = item.non_tensor_batch
        if "raw_prompt" not in fields:
            raise ValueError(
                "the batch has no raw_prompt, so the messages of the prompt are not known; set "
                "data.return_raw_chat=True"
            )
        if (turns := fields.get("__num_turns__")) is not None and turns > _MAX_TURNS:
            raise ValueError(
                f"the rollout has {turns} turns (__num_turns__), and its response has the texts of "
                "several roles; kwise scores rollouts of one turn"
            )
        response = await asyncio.to_thread(self._decode, _response_ids(item).tolist())
        scored = await score_one_async(self._scoring, list(fields["raw_prompt"]), response)
        # Numbers only, with the same keys for each sample, because verl makes an array of each key.
        return {"reward_score": scored.reward, "reward_extra_info": scored.metrics}

    def _decode(self, response_ids: list[int]) -> str:
        """Return the text without the end token. Other special tokens belong to the answer."""
        added = self.tokenizer.added_tokens_decoder  # `all_special_ids` lacks tokens without a name
        while response_ids and (last := added.get(response_ids[-1])) and last.special:
            response_ids.pop()
        text: str = self.tokenizer.decode(response_ids, skip_special_tokens=False)
        return text


def _response_ids(item: Any) -> Any:
    """Return the ids of a response without padding: int64[R].

    verl pads the prompts, responses and attention masks of several sequences separately. Then the
    end of a mask does not belong to the response, so `response_len` is used if verl gives it.
    """
    response_ids = item.batch["responses"]
    num_tokens = item.non_tensor_batch.get("response_len")
    if num_tokens is None:
        num_tokens = item.batch["attention_mask"][-response_ids.shape[-1] :].sum()
    return response_ids[: int(num_tokens)]
