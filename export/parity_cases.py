"""The checkpoint's rewards of conversations, to compare an artifact's rewards with.

They are computed as any user of transformers would: `apply_chat_template` on the whole
conversation, one conversation a call, in fp32, before the export touches the model. With mean
pooling, which transformers does not have, the backbone's hidden states of the response go through
the head, and the reward is the mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from kwise.engine.trie import Int64
from kwise.errors import ConfigError
from kwise.export.parity_conversations import conversations, conversations_with_special_tokens
from kwise.libraries.errors import cause_of, is_foreign
from kwise.train.checkpoint.ids import id_without_row, num_rows, text_config
from kwise.train.checkpoint.pooling import header_of
from kwise.train.checkpoint.transformers_versions import writes_type_ids
from kwise.train.model.batch.layout import alone
from kwise.train.template.render import TemplateRefusal, render
from kwise.types import Conversation, Message, RawReward, TokenIds

_T = TypeVar("_T")

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
        reward: Raw, of each member if the model has members.
    """

    prompt: Conversation | TokenIds
    response: str | TokenIds
    token_ids: Int64
    type_ids: Int64 | None
    reward: RawReward


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
        *conversations(max_tokens, multi_turn=has_template),
        *conversations_with_special_tokens(_scorable_specials(model, tokenizer, tell)),
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
        for length in _SHORT_LENGTHS:  # a request with token ids may have a single one
            token_ids = longest[: min(length, max_tokens)]
            # BART has no reward without its last token.
            plain_reward = partial(_plain_reward, model, token_ids)
            short_reward = _unless_refused(plain_reward, str(len(token_ids)), refused)
            if short_reward is not None:
                cases.append(
                    ParityCase(
                        prompt=tuple(token_ids.tolist()),
                        response=(),
                        token_ids=token_ids,
                        type_ids=None,
                        reward=short_reward,
                    )
                )
        _tell_refused(refused, lambda counts: f"{' and '.join(counts)} token ids", tell)
    return cases


def check_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError if the tokenizer writes a token or type for which the model has no row."""
    (prompt, response), *_ = conversations(multi_turn=False)
    _check_rows(model, tokenizer, *_reference_tokens(tokenizer, prompt, response))


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
    prompt = (Message(role="user", content="Hi"),)

    def has_reward(token: str, token_id: int) -> bool:
        token_ids, type_ids = _reference_tokens(tokenizer, prompt, f"Hello {token} there")
        if token_id not in token_ids:
            return False
        _plain_reward(model, token_ids, type_ids)
        return True

    scorable: list[str] = []
    refused: dict[str, list[str]] = {}
    for token, token_id in zip(
        tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True
    ):
        if len(scorable) == _MAX_SPECIAL:
            break
        if _unless_refused(partial(has_reward, token, token_id), token, refused):
            scorable.append(token)
    _tell_refused(refused, lambda tokens: f"texts that contain {' or '.join(tokens)}", tell)
    return scorable


def _unless_refused(
    compute: Callable[[], _T], item: str, refused: dict[str, list[str]]
) -> _T | None:
    """Return `compute()`. If it fails in another library, note the item and return None."""
    try:
        return compute()
    except Exception as error:
        if not is_foreign(error):
            raise
        refused.setdefault(cause_of(error), []).append(item)
        return None


def _tell_refused(
    refused: Mapping[str, Sequence[str]],
    describe: Callable[[Sequence[str]], str],
    tell: Callable[[str], None],
) -> None:
    for cause, items in refused.items():
        tell(
            f"parity is not checked with {describe(items)}, to which transformers gives no reward: "
            f"{cause}"
        )


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


def _plain_reward(
    model: PreTrainedModel, token_ids: Int64, type_ids: Int64 | None = None
) -> RawReward:
    """Return the reward that transformers computes for one unpadded conversation."""
    if (header := header_of(model.config)) is not None:
        return _mean_reward(model, token_ids, header)
    inputs = alone(model, torch.from_numpy(token_ids)[None])
    if type_ids is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = torch.from_numpy(type_ids)[None]
    with torch.inference_mode():
        members = model(**inputs).logits[0].tolist()
    return tuple(members) if len(members) > 1 else float(members[0])


def _mean_reward(model: PreTrainedModel, token_ids: Int64, header: TokenIds) -> RawReward:
    """Return the mean reward of the tokens after the last `header`; all without it, at least one.

    Padding tokens at the end are not read, as transformers skips them for other models.
    """
    ids = token_ids.tolist()
    while len(ids) > 1 and ids[-1] == text_config(model.config).pad_token_id:
        ids.pop()
    ends = [
        i for i in range(len(header), len(ids) + 1) if tuple(ids[i - len(header) : i]) == header
    ]
    start = min(max(ends, default=0), len(ids) - 1)
    with torch.inference_mode():
        states = model.base_model(torch.tensor([ids])).last_hidden_state[0, start:]
        members = model.score(states).double().mean(0).tolist()
    return tuple(members) if len(members) > 1 else float(members[0])
