"""Is the artifact the checkpoint? Rewards of plain transformers against those of the engine's own code, on real text.

The reference is what any reader would write: `apply_chat_template` of the whole conversation, one conversation a call, fp32.
The artifact side is what serves: `ConversationEncoder` and `OnnxSession`, each conversation alone and all in one batch.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kwise.engine.conversation import ConversationEncoder, EncodedSequence
from kwise.engine.errors import InvalidRequest
from kwise.engine.filling import new_filling
from kwise.engine.trie import Int64
from kwise.engine.session import Session
from kwise.engine.types import Conversation, Group, Message

# Conversations are read up to this length: attention's longest classes are exercised, and a CPU needs seconds.
_LONGEST = 3072
_MAX_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCase:
    """One conversation with the checkpoint's reward for it."""

    prompt: Conversation
    response: str
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Largest and mean absolute difference between checkpoint and artifact, each conversation scored alone, and the
    largest change of a reward when all share a batch. Units of the raw reward; `reward_std` is its spread over them."""

    num_sequences: int
    shortest_tokens: int
    longest_tokens: int
    max_difference: float
    mean_difference: float
    max_change_with_company: float
    reward_std: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class ParityError(Exception):
    """Checkpoint and artifact disagree; nothing is written."""


def conversations(max_tokens: int, multi_turn: bool) -> list[tuple[Conversation, str]]:
    """The shipped conversations, and longer ones made of their turns; short ones alone for models of single turns."""
    lines = Path(__file__).with_name("conversations.jsonl").read_text(encoding="utf-8").splitlines()
    pairs = [(entry["prompt"], entry["response"]) for entry in map(json.loads, lines)]
    cases: list[tuple[Conversation, str]] = [((Message(role="user", content=p),), r) for p, r in pairs]
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


def plain_reward(model: PreTrainedModel, token_ids: Int64, type_ids: Int64 | None = None) -> float:
    """transformers' own forward on one unpadded conversation."""
    inputs = {"input_ids": torch.from_numpy(token_ids)[None]}
    if type_ids is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.from_numpy(type_ids)[None]
    with torch.inference_mode():
        return float(model(**inputs).logits[0, 0])


def reference_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Conversation, response: str) -> tuple[Int64, Int64 | None]:
    """(token ids, type ids) as transformers makes them of the whole conversation."""
    if tokenizer.chat_template is None:
        pair = tokenizer(prompt[0].content, response, return_token_type_ids=True)
        return np.array(pair["input_ids"], np.int64), np.array(pair["token_type_ids"], np.int64)
    messages = [{"role": m.role, "content": m.content} for m in (*prompt, Message(role="assistant", content=response))]
    return np.array(tokenizer.apply_chat_template(messages, tokenize=True), np.int64), None


def check_parity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoder: ConversationEncoder,
    session: Session,
    *,
    layout: str,
    max_tokens: int,
    tolerance: float,
) -> tuple[ParityReport, list[ParityCase]]:
    """Compare, and return the report with the shipped conversations' rewards by the checkpoint.

    Raises:
        ParityError: tokens differ, or a reward differs by more than `tolerance`, or is not a number.
    """
    cases: list[ParityCase] = []
    batch: list[EncodedSequence] = []
    expected: list[float] = []
    for prompt, response in conversations(max_tokens, multi_turn=tokenizer.chat_template is not None):
        token_ids, type_ids = reference_tokens(tokenizer, prompt, response)
        if len(token_ids) > max_tokens:
            continue
        (encoded,) = encoder.encode(Group(prompt=prompt, responses=(response,)))
        if isinstance(encoded, InvalidRequest):
            raise ParityError(f"the engine refuses a conversation that the checkpoint takes: {encoded}")
        if encoded.num_tokens != len(token_ids) or (encoded.token_ids != token_ids[: len(encoded.token_ids)]).any():
            raise ParityError("the engine and transformers tokenise a conversation differently")
        cases.append(ParityCase(prompt=prompt, response=response, reward=plain_reward(model, token_ids, type_ids)))
        batch.append(encoded)
        expected.append(cases[-1].reward)
    if tokenizer.chat_template is not None:
        for length in (1, 2, 3, 5, 17):  # token-id requests may be as short as one token
            (encoded,) = encoder.encode(Group(prompt=tuple(batch[0].token_ids[:length].tolist()), responses=((),)))
            assert isinstance(encoded, EncodedSequence)
            expected.append(plain_reward(model, batch[0].token_ids[:length]))
            batch.append(encoded)
    return _report(session, batch, np.array(expected), layout, tolerance), cases


def _batches(sequences: Sequence[EncodedSequence], layout: str) -> list[list[EncodedSequence]]:
    """The sequences in order, in batches of up to `_MAX_ROWS` rows: all padded to the longest would need gigabytes."""
    batches: list[list[EncodedSequence]] = []
    filling = new_filling(layout)
    for sequence in sequences:
        if not batches or filling.rows_with(sequence.token_ids) > _MAX_ROWS:
            batches.append([])
            filling = new_filling(layout)
        filling.add(sequence.token_ids)
        batches[-1].append(sequence)
    return batches


def _report(
    session: Session,
    batch: Sequence[EncodedSequence],
    expected: "np.ndarray[Any, np.dtype[np.float64]]",
    layout: str,
    tolerance: float,
) -> ParityReport:
    alone = np.array([float(session.run([sequence]).rewards[0]) for sequence in batch])
    together = np.concatenate([session.run(part).rewards for part in _batches(batch, layout)]).astype(np.float64)
    differences = np.abs(alone - expected)
    report = ParityReport(
        num_sequences=len(batch),
        shortest_tokens=min(len(sequence.token_ids) for sequence in batch),
        longest_tokens=max(len(sequence.token_ids) for sequence in batch),
        max_difference=float(differences.max()),
        mean_difference=float(differences.mean()),
        max_change_with_company=float(np.abs(together - alone).max()),
        reward_std=float(expected.std()),
    )
    worst = max(report.max_difference, report.max_change_with_company)
    if not worst <= tolerance:
        at = len(batch[int(differences.argmax())].token_ids)
        raise ParityError(
            f"rewards differ from the checkpoint's by up to {report.max_difference:.2e} (at {at} tokens) and change with "
            f"company by up to {report.max_change_with_company:.2e}; the tolerance is {tolerance:.0e}"
        )
    return report
