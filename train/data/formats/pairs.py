"""Formats of a chosen and a rejected response.

- hh-rlhf, `{"chosen", "rejected"}`: two whole conversations as "\\n\\nHuman: …\\n\\nAssistant: …"; the turns that they share are
  the prompt (https://huggingface.co/datasets/Anthropic/hh-rlhf; Bai et al. 2022, arXiv:2204.05862).
- trl, the preference type of https://huggingface.co/docs/trl/dataset_formats, each column a text or messages: explicit
  prompt `{"prompt", "chosen", "rejected"}`, implicit prompt `{"chosen", "rejected"}`. Also the mixture of
  https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized, where `prompt` is a text and `chosen` the
  conversation from its beginning; and `prompt` under another name (--prompt-column) with a `system` column, as in
  https://huggingface.co/datasets/Intel/orca_dpo_pairs. Scores that come along are kept: `score_chosen` and `score_rejected` there,
  `chosen_rating` and `rejected_rating` (with `-` in older files) from distilabel, and TRL's `margin`
  (https://github.com/huggingface/trl/pull/719), written as the scores `margin` and 0, of which only the difference means
  anything.
- stack-exchange-paired, `{"question", "response_j", "response_k"}`, j the better
  (https://huggingface.co/datasets/lvwerra/stack-exchange-paired).

Plain texts without a prompt are split where a word begins to differ, which need not be where the prompt ended: that is counted. The
label decides. Scores that do not put `chosen` above `rejected` (UltraFeedback has ties) are left out and counted.
"""

from collections.abc import Iterator
from os.path import commonprefix

from kwise.train.data.formats.fields import (
    as_text,
    is_messages,
    messages,
    number,
    refuse,
    required,
    text,
    user,
)
from kwise.train.data.formats.items import Compared, Item, Left, ReadOptions, Row
from kwise.train.data.formats.transcript import is_hh, num_common, parse_hh, parse_hh_prompt
from kwise.types import Conversation, Message

_LIKELY_PROMPTS = ("question", "instruction", "input", "query", "context")
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
SPLIT = "prompt taken from what chosen and rejected have in common"
PARTED = "the two conversations part before the last turn, and a response is one turn"


def read_hh(row: Row, _: ReadOptions) -> Iterator[Item]:
    chosen, rejected = (parse_hh(text(row, key), key) for key in ("chosen", "rejected"))
    yield _of_conversations(row, chosen, rejected)


def read_stack_exchange_paired(row: Row, _: ReadOptions) -> Iterator[Item]:
    yield _pair(row, user(text(row, "question")), text(row, "response_j"), text(row, "response_k"))


def read_trl(row: Row, options: ReadOptions) -> Iterator[Item]:
    chosen, rejected = required(row, "chosen"), required(row, "rejected")
    if is_messages(chosen) != is_messages(rejected):
        refuse("rejected", "is not of the kind of chosen: one is a text, the other messages")
    column = options.prompt_column or "prompt"
    if options.prompt_column:
        required(row, column)
    if row.get(column) is None:
        if likely := [name for name in _LIKELY_PROMPTS if row.get(name)]:
            refuse(
                "row",
                f"has no 'prompt', but {likely[0]!r}; if that is the prompt, say so: --prompt-column {likely[0]}",
            )
        if is_messages(chosen):
            yield _of_conversations(row, messages(chosen, "chosen"), messages(rejected, "rejected"))
        else:
            yield _pair(
                row,
                *_split_texts(as_text(chosen, "chosen"), as_text(rejected, "rejected")),
                note=SPLIT,
            )
        return
    prompt = _prompt(row, column)
    if is_messages(chosen):
        yield _of_conversations(
            row, *(_whole(prompt, messages(row[key], key), key) for key in ("chosen", "rejected"))
        )
        return
    chosen, rejected = as_text(chosen, "chosen"), as_text(rejected, "rejected")
    if not (isinstance(row[column], str) and is_hh(row[column])):
        yield _pair(row, prompt, chosen, rejected)
    elif is_hh(chosen) and is_hh(rejected):
        yield _of_conversations(row, parse_hh(chosen, "chosen"), parse_hh(rejected, "rejected"))
    else:  # the space after "Assistant:" is the mark's
        yield _pair(row, prompt, chosen.strip(), rejected.strip())


def _prompt(row: Row, column: str) -> Conversation:
    """The prompt, after the system message where a column of its own has one."""
    value = row[column]
    system = row.get("system")
    before = (Message(role="system", content=as_text(system, "system")),) if system else ()
    if isinstance(value, str):
        return before + (parse_hh_prompt(value, column) if is_hh(value) else user(value))
    return before + messages(value, column)


def _whole(prompt: Conversation, turns: Conversation, key: str) -> Conversation:
    """The conversation of `key`, which may begin with the whole prompt or follow it. Either may have a system message that the
    other has not."""
    if turns[: len(prompt)] == prompt:
        return turns
    if (
        prompt[0].role == "system" and turns[: len(prompt) - 1] == prompt[1:]
    ):  # it has a column of its own
        return prompt[:1] + turns
    if turns[0].role == "system" and turns[1 : len(prompt) + 1] == prompt:
        return turns
    if turns[0].role != "assistant":
        refuse(key, "neither begins with the prompt nor with the assistant's turn")
    return prompt + turns


def _of_conversations(row: Row, chosen: Conversation, rejected: Conversation) -> Item:
    """The pair at the end of what two conversations share."""
    shared = num_common(chosen, rejected)
    if chosen == rejected:
        return Left(what="row", reason="chosen and rejected are the same")
    if not shared:
        refuse("chosen", "has no turn in common with rejected, so there is no prompt")
    last = (chosen[shared:], rejected[shared:])
    if any(len(turns) != 1 or turns[0].role != "assistant" for turns in last):
        return Left(what="row", reason=PARTED)
    return _pair(row, chosen[:shared], last[0][0].content, last[1][0].content)


def _split_texts(chosen: str, rejected: str) -> tuple[Conversation, str, str]:
    """Prompt and completions of two plain texts. As TRL's `extract_prompt`, but for a word that begins alike: it is not cut."""
    shared = len(commonprefix([chosen, rejected]))
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    shared = len(chosen[:shared].rstrip())  # the space goes with the completion, as in TRL
    if not shared:
        refuse("chosen", "has no beginning in common with rejected, so there is no prompt")
    return user(chosen[:shared]), chosen[shared:], rejected[shared:]


def _pair(row: Row, prompt: Conversation, chosen: str, rejected: str, *, note: str = "") -> Item:
    if chosen == rejected:
        return Left(what="row", reason="chosen and rejected are the same")
    scores = _scores(row)
    if scores is not None and not scores[0] > scores[1]:
        unlike = "scores do not put chosen above rejected: the label is kept, the scores are not"
        scores, note = None, f"{note}; {unlike}" if note else unlike
    return Compared(prompt=prompt, better=chosen, worse=rejected, scores=scores, note=note)


def _scores(row: Row) -> tuple[float, float] | None:
    for chosen, rejected in _SCORES:
        if row.get(chosen) is not None and row.get(rejected) is not None:
            return number(row, chosen), number(row, rejected)
    return (number(row, "margin"), 0.0) if row.get("margin") is not None else None
