"""The text on which precisions are measured: rankings of the user, or the shipped conversations."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.errors import ConfigError, InvalidRequest
from kwise.export.parity_conversations import shipped_conversations
from kwise.export.precision.agreement import MAX_GROUPS
from kwise.train.data.read import read_rankings
from kwise.train.rankings.problems import Problems
from kwise.types import Conversation, Group, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class TextGroup:
    """A prompt and its responses; `origin` is "FILE:LINE", or "" for shipped ones."""

    origin: str
    prompt: Conversation
    responses: tuple[str, ...]


def print_line(line: str) -> None:
    """Print a line on standard error; standard output gets the result alone."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def read_text_groups(rankings: str, tell: Callable[[str], None] = print_line) -> list[TextGroup]:
    """Read prompts with their responses from a file of rankings, or return the shipped ones.

    Args:
        rankings: A file of any format that `kwise data convert` reads; "" for the shipped
            conversations. There each prompt has seven responses: its own, two parts of it, and
            those of four other prompts.
        tell: Gets the lines that say what was converted and left out.

    Raises:
        RankingsError: The file has rows that cannot be read.
        ConfigError: The file is missing.
    """
    if not rankings:
        return _shipped_groups()
    return [
        TextGroup(origin=ranking.origin, prompt=ranking.prompt, responses=ranking.responses)
        for ranking in read_rankings(rankings, allow_tied=True, progress=tell)
    ]


def encode_groups(
    encoder: ConversationEncoder,
    text_groups: Sequence[TextGroup],
    tell: Callable[[str], None] = print_line,
    *,
    max_groups: int = 2 * MAX_GROUPS,
) -> list[list[EncodedSequence]]:
    """Encode the first groups of which at least two responses can be scored, without the others.

    Args:
        tell: Gets a line about each response that is left out, with the limit, and their number.
        max_groups: The number of groups to encode.

    Raises:
        ConfigError: No group has two responses that the model can read.
    """
    groups: list[list[EncodedSequence]] = []
    problems = Problems()
    num_responses = num_left_out = num_groups_left_out = 0
    for text_group in text_groups:
        if len(groups) == max_groups:
            break
        group, errors = _encode(encoder, text_group)
        for error in errors:
            origin = f"--rankings: {text_group.origin}"
            problems.add(f"{origin}: skipped: {error}", origin=origin)
        num_responses += len(text_group.responses)
        if len(group) > 1:
            groups.append(group)
            num_left_out += len(errors)
        else:
            num_left_out += len(text_group.responses)
            num_groups_left_out += 1
    if num_left_out:
        is_given = bool(text_groups[0].origin)
        for line in problems.lines("--rankings", num_responses, "responses") if is_given else ():
            tell(line)
        tell(
            f"{'--rankings' if is_given else 'shipped conversations'}: left out {num_left_out} of "
            f"{num_responses} responses, among them those of {num_groups_left_out} prompts with "
            "fewer than two responses within the limits"
        )
    if not groups:
        raise ConfigError(
            "--rankings, --max-tokens: precisions cannot be measured, because no prompt has two "
            "responses within the limit of tokens"
        )
    return groups


def _encode(
    encoder: ConversationEncoder, text_group: TextGroup
) -> tuple[list[EncodedSequence], list[InvalidRequest]]:
    """Return the responses that can be scored, and the errors of the others.

    An error of the prompt is the only one.
    """
    try:
        outcomes = encoder.encode(Group(prompt=text_group.prompt, responses=text_group.responses))
    except InvalidRequest as error:
        return [], [error]
    return (
        [outcome for outcome in outcomes if not isinstance(outcome, InvalidRequest)],
        [outcome for outcome in outcomes if isinstance(outcome, InvalidRequest)],
    )


def _shipped_groups() -> list[TextGroup]:
    """Return groups of the shipped conversations, in two halves that share no response.

    `split` divides them between the halves, so no text both measures and chooses.
    """
    conversations = shipped_conversations()
    half = -(-len(conversations) // 2)
    groups = _with_other_responses(conversations[:half])
    return groups + _with_other_responses(conversations[half:])


def _with_other_responses(conversations: Sequence[tuple[str, str]]) -> list[TextGroup]:
    """Give each prompt its response, two parts of it, and the responses of the next four."""
    groups: list[TextGroup] = []
    for number, (prompt, response) in enumerate(conversations):
        words = response.split(" ")
        half = len(words) // 2
        parts = (" ".join(words[: half + 1]), " ".join(words[half:]))
        others = [conversations[(number + step) % len(conversations)][1] for step in (1, 2, 3, 4)]
        responses = dict.fromkeys((response, *parts, *others))
        groups.append(
            TextGroup(
                origin="",
                prompt=(Message(role="user", content=prompt),),
                responses=tuple(responses),
            )
        )
    return groups
