"""Golden conversations: those whose rewards are known, so that a server can check its own.

`golden.jsonl` has one conversation a line, with the raw reward that the checkpoint gives it in
PyTorch, or a list of one reward per member.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from kwise.engine.artifact.names import GOLDEN
from kwise.engine.artifact.typed_json import NOT_JSON, convert
from kwise.errors import ArtifactError
from kwise.types import Message, RawReward


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """A conversation and the raw fp32 reward that the checkpoint gives it in PyTorch."""

    prompt: tuple[Message, ...]
    response: str
    reward: RawReward


class _GoldenMessage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    role: str
    content: str


class _GoldenLine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of `golden.jsonl`."""

    prompt: Annotated[tuple[_GoldenMessage, ...], Meta(min_length=1)]
    response: str
    reward: float | tuple[float, ...]


def read_golden(path: Path, num_members: int) -> tuple[Golden, ...]:
    """Read the golden conversations of the artifact in the directory `path`.

    Raises:
        ArtifactError: the file has no golden rewards, or a line is malformed, or does not have one
            reward per member.
    """
    path = path / GOLDEN
    golden = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        place = f"{path}:{number}"
        try:
            content = msgspec.json.decode(line)
        except NOT_JSON as error:
            raise ArtifactError(f"{place}: {error}") from None
        entry = convert(content, _GoldenLine, place)
        num_rewards = len(entry.reward) if isinstance(entry.reward, tuple) else 1
        if num_rewards != num_members:
            raise ArtifactError(
                f"{place}: reward has {num_rewards} numbers, and the model {num_members} members"
            )
        prompt = tuple(
            Message(role=message.role, content=message.content) for message in entry.prompt
        )
        golden.append(Golden(prompt=prompt, response=entry.response, reward=entry.reward))
    if not golden:
        raise ArtifactError(f"{path}: the file is empty; a wrong model would go unnoticed")
    return tuple(golden)
