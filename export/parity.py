"""Check that an artifact gives the checkpoint's rewards, on real text.

The reference is what any user of transformers would write: `apply_chat_template` on the whole
conversation, one conversation a call, in fp32, computed before the export touches the model. It is
compared with the code that serves, `ConversationEncoder` and `GraphSession`: each conversation
alone, all of them in batches of unlike lengths, and some again after that. The conversations are
short and long, and some spell out special tokens.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kwise.engine.model.layouts import LAYOUTS
from kwise.engine.model.session import Session
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.trie import Int64, sort_key
from kwise.errors import ConfigError, InvalidRequest
from kwise.library_errors import cause_of, is_foreign
from kwise.train.checkpoint.ids import id_without_row, num_rows
from kwise.train.checkpoint.transformers_versions import writes_type_ids
from kwise.train.model.layout import alone
from kwise.train.template.render import TemplateRefusal, render
from kwise.types import Conversation, Group, Message, TokenIds

# The longest conversation, in tokens. It reaches attention's largest tile groups, and a CPU scores
# it in seconds.
_LONGEST = 3072
_MAX_ROWS = 4096
# So many short conversations are scored again after the long ones.
_AGAIN = 5
# Some tokenizers have hundreds of special tokens that no template uses.
_MAX_SPECIAL = 8
# Lengths of conversations that are given as token ids.
_SHORT_LENGTHS = (1, 2, 3, 5, 17)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityCase:
    """A conversation and the checkpoint's reward for it.

    Attributes:
        prompt: Messages or token ids.
        response: A string, or token ids like the prompt.
        token_ids: int64[T], the whole conversation as transformers encodes it.
        type_ids: int64[T], for models of text pairs.
        reward: Raw.
    """

    prompt: Conversation | TokenIds
    response: str | TokenIds
    token_ids: Int64
    type_ids: Int64 | None
    reward: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParityReport:
    """Differences between checkpoint and artifact, in units of the raw reward.

    Attributes:
        shortest_tokens: Length of the shortest conversation, in tokens; longest_tokens likewise.
        max_error: Largest difference, each conversation scored alone; mean_error likewise.
        max_batch_change: Largest change of a reward if conversations share a batch, or come after
            others.
        reward_std: Standard deviation of the checkpoint's rewards.
        tolerance: Largest difference that was allowed, see `allowed_difference`.
    """

    num_sequences: int
    shortest_tokens: int
    longest_tokens: int
    max_error: float
    mean_error: float
    max_batch_change: float
    reward_std: float
    tolerance: float


class ParityError(Exception):
    """The artifact does not give the checkpoint's rewards, so nothing is written."""


def allowed_difference(tolerance: float, rewards: Sequence[float]) -> float:
    """Return the largest difference from the checkpoint's reward, in units of the raw reward.

    It is `tolerance`, times the standard deviation of `rewards` if that is above 1, because
    rounding errors grow with the rewards, and because their spread decides how responses rank. The
    export, the golden check at the start of a server, and the tests all use this rule.
    """
    return tolerance * max(1.0, float(np.std(rewards)))


def reference_cases(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    tell: Callable[[str], None],
) -> list[ParityCase]:
    """Compute the checkpoint's rewards of conversations of many lengths up to `max_tokens`.

    Conversations of text come first, then those of token ids.

    Args:
        tell: Gets a note on each kind of conversation to which transformers gives no reward.

    Raises:
        ConfigError: Not even the shortest conversation fits into `max_tokens`, or one has a token
            or a type without a row in the model's embeddings.
    """
    cases, lengths = [], []
    has_template = tokenizer.chat_template is not None
    for asked, response in (
        *_conversations(max_tokens, multi_turn=has_template),
        *_with_special_tokens(_scorable_specials(model, tokenizer, tell)),
    ):
        prompt = _as_accepted(tokenizer, asked, response) if has_template else asked
        if prompt is None:
            continue
        token_ids, type_ids = _reference_tokens(tokenizer, prompt, response)
        _check_rows(model, tokenizer, token_ids, type_ids)
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
    if not lengths:
        raise ConfigError(
            "the chat template refuses every conversation that parity is checked with: give "
            "another one as --chat-template FILE"
        )
    if not cases:
        raise ConfigError(
            f"--max-tokens: the limit of {max_tokens} leaves nothing to check parity with; it must "
            f"be at least {min(lengths)}, the tokens of the shortest conversation"
        )
    if tokenizer.chat_template is not None:
        longest = max((case.token_ids for case in cases), key=len)
        refused: dict[str, list[str]] = {}
        for length in _SHORT_LENGTHS:  # token-id requests may be as short as one token
            token_ids = longest[: min(length, max_tokens)]
            try:
                reward = _plain_reward(model, token_ids)
            except Exception as error:  # BART has no reward without its last token
                if not is_foreign(error):
                    raise
                refused.setdefault(cause_of(error), []).append(str(len(token_ids)))
                continue
            prompt_ids = tuple(token_ids.tolist())
            cases.append(
                ParityCase(
                    prompt=prompt_ids,
                    response=(),
                    token_ids=token_ids,
                    type_ids=None,
                    reward=reward,
                )
            )
        for cause, token_counts in refused.items():
            tell(
                f"parity is not checked with {' and '.join(token_counts)} token ids, to which "
                f"transformers gives no reward: {cause}"
            )
    return cases


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if the tokenizer writes a token or type for which the model has no row."""
    (prompt, response), *_ = _conversations(_LONGEST, multi_turn=False)
    _check_rows(model, tokenizer, *_reference_tokens(tokenizer, prompt, response))


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
        ParityError: Token ids differ, or a reward differs by more than `allowed_difference` or is
            NaN.
    """
    sequences = [encoded(encoder, case) for case in cases]
    expected = np.array([case.reward for case in cases])
    single = np.array([float(session.run([sequence]).rewards[0]) for sequence in sequences])
    together = np.concatenate(
        [session.run(part).rewards for part in _batches(sequences, layout)]
    ).astype(np.float64)
    # Again, after the others: nothing may be left of them in the session.
    again = [int(index) for index in np.argsort([len(s.token_ids) for s in sequences])[:_AGAIN]]
    afterwards = np.array([float(session.run([sequences[i]]).rewards[0]) for i in again])
    differences = np.abs(single - expected)
    report = ParityReport(
        num_sequences=len(sequences),
        shortest_tokens=min(len(sequence.token_ids) for sequence in sequences),
        longest_tokens=max(len(sequence.token_ids) for sequence in sequences),
        max_error=float(differences.max()),
        mean_error=float(differences.mean()),
        max_batch_change=float(
            max(np.abs(together - single).max(), np.abs(afterwards - single[again]).max())
        ),
        reward_std=float(expected.std()),
        tolerance=allowed_difference(tolerance, expected.tolist()),
    )
    # Negated, so that NaN fails too.
    if not max(report.max_error, report.max_batch_change) <= report.tolerance:
        num_tokens = len(sequences[int(differences.argmax())].token_ids)
        raise ParityError(
            f"rewards differ from the checkpoint's by up to {report.max_error:.2e} (at "
            f"{num_tokens} tokens) and change with the batch composition by up to "
            f"{report.max_batch_change:.2e}; {report.tolerance:.1e} is allowed at their standard "
            f"deviation of {report.reward_std:.2g} (--tolerance)"
        )
    return report


def shipped_conversations() -> list[tuple[str, str]]:
    """Return the prompts and responses that are shipped with kwise, all of a single turn."""
    lines = Path(__file__).with_name("conversations.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["prompt"], entry["response"]) for entry in map(json.loads, lines)]


def _conversations(max_tokens: int, multi_turn: bool) -> list[tuple[Conversation, str]]:
    """Return the shipped conversations and, with `multi_turn`, longer ones made of their turns."""
    pairs = shipped_conversations()
    cases: list[tuple[Conversation, str]] = [
        ((Message(role="user", content=p),), r) for p, r in pairs
    ]
    if not multi_turn:
        # The first texts of each half, up to a quarter of the limit and up to nearly all of it.
        for share in (4, 1):
            characters = 3 * min(_LONGEST, max_tokens) // share // 2
            prompt = " ".join(p for p, _ in pairs * 20)[:characters]
            response = " ".join(r for _, r in pairs * 20)[:characters]
            cases.append(((Message(role="user", content=prompt),), response))
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


def _as_accepted(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, response: str
) -> Conversation | None:
    """Return the prompt, or all of it in one question if the chat template refuses its turns.

    Returns None if the template refuses both.
    """
    question = Message(role="user", content="\n\n".join(message.content for message in prompt))
    for accepted in (prompt, (question,)):
        try:
            render(tokenizer, (*accepted, Message(role="assistant", content=response)))
        except TemplateRefusal:
            continue
        return accepted
    return None


def _scorable_specials(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tell: Callable[[str], None]
) -> list[str]:
    """Return up to `_MAX_SPECIAL` special tokens with which a text has a reward in transformers.

    Those of images have none, for instance. `tell` gets a note that names them.
    """
    scorable: list[str] = []
    refused: dict[str, list[str]] = {}
    prompt = (Message(role="user", content="Hi"),)
    for token, token_id in zip(
        tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True
    ):
        if len(scorable) == _MAX_SPECIAL:
            break
        try:
            token_ids, type_ids = _reference_tokens(tokenizer, prompt, f"Hello {token} there")
            if token_id not in token_ids:
                continue
            _plain_reward(model, token_ids, type_ids)
        except Exception as error:
            if not is_foreign(error):
                raise
            refused.setdefault(cause_of(error), []).append(token)
        else:
            scorable.append(token)
    for cause, tokens in refused.items():
        tell(
            f"parity is not checked with texts that contain {' or '.join(tokens)}, to which "
            f"transformers gives no reward: {cause}"
        )
    return scorable


def _with_special_tokens(special: Sequence[str]) -> list[tuple[Conversation, str]]:
    """Return conversations whose texts spell out special tokens, different numbers of each.

    Some models read the reward at such a token, or count it. In a batch the token of one text must
    not change the reward of another.
    """
    prompt: Conversation = (Message(role="user", content="What ends a text?"),)
    cases = [(prompt, f"This does: {token} Or does it?") for token in special]
    if special:
        all_of_them = " ".join(special)
        asked = (Message(role="user", content=f"What are {all_of_them}?"),)
        cases += [(asked, "Special tokens."), (prompt, f"{all_of_them} and {all_of_them}")]
    return cases


def _reference_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, response: str
) -> tuple[Int64, Int64 | None]:
    """Return the token ids and type ids that transformers gives the whole conversation.

    A tokenizer without a chat template reads a pair of texts, and only then there are type ids,
    unless the tokenizer writes none for its model.
    """
    if tokenizer.chat_template is None:
        has_types = writes_type_ids(tokenizer)
        pair = tokenizer(prompt[0].content, response, return_token_type_ids=has_types)
        type_ids = np.array(pair["token_type_ids"], np.int64) if has_types else None
        return np.array(pair["input_ids"], np.int64), type_ids
    messages = [
        {"role": m.role, "content": m.content}
        for m in (*prompt, Message(role="assistant", content=response))
    ]
    return np.array(
        tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False), np.int64
    ), None


def _check_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    token_ids: Int64,
    type_ids: Int64 | None,
) -> None:
    """Raise ConfigError if a token or a type has no row in the model's embeddings."""
    if problem := id_without_row(token_ids.tolist(), tokenizer, num_rows(model)):
        raise ConfigError(f"a conversation as the tokenizer writes it: {problem}")
    num_types = getattr(model.config, "type_vocab_size", 0)
    if type_ids is not None and 0 < num_types <= type_ids.max():
        raise ConfigError(
            f"the tokenizer gives the second text of a pair type {type_ids.max()}, and the model "
            f"has {num_types} types (type_vocab_size): give it a tokenizer that writes type 0"
        )


def _plain_reward(model: PreTrainedModel, token_ids: Int64, type_ids: Int64 | None = None) -> float:
    """Return the reward that transformers computes for one unpadded conversation."""
    inputs = alone(model, torch.from_numpy(token_ids)[None])
    if type_ids is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.from_numpy(type_ids)[None]
    with torch.inference_mode():
        return float(model(**inputs).logits[0, 0])


def encoded(encoder: ConversationEncoder, case: ParityCase) -> EncodedSequence:
    """Encode the case as the engine does.

    Raises:
        ParityError: The engine refuses the conversation, or its token ids are not transformers'.
    """
    group: Any = Group(prompt=case.prompt, responses=(case.response,))  # type: ignore[arg-type]
    (outcome,) = encoder.encode(group)
    if isinstance(outcome, InvalidRequest):
        raise ParityError(f"the engine refuses a conversation that the checkpoint takes: {outcome}")
    token_ids, expected = outcome.token_ids, case.token_ids
    if outcome.num_tokens != len(expected) or (token_ids != expected[: len(token_ids)]).any():
        raise ParityError("the engine and transformers tokenise a conversation differently")
    return outcome


def _batches(sequences: Sequence[EncodedSequence], layout: str) -> list[list[EncodedSequence]]:
    """Split the sequences, in order, into batches of up to `_MAX_ROWS` rows.

    One batch of all, padded to the longest, would need gigabytes.
    """
    batches: list[list[EncodedSequence]] = []
    batch = LAYOUTS[layout].new_batch(())
    for sequence in sequences:
        key = sort_key(sequence.token_ids)
        if not batches or batch.rows_with(key) > _MAX_ROWS:
            batches.append([])
            batch = LAYOUTS[layout].new_batch(())
        batch.add(key)
        batches[-1].append(sequence)
    return batches
