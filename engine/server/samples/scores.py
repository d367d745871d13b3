"""The numbers and names by which other protocols report a reward."""

from kwise.comparison import win_probability
from kwise.engine.server.samples.scoring import ScoredSamples
from kwise.types import Reward

# The label of the only output, as transformers names it in a model without label names.
LABEL = "LABEL_0"

# The names of precisions in Text Embeddings Inference.
_TEI_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8"}


def tei_dtype(precision: str) -> str:
    """Return the name of a precision in TEI; the names of several of an ensemble, "fp32, int8"."""
    return ", ".join(_TEI_DTYPES[name] for name in precision.split(", "))


def score_of(reward: Reward, use_activation: bool | None) -> float:
    """Return the reward, or its sigmoid if `use_activation` is True or None, the usual default."""
    return reward.value if use_activation is False else win_probability(reward.value)


def best_first(scored: ScoredSamples, use_activation: bool | None) -> list[tuple[int, float]]:
    """Return index and score of each sample, the best first. Ties keep their order.

    The order is that of the rewards, because the sigmoids of large rewards are equal.
    """
    order = sorted(enumerate(scored.rewards), key=lambda item: item[1].value, reverse=True)
    return [(index, score_of(reward, use_activation)) for index, reward in order]
