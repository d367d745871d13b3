"""TRL's preference type, https://huggingface.co/docs/trl/dataset_formats, and its relatives.

    {"prompt", "chosen", "rejected"}   explicit prompt; each value is a string or messages
    {"chosen", "rejected"}             implicit prompt: the common beginning

Also accepted:

- `chosen` with the whole conversation beside a prompt (HuggingFaceH4/ultrafeedback_binarized);
- `instruction`, with `input` if there is one, in place of `prompt`, and `chosen_response`,
  `rejected_response` (LLaMA-Factory's Alpaca format, argilla/ultrafeedback-binarized-preferences);
- `conversations` or `messages` in place of `prompt` (LLaMA-Factory's ShareGPT format);
- `input` with `messages`, and `preferred_output`, `non_preferred_output` (OpenAI's fine-tuning);
- `messages` that end with the chosen answer, and `rejected_response` (ms-swift);
- a prompt under another name (--prompt-column; Intel/orca_dpo_pairs).

Scores are kept: `score_chosen` and `score_rejected`, `chosen-rating`, `chosen_avg_rating` and the
like, and TRL's `margin` (https://github.com/huggingface/trl/pull/719), which is written as the
scores margin and 0 because only the difference has a meaning.
"""

from collections.abc import Iterator
from os.path import commonprefix

from kwise.train.data.rows.fields import as_string, refuse, required, user_prompt
from kwise.train.data.rows.items import ReadOptions, RowItem
from kwise.train.data.rows.messages import as_messages, looks_like_messages
from kwise.train.data.rows.preference_pair import pair_of_conversations, pair_of_texts
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.shapes import prompt_field, turns_in_text
from kwise.train.data.rows.transcript import is_hh, parse_hh, parse_hh_prompt
from kwise.train.data.rows.words import is_between_words
from kwise.types import Conversation, Message

IMPLICIT_PROMPT = "prompt taken from what chosen and rejected have in common"
_SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
)
_REJECTED = ("rejected_response", "rejected_messages")
_PROMPTS = ("prompt", "instruction")
_CONVERSATIONS = ("conversations", "conversation", "messages")
_LIKELY_PROMPTS = ("question", "input", "query", "context")

Side = Conversation | str


def read_trl(row: Row, options: ReadOptions) -> Iterator[RowItem]:
    """Yield the pair of a row."""
    is_pair = any(row.keys() >= set(pair) for pair in _SIDES)
    if not is_pair and row.has("messages") and (name := _first(row, _REJECTED)) is not None:
        yield _pair_of_rejected(row, name)
        return
    names = next((pair for pair in _SIDES if row.keys() >= set(pair)), _SIDES[0])
    chosen, rejected = (_side(row, name) for name in names)
    if isinstance(chosen, str) != isinstance(rejected, str):
        refuse(names[1], "differs from chosen in type: one is a text, the other has turns")
    column = _prompt_column(row, options, chosen)
    prompt = None if column is None else _prompt(row, column)
    if isinstance(chosen, str) or isinstance(rejected, str):
        texts = as_string(chosen, names[0]), as_string(rejected, names[1])
        yield _pair_of_texts(row, prompt, texts, column)
    elif prompt is None:
        yield pair_of_conversations(row, chosen, rejected)
    else:
        sides = zip(names, (chosen, rejected), strict=True)
        yield pair_of_conversations(row, *(_with_prompt(prompt, side, n) for n, side in sides))


def _pair_of_rejected(row: Row, name: str) -> RowItem:
    """Return the pair of a whole conversation and the answer that was rejected, as in ms-swift."""
    chosen = as_messages(row["messages"], "messages")
    rejected = _side(row, name)
    if isinstance(rejected, str):
        rejected = (*chosen[:-1], Message(role="assistant", content=rejected))
    return pair_of_conversations(row, chosen, _with_prompt(chosen[:-1], rejected, name))


def _first(row: Row, names: tuple[str, ...]) -> str | None:
    return next((name for name in names if row.has(name)), None)


def _side(row: Row, name: str) -> Side:
    value = required(row, name)
    if looks_like_messages(value):
        return as_messages(value, name)
    text = as_string(value, name)
    turns = parse_hh(text, name) if is_hh(text) else ()
    # Only an answer after "Assistant:" may be a play; `shapes.py` compares it with the others.
    if turns and (len(turns) > 1 or turns[0].role != "assistant"):
        row.note(f"{name} is a transcript: it is read as turns")
        return turns
    return turns_in_text(text, name, row) or text


def _prompt_column(row: Row, options: ReadOptions, chosen: Side) -> str | None:
    """Return the column with the prompt, or None if chosen and rejected begin with it."""
    if options.prompt_column:
        required(row, options.prompt_column)
        return options.prompt_column
    is_answer = isinstance(chosen, str) or chosen[0].role == "assistant"
    if isinstance(row.peek("input"), dict):
        return "input"
    names = _PROMPTS + (_CONVERSATIONS if is_answer else ())
    return _first(row, names)


def _prompt(row: Row, column: str) -> Conversation:
    value = row[column]
    if isinstance(value, Row) and value.has("messages"):
        return as_messages(value["messages"], f"{column}.messages")
    if isinstance(value, str) and is_hh(value):
        row.note(f"{column} is a transcript: it is read as turns")
        return parse_hh_prompt(value, column)
    prompt = prompt_field(row, column)
    if isinstance(value, str):
        return turns_in_text(prompt[0].content, column, row) or prompt
    return prompt


def _pair_of_texts(
    row: Row, prompt: Conversation | None, texts: tuple[str, str], column: str | None
) -> RowItem:
    if prompt is None or column is None:
        if (name := _likely_prompt(row, texts)) is not None:
            refuse(
                "row",
                f"has no 'prompt', but {name[:40]!r}; if that is the prompt, use --prompt-column "
                f"{name[:40]}",
            )
        return pair_of_texts(row, *_split_common_beginning(*texts), note=IMPLICIT_PROMPT)
    if isinstance(row[column], str) and is_hh(row[column]):
        # The space after "Assistant:" belongs to the marker.
        return pair_of_texts(row, prompt, texts[0].strip(), texts[1].strip())
    return pair_of_texts(row, prompt, *texts)


def _likely_prompt(row: Row, texts: tuple[str, str]) -> str | None:
    """Return a column that may well be the prompt with which the texts do not begin, or None."""
    for name in row:
        value = row.peek(name)
        is_said = isinstance(value, str) and all(text.startswith(value.strip()) for text in texts)
        if looks_like_messages(value) or (
            name in _LIKELY_PROMPTS and row.has(name) and not is_said
        ):
            return name
    return None


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
    while end and not (is_between_words(chosen, end) and is_between_words(rejected, end)):
        end -= 1
    end = len(chosen[:end].rstrip())  # the space goes with the completion, as in TRL
    if not end:
        refuse("chosen", "has no beginning in common with rejected, so there is no prompt")
    return user_prompt(chosen[:end]), chosen[end:], rejected[end:]
