"""The reward function for AReaL: `reward_fn="kwise.rl.areal.reward"`.

AReaL calls it for one sample at a time in a pool of forked processes. It gives a call 15 s, tries
four times, and then silently takes 0 as the reward. Therefore this function gives up earlier and
raises, and after the fourth error AReaL raises too. The time that a call waits for a free process
counts as well: docs/rl.md explains how large the pool must be.
"""

from typing import Any

from kwise.client.several.targets import TargetLike
from kwise.rl.scoring import Scoring
from kwise.rl.single import score_one
from kwise.types import TemplatedText

TIMEOUT_S = 12.0  # AReaL gives 15 s


class RewardFunction:
    """A reward function for AReaL.

    To use other arguments than those of `reward`, create an object in a module of your own, and a
    function that calls it.

    Args:
        address: the server or servers; None for KWISE_ADDRESS in the environment of
            AReaL's rollout process.
        timeout_s: the longest time of a call, in seconds. AReaL must give more.
        options: further arguments of `Scoring`, but not `on_error`.
    """

    def __init__(
        self, address: TargetLike | None = None, *, timeout_s: float = TIMEOUT_S, **options: Any
    ) -> None:
        self._scoring = Scoring.raising(address, timeout_s=timeout_s, **options)

    def __call__(self, prompt: str, completions: str, *_: Any, **row: Any) -> float:
        """Return the reward of one completion.

        Args:
            prompt: the prompt with the chat template applied, as AReaL decodes it.
            completions: one completion, with its special tokens.
            row: the columns of the row. They and the token ids are not used, because the policy
                and the reward model may have different tokenizers.

        Raises:
            NotScored, ModelChanged, RewardServiceError: see `Scoring.score`.
        """
        return score_one(self._scoring, TemplatedText(text=prompt), completions).reward


_function = RewardFunction()


# This is a function, because AReaL pickles it at each call. A function is pickled by its name. Of
# an object, the process would get a copy with a new connection at each call.
def reward(*arguments: Any, **row: Any) -> float:
    """Return the reward of one completion. See `RewardFunction`."""
    return _function(*arguments, **row)
