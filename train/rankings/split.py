"""The split of rankings into a training and a validation part, by prompt."""

import hashlib
import json
from collections.abc import Callable, Hashable, Sequence

from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.prompt_groups import PromptGroups
from kwise.train.rankings.schema import Ranking
from kwise.types import Conversation


class PromptSplit:
    """Chooses the prompts of the validation part.

    All rankings of a prompt go to the same part, because a model that has trained on a prompt
    knows more about its other responses than about new prompts. So do prompts that count as one,
    see `PromptGroups`.

    The distinct prompts are ordered by a hash of their content and the seed, the smallest one of
    those that count as one. So the split depends neither on the order of the file nor on the
    machine.
    """

    def __init__(
        self, seed: int, key: Callable[[Conversation], Hashable] = lambda prompt: prompt
    ) -> None:
        self._seed, self._groups = seed, PromptGroups(key)
        self._hash_by_prompt: dict[int, bytes] = {}

    def add(self, prompt: Conversation) -> int:
        """Add a prompt, and return its `prompt_key`."""
        added, hashed = self._groups.add(prompt), _prompt_hash(prompt, self._seed)
        self._hash_by_prompt[added] = min(hashed, self._hash_by_prompt.get(added, hashed))
        return added

    def validation_keys(self, fraction: float) -> set[int]:
        """Return the `prompt_key`s of the prompts for validation.

        They are the first round(fraction · n) of the n distinct prompts, at least 1 and at most
        n − 1.

        Raises:
            RankingsError: there are fewer than two distinct prompts.
        """
        hash_of_group: dict[int, bytes] = {}
        for prompt, hashed in self._hash_by_prompt.items():
            group = self._groups.group_of(prompt)
            hash_of_group[group] = min(hashed, hash_of_group.get(group, hashed))
        num_prompts = len(hash_of_group)
        if num_prompts < 2:
            raise RankingsError(
                [f"a validation split needs at least 2 distinct prompts; there is {num_prompts}"]
            )
        num_validation = min(max(round(fraction * num_prompts), 1), num_prompts - 1)
        chosen = set(sorted(hash_of_group, key=hash_of_group.__getitem__)[:num_validation])
        return {prompt for prompt in self._groups if self._groups.group_of(prompt) in chosen}


def split_by_prompt(
    rankings: Sequence[Ranking],
    fraction: float,
    seed: int,
    key: Callable[[Conversation], Hashable] = lambda prompt: prompt,
) -> tuple[list[Ranking], list[Ranking]]:
    """Return (training, validation), each in the given order; see `PromptSplit`.

    With a fraction of 0 everything is for training.

    Raises:
        RankingsError: the fraction is above 0 and there are fewer than two distinct prompts.
    """
    if fraction == 0:
        return list(rankings), []
    split = PromptSplit(seed, key)
    prompts = [split.add(ranking.prompt) for ranking in rankings]
    try:
        validation = split.validation_keys(fraction)
    except RankingsError as error:
        advice = "give more data or --validation-fraction 0"
        raise RankingsError([f"{problem}: {advice}" for problem in error.problems]) from None
    parts: tuple[list[Ranking], list[Ranking]] = [], []
    for ranking, prompt in zip(rankings, prompts, strict=True):
        parts[prompt in validation].append(ranking)
    return parts


def _prompt_hash(prompt: Conversation, seed: int) -> bytes:
    turns = [[message.role, message.content] for message in prompt]
    return hashlib.sha256(json.dumps([seed, turns]).encode()).digest()
