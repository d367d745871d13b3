"""The environment for SkyRL: one turn, with its reward from a kwise server.

    skyrl_gym.register(id="kwise", entry_point="kwise.rl.skyrl:RewardEnv")

in the Ray task that runs the trainer, and `environment.env_class=kwise`. SkyRL steps environments
in threads, which share one connection, and the server joins the responses to a prompt.
"""

from typing import Any

from skyrl_gym.envs.base_text_env import (  # pyright: ignore[reportMissingImports]
    BaseTextEnv,
    BaseTextEnvStepOutput,
)

from kwise.rl.scoring import Scoring
from kwise.rl.single import score_one


class RewardEnv(BaseTextEnv):
    """An environment of one turn.

    Attributes:
        scoring: gives the rewards. The address is KWISE_ADDRESS; a subclass may have others.

    Args:
        env_config: SkyRL's configuration of the environment. It is not used.
        extras: the columns of the row. They are not used.
    """

    scoring = Scoring()

    def __init__(self, env_config: Any = None, extras: Any = None) -> None:
        super().__init__()
        self._prompt: list[dict[str, str]] = []
        self._metrics: dict[str, float] = {}

    def init(self, prompt: list[dict[str, str]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
        """Keep the messages of the prompt, and return them unchanged."""
        self._prompt = list(prompt)
        return prompt, {}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """Return the reward of the response `action`, which ends the episode.

        Raises:
            NotScored, ModelChanged, RewardServiceError: see `Scoring.score`. SkyRL ends the run.
        """
        scored = score_one(self.scoring, self._prompt, action)
        self._metrics = scored.metrics
        return BaseTextEnvStepOutput(observations=[], reward=scored.reward, done=True, metadata={})

    def get_metrics(self) -> dict[str, float]:
        """Return numbers about the last step, which SkyRL averages."""
        return self._metrics
