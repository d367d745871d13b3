"""TRL's preference type, https://huggingface.co/docs/trl/dataset_formats.

    {"prompt", "chosen", "rejected"}   explicit prompt; each value is a string or messages
    {"chosen", "rejected"}             implicit prompt: the common beginning

Also accepted: `chosen` with the whole conversation beside a prompt (HuggingFaceH4/
ultrafeedback_binarized), and a prompt under another name with a `system` column (--prompt-column;
Intel/orca_dpo_pairs). Scores are kept: `score_chosen` and `score_rejected`, distilabel's
`chosen_rating` and `rejected_rating` (with `-` in older files), and TRL's `margin`
(https://github.com/huggingface/trl/pull/719), which is written as the scores margin and 0 because
only the difference has a meaning.
"""

from collections.abc import Iterator
from os.path import commonprefix

from kwise.train.data.rows.fields import (
    as_messages,
    as_string,
    looks_like_messages,
    refuse,
    required,
    user_prompt,
)
from kwise.train.data.rows.items import ReadOptions, Row, RowItem
from kwise.train.data.rows.preference_pair import pair_of_conversations, pair_of_texts
from kwise.train.data.rows.transcript import is_hh, parse_hh, parse_hh_prompt
from kwise.types import Conversation, Message

IMPLICIT_PROMPT = "prompt taken from what chosen and rejected have in common"
_LIKELY_PROMPTS = ("question", "instruction", "input", "query", "context")


def read_trl(row: Row, options: ReadOptions) -> Iterator[RowItem]:
    """Yield the pair of a row."""
    chosen, rejected = required(row, "chosen"), required(row, "rejected")
    if looks_like_messages(chosen) != looks_like_messages(rejected):
        refuse("rejected", "differs from chosen in type: one is a string, the other messages")
    column = options.prompt_column or "prompt"
    if options.prompt_column:
        required(row, column)
    if row.get(column) is None:
        yield _implicit_prompt(row)
    else:
        yield _explicit_prompt(row, column)


def _implicit_prompt(row: Row) -> RowItem:
    chosen, rejected = row["chosen"], row["rejected"]
    if likely := [name for name in _LIKELY_PROMPTS if row.get(name)]:
        refuse(
            "row",
            f"has no 'prompt', but {likely[0]!r}; if that is the prompt, use "
            f"--prompt-column {likely[0]}",
        )
    if looks_like_messages(chosen):
        return pair_of_conversations(
            row, as_messages(chosen, "chosen"), as_messages(rejected, "rejected")
        )
    texts = as_string(chosen, "chosen"), as_string(rejected, "rejected")
    return pair_of_texts(row, *_split_common_beginning(*texts), note=IMPLICIT_PROMPT)


def _explicit_prompt(row: Row, column: str) -> RowItem:
    prompt = _prompt(row, column)
    if looks_like_messages(row["chosen"]):
        chosen, rejected = (
            _with_prompt(prompt, as_messages(row[key], key), key) for key in ("chosen", "rejected")
        )
        return pair_of_conversations(row, chosen, rejected)
    texts = as_string(row["chosen"], "chosen"), as_string(row["rejected"], "rejected")
    if not (isinstance(row[column], str) and is_hh(row[column])):
        return pair_of_texts(row, prompt, *texts)
    if all(map(is_hh, texts)):
        return pair_of_conversations(
            row, parse_hh(texts[0], "chosen"), parse_hh(texts[1], "rejected")
        )
    # The space after "Assistant:" belongs to the marker.
    return pair_of_texts(row, prompt, texts[0].strip(), texts[1].strip())


def _prompt(row: Row, column: str) -> Conversation:
    """Return the prompt, after the system message if there is a `system` column."""
    value = row[column]
    system = row.get("system")
    before = (Message(role="system", content=as_string(system, "system")),) if system else ()
    if isinstance(value, str):
        return before + (parse_hh_prompt(value, column) if is_hh(value) else user_prompt(value))
    return before + as_messages(value, column)


def _with_prompt(prompt: Conversation, turns: Conversation, key: str) -> Conversation:
    """Return the whole conversation of `key`, whose turns may or may not repeat the prompt.

    Either side may have a system message that the other lacks.
    """
    if turns[: len(prompt)] == prompt:
        return turns
    if prompt[0].role == "system" and turns[: len(prompt) - 1] == prompt[1:]:
        return prompt[:1] + turns
    if turns[0].role == "system" and turns[1 : len(prompt) + 1] == prompt:
        return turns
    if turns[0].role != "assistant":
        refuse(key, "begins neither with the prompt nor with the assistant's turn")
    return prompt + turns


def _split_common_beginning(chosen: str, rejected: str) -> tuple[Conversation, str, str]:
    """Return (prompt, chosen, rejected) of two texts that begin with the prompt.

    Like TRL's `extract_prompt`, except that a word with a common beginning is not cut. The texts
    may agree beyond the prompt, so the report counts such rows.
    """
    end = len(commonprefix([chosen, rejected]))
    while end and not chosen[end - 1].isspace():
        end -= 1
    end = len(chosen[:end].rstrip())  # the space goes with the completion, as in TRL
    if not end:
        refuse("chosen", "has no beginning in common with rejected, so there is no prompt")
    return user_prompt(chosen[:end]), chosen[end:], rejected[end:]
