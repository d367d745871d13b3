"""Is the artifact the checkpoint? Rewards of plain transformers against those of the engine's own code, on real text.

The reference is what any reader would write: `apply_chat_template` of the whole conversation, one conversation a call, fp32,
computed before anything touches the model. The artifact side is what serves: `ConversationEncoder` and `GraphSession`, each
conversation alone and all in batches.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kwise.engine.model.session import Session
from kwise.engine.schedule.batch_builder import batch_builder
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.trie import Int64, sort_key
from kwise.errors import ConfigError, InvalidRequest
from kwise.types import Conversation, Group, Message, TokenIds

# Conversations are read up to this length: attention's longest classes are exercised, and a CPU needs seconds.
_LONGEST = 3072
_MAX_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCase:
    """One conversation, as texts or as token ids, with transformers' token and type ids and the checkpoint's reward for it."""

    prompt: Conversation | TokenIds
    response: str | TokenIds
    token_ids: Int64
    type_ids: Int64 | None
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Largest and mean absolute difference between checkpoint and artifact, each conversation scored alone, and the
    largest change of a reward when all share a batch. Units of the raw reward; `reward_std` is its spread over them, and
    `tolerance` the largest difference that was allowed, see `allowed_difference`."""

    num_sequences: int
    shortest_tokens: int
    longest_tokens: int
    max_error: float
    mean_error: float
    max_batch_change: float
    reward_std: float
    tolerance: float


class ParityError(Exception):
    """Checkpoint and artifact disagree; nothing is written."""


def allowed_difference(tolerance: float, rewards: Sequence[float]) -> float:
    """The largest difference from the checkpoint's reward, in units of the raw reward: `tolerance`, times the standard
    deviation of `rewards` where that is above 1. Rounding grows with the rewards, and what ranks responses is their spread.

    This one rule is the export's, the golden check's at the start of a server, and the tests'.
    """
    return tolerance * max(1.0, float(np.std(rewards)))


def reference_cases(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> list[ParityCase]:
    """The checkpoint's rewards of conversations of many lengths up to `max_tokens`, texts first, then token ids.

    Raises:
        ConfigError: not even the shortest conversation fits into `max_tokens`.
    """
    cases, lengths = [], []
    for prompt, response in _conversations(
        max_tokens, multi_turn=tokenizer.chat_template is not None
    ):
        token_ids, type_ids = _reference_tokens(tokenizer, prompt, response)
        lengths.append(len(token_ids))
        if len(token_ids) <= max_tokens:
            reward = _plain_reward(model, token_ids, type_ids)
            cases.append(
                ParityCase(
                    prompt=prompt,
                    response=response,
                    token_ids=token_ids,
                    type_ids=type_ids,
                    reward=reward,
                )
            )
    if not cases:
        raise ConfigError(
            f"--max-tokens: the limit of {max_tokens} leaves nothing to check parity with; it must be at least "
            f"{min(lengths)}, the tokens of the shortest conversation"
        )
    if tokenizer.chat_template is not None:
        longest = max((case.token_ids for case in cases), key=len)
        for length in (1, 2, 3, 5, 17):  # token-id requests may be as short as one token
            token_ids = longest[: min(length, max_tokens)]
            prompt_ids, reward = tuple(token_ids.tolist()), _plain_reward(model, token_ids)
            cases.append(
                ParityCase(
                    prompt=prompt_ids,
                    response=(),
                    token_ids=token_ids,
                    type_ids=None,
                    reward=reward,
                )
            )
    return cases


def check_parity(
    cases: Sequence[ParityCase],
    encoder: ConversationEncoder,
    session: Session,
    *,
    layout: str,
    tolerance: float,
) -> ParityReport:
    """Compare the engine's rewards with the checkpoint's.

    Raises:
        ParityError: tokens differ, or a reward differs by more than `allowed_difference`, or is not a number.
    """
    sequences = [encoded(encoder, case) for case in cases]
    expected = np.array([case.reward for case in cases])
    alone = np.array([float(session.run([sequence]).rewards[0]) for sequence in sequences])
    together = np.concatenate(
        [session.run(part).rewards for part in _batches(sequences, layout)]
    ).astype(np.float64)
    differences = np.abs(alone - expected)
    report = ParityReport(
        num_sequences=len(sequences),
        shortest_tokens=min(len(sequence.token_ids) for sequence in sequences),
        longest_tokens=max(len(sequence.token_ids) for sequence in sequences),
        max_error=float(differences.max()),
        mean_error=float(differences.mean()),
        max_batch_change=float(np.abs(together - alone).max()),
        reward_std=float(expected.std()),
        tolerance=allowed_difference(tolerance, expected.tolist()),
    )
    if (
        not max(report.max_error, report.max_batch_change) <= report.tolerance
    ):  # also where it is not a number
        at = len(sequences[int(differences.argmax())].token_ids)
        raise ParityError(
            f"rewards differ from the checkpoint's by up to {report.max_error:.2e} (at {at} tokens) and change with "
            f"company by up to {report.max_batch_change:.2e}; {report.tolerance:.1e} is allowed, for their standard "
            f"deviation is {report.reward_std:.2g}"
        )
    return report


def shipped_conversations() -> list[tuple[str, str]]:
    """(prompt, response) of single turns, written for this project."""
    lines = Path(__file__).with_name("conversations.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["prompt"], entry["response"]) for entry in map(json.loads, lines)]


def _conversations(max_tokens: int, multi_turn: bool) -> list[tuple[Conversation, str]]:
    """The shipped conversations, and longer ones made of their turns; short ones alone for models of single turns."""
    pairs = shipped_conversations()
    cases: list[tuple[Conversation, str]] = [
        ((Message(role="user", content=p),), r) for p, r in pairs
    ]
    if not multi_turn:
        return cases
    turns: list[Message] = []
    for repeat in range(40):
        prompt, response = pairs[(repeat * 5) % len(pairs)]
        asked = (*turns, Message(role="user", content=prompt))
        words = sum(len(message.content) for message in asked)
        if words > 3 * min(_LONGEST, max_tokens) // 2:
            break
        if repeat in (3, 7, 15, 31):
            cases.append((asked, response))
        turns = [*asked, Message(role="assistant", content=response)]
    cases.append(((*turns, Message(role="user", content=pairs[0][0])), pairs[0][1]))
    return cases


def _reference_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, response: str
) -> tuple[Int64, Int64 | None]:
    """(token ids, type ids) as transformers makes them of the whole conversation."""
    if tokenizer.chat_template is None:
        pair = tokenizer(prompt[0].content, response, return_token_type_ids=True)
        return np.array(pair["input_ids"], np.int64), np.array(pair["token_type_ids"], np.int64)
    messages = [
        {"role": m.role, "content": m.content}
        for m in (*prompt, Message(role="assistant", content=response))
    ]
    return np.array(tokenizer.apply_chat_template(messages, tokenize=True), np.int64), None


def _plain_reward(model: PreTrainedModel, token_ids: Int64, type_ids: Int64 | None = None) -> float:
    """transformers' own forward on one unpadded conversation."""
    inputs = {"input_ids": torch.from_numpy(token_ids)[None]}
    if type_ids is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.from_numpy(type_ids)[None]
    with torch.inference_mode():
        return float(model(**inputs).logits[0, 0])


def encoded(encoder: ConversationEncoder, case: ParityCase) -> EncodedSequence:
    """The case as the engine reads it. Raises ParityError where that is not what transformers reads."""
    group: Any = Group(prompt=case.prompt, responses=(case.response,))  # type: ignore[arg-type]
    (outcome,) = encoder.encode(group)
    if isinstance(outcome, InvalidRequest):
        raise ParityError(f"the engine refuses a conversation that the checkpoint takes: {outcome}")
    read = outcome.token_ids
    if outcome.num_tokens != len(case.token_ids) or (read != case.token_ids[: len(read)]).any():
        raise ParityError("the engine and transformers tokenise a conversation differently")
    return outcome


def _batches(sequences: Sequence[EncodedSequence], layout: str) -> list[list[EncodedSequence]]:
    """The sequences in order, in batches of up to `_MAX_ROWS` rows: all padded to the longest would need gigabytes."""
    batches: list[list[EncodedSequence]] = []
    batch = batch_builder(layout)(())
    for sequence in sequences:
        key = sort_key(sequence.token_ids)
        if not batches or batch.rows_with(key) > _MAX_ROWS:
            batches.append([])
            batch = batch_builder(layout)(())
        batch.add(key)
        batches[-1].append(sequence)
    return batches
