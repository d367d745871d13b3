"""The plugin for ms-swift: `--external_plugins $(kwise rl-path ms-swift) --reward_funcs kwise`.

ms-swift gives a whole local batch in one call, and runs an asynchronous function in a new event
loop at each step. Therefore this function is blocking, and keeps its connection.

ms-swift puts the folder of a plugin on `sys.path`. Therefore this file is not in the folder of the
other adapters, whose names would hide the libraries that they adapt.
"""

from collections.abc import Sequence
from typing import Any

from swift.rewards import ORM, orms  # pyright: ignore[reportMissingImports]

from kwise.client.messages import to_prompt
from kwise.rl.scoring import Scoring

# Columns with parts of a conversation that are not text.
_NOT_SCORED = ("images", "videos", "audios", "tools")


class Kwise(ORM):
    """A reward function that asks a kwise server.

    Attributes:
        scoring: gives the rewards. The address is KWISE_ADDRESS; a subclass in your own file may
            have another. A response without a reward is an error, because ms-swift turns None into
            0 if no other function gives the response a reward.
    """

    scoring = Scoring()

    def __call__(
        self, completions: Sequence[str], messages: Sequence[Sequence[Any]], **columns: Any
    ) -> list[float]:
        """Return one reward per completion, in order.

        Args:
            completions: the answers.
            messages: the conversations, each with its answer at the end.
            columns: the other columns of the rows.

        Raises:
            ValueError: a conversation has images, videos, audios, tools or reasoning.
            NotScored, ModelChanged, RewardServiceError: see `Scoring.score`.
        """
        for name in _NOT_SCORED:
            if any(columns.get(name) or ()):
                raise ValueError(f"the rows have {name}; kwise scores texts only")
        for index, conversation in enumerate(messages):
            # This also refuses tool calls in the answer.
            to_prompt(f"messages[{index}]", conversation)
        prompts = [conversation[:-1] for conversation in messages]
        return self.scoring.score(prompts, completions).values


orms["kwise"] = Kwise
