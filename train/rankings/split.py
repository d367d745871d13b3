"""The split of rankings into a training and a validation part, by prompt."""

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence

from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.schema import Ranking
from kwise.types import Conversation


def split_by_prompt(
    rankings: Sequence[Ranking],
    fraction: float,
    seed: int,
    key: Callable[[Conversation], Hashable] = lambda prompt: prompt,
) -> tuple[list[Ranking], list[Ranking]]:
    """Return (training, validation), each in the given order.

    All rankings of a prompt go to the same part, because a model that has trained on a prompt
    knows more about its other responses than about new prompts. So do prompts with the same `key`,
    for instance those that a tokenizer folds together.

    The distinct prompts are ordered by a hash of their content and the seed. The first
    round(fraction · n) of them, at least 1 and at most n − 1, are for validation. So the split
    depends neither on the order of the file nor on the machine. With a fraction of 0 everything
    is for training.

    Raises:
        RankingsError: the fraction is above 0 and there are fewer than two distinct prompts.
    """
    if fraction == 0:
        return list(rankings), []
    groups: dict[Hashable, list[Conversation]] = {}
    for prompt in {ranking.prompt for ranking in rankings}:
        groups.setdefault(key(prompt), []).append(prompt)
    if len(groups) < 2:
        raise RankingsError(
            [
                f"a validation split needs at least 2 distinct prompts; there is {len(groups)}: "
                "give more data or --validation-fraction 0"
            ]
        )
    ordered = sorted(
        groups.values(), key=lambda group: min(_prompt_hash(prompt, seed) for prompt in group)
    )
    num_validation = min(max(round(fraction * len(ordered)), 1), len(ordered) - 1)
    validation_prompts = {prompt for group in ordered[:num_validation] for prompt in group}
    training = [ranking for ranking in rankings if ranking.prompt not in validation_prompts]
    validation = [ranking for ranking in rankings if ranking.prompt in validation_prompts]
    return training, validation


def _prompt_hash(prompt: Conversation, seed: int) -> bytes:
    turns = [[message.role, message.content] for message in prompt]
    return hashlib.sha256(json.dumps([seed, turns]).encode()).digest()
