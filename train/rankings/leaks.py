"""The check that no prompt is both in the training data and in the validation file."""

from collections.abc import Callable, Hashable, Sequence

from kwise.train.rankings.problems import Problems
from kwise.train.rankings.prompt_groups import PromptGroups
from kwise.train.rankings.schema import Ranking
from kwise.types import Conversation


def check_no_leaks(
    training: Sequence[Ranking],
    validation: Sequence[Ranking],
    key: Callable[[Conversation], Hashable],
    name: str,
) -> None:
    """Raise RankingsError if prompts of the two count as one, by the rule of `PromptGroups`.

    It is an error and not a note, because a model that has trained on a prompt knows more about its
    other responses than about new prompts: the figures of the validation would be too good.

    Args:
        name: of the validation file, for the message.

    Raises:
        RankingsError: it names the first validation prompts that are in the training data, each
            with a ranking that has it there, and says how many there are.
    """
    groups = PromptGroups(key)
    training_keys = [groups.add(ranking.prompt) for ranking in training]
    validation_keys = [groups.add(ranking.prompt) for ranking in validation]
    origin_of_group: dict[int, str] = {}
    for ranking, prompt in zip(training, training_keys, strict=True):
        origin_of_group.setdefault(groups.group_of(prompt), ranking.origin)
    problems = Problems()
    for ranking, prompt in zip(validation, validation_keys, strict=True):
        if trained_on := origin_of_group.get(groups.group_of(prompt)):
            problems.add(
                f"{ranking.origin}: prompt: the training data has it too, in {trained_on}",
                origin=ranking.origin,
                reason="the prompt is in the training data too, so that the validation would be "
                "too good: leave it out of one of the files, or make both with kwise data split",
            )
    problems.raise_if_any(name, len(validation), "rankings")
