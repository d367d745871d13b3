"""Texts whose shape shows that they are more than one turn's text.

    messages as JSON, or as Python writes a list     [{"role": "user", "content": …}, …]
    text with a chat template applied                <|im_start|>user\\n…<|im_end|>
    a transcript                                     Human: …\\n\\nAssistant: …
    a response that begins with the whole prompt
    a response that ends with a template's marker    …</s>

They are read as what they are, and a note counts them. Where the shape does not fit, a text with a
template's marker at its beginning is refused; other texts stay as they are, with a note, because
a response may well quote a transcript, JSON or the question. All formats pass through here.
"""

import re
from collections import Counter
from collections.abc import Sequence

from kwise.train.data.rows.fields import (
    as_string,
    join_path,
    refuse,
    required,
    string_field,
    user_prompt,
)
from kwise.train.data.rows.items import ReadOptions, RowItem, RowProblem, ScoredResponse, Skipped
from kwise.train.data.rows.messages import as_messages, looks_like_messages, messages_in_text
from kwise.train.data.rows.row import Row
from kwise.train.data.rows.templated import (
    begins_with_marker,
    end_marker,
    parse_templated,
    without_end_marker,
)
from kwise.train.data.rows.transcript import (
    has_later_speaker,
    parse_transcript,
    without_empty_end,
)
from kwise.train.data.rows.words import is_between_words
from kwise.types import Conversation

_ANSWER_MARKER = re.compile(r"\s*(?:### ?)?(?:Assistant|ASSISTANT):\s*")
# A prompt about markers, to which an honest answer may end with one.
_ABOUT_MARKERS = re.compile(
    r"token|templat|chat ?ml|\beos\b|markup|html|xml|\btags?\b|marker|delimiter|stop sequence", re.I
)
_MIN_PROMPT = 8
"""A shorter prompt of one word may begin a response by chance: "Hi" and "Hi there!"."""


def recognise_shapes(item: RowItem, row: Row, options: ReadOptions) -> RowItem:
    """Return the item with the turns and texts that its texts spell out."""
    if isinstance(item, Skipped):
        return item
    prompt = _prompt(item.prompt, row)
    texts = item.texts()
    answers = _answers(texts, prompt, row)
    answers = _without_end_markers(answers, prompt, row)
    # Whether the others begin with the prompt too is not known of a response that is alone.
    is_kept = options.keep_prompt or isinstance(item, ScoredResponse)
    answers = _without_prompt(answers, prompt, row, is_kept=is_kept)
    if prompt == item.prompt and answers == texts:
        return item
    return item.with_texts(prompt, answers)


def turns_in_text(text: str, at: str, row: Row) -> Conversation | None:
    """Return the turns that `text` spells out, or None if it is a plain text.

    at: the path of the text; `row` gets the note.
    """
    if (messages := messages_in_text(text, at)) is not None:
        name, turns = "messages in a text", as_messages(row.add_in_text(messages, at), at)
    elif (templated := parse_templated(text)) is not None:
        name, turns = f"a text in {templated[0]}", templated[1]
    elif begins_with_marker(text):
        refuse(at, "begins with a marker of a chat template, but cannot be read as turns of one")
    elif (transcript := parse_transcript(text)) is not None:
        name, turns = "a transcript", without_empty_end(transcript)
    else:
        return None
    if turns:
        row.note(f"{at} is {name}: it is read as turns")
    return turns or None


def prompt_field(row: Row, key: str, at: str = "") -> Conversation:
    """Return the prompt at `key` of `row`, a text or messages; `at` is the path of `row`.

    The `input` of an `instruction` is a part of the prompt, as in Alpaca's data.
    """
    value = required(row, key, at or "row")
    if looks_like_messages(value):
        return as_messages(value, join_path(at, key))
    text = as_string(value, join_path(at, key))
    if key == "instruction" and row.has("input"):
        text = f"{text}\n\n{string_field(row, 'input', at)}"
        row.note("instruction and input are joined by an empty line")
    return user_prompt(text)


def turns_field(row: Row, key: str) -> Conversation:
    """Return the turns at `key` of `row`, as messages or in a text that spells them out."""
    value = required(row, key)
    turns = turns_in_text(value, key, row) if isinstance(value, str) else None
    return as_messages(value, key) if turns is None else turns


def _prompt(prompt: Conversation, row: Row) -> Conversation:
    if len(prompt) != 1 or prompt[0].role != "user":
        return prompt
    return turns_in_text(prompt[0].content, "prompt", row) or prompt


def _answers(texts: tuple[str, ...], prompt: Conversation, row: Row) -> tuple[str, ...]:
    """Return the answers of responses that are written as turns, and the other texts."""
    in_templates = list(texts)
    for index, text in enumerate(texts):
        if (parsed := parse_templated(text)) is not None:
            answer = _answer_of(parsed[1], prompt)
            if answer is None and begins_with_marker(text):
                refuse(
                    f"responses[{index}]", f"is in {parsed[0]}, but is not one answer to the prompt"
                )
            if answer is not None:
                row.note(f"a response is a text in {parsed[0]}: its last turn is read")
                in_templates[index] = answer
        elif begins_with_marker(text):
            refuse(f"responses[{index}]", "begins with a marker of a chat template")
    spelt = _spelt_answers(in_templates, prompt, row)
    if None not in spelt:
        row.note("the responses are messages or transcripts in texts: their last turn is read")
        return tuple(answer for answer in spelt if answer is not None)
    if any(answer is not None for answer in spelt):
        row.note("a response, but not each, looks like messages or a transcript: kept as it is")
        return tuple(in_templates)
    if all(_ANSWER_MARKER.match(text) for text in in_templates):
        asked = " ".join(message.content for message in prompt).lower()
        if "assistant" in asked or any(map(has_later_speaker, in_templates)):
            row.note(
                "the responses begin with 'Assistant:', perhaps of a dialogue: kept as they are"
            )
            return tuple(in_templates)
        row.note("the responses begin with 'Assistant:', which is removed")
        return tuple(_ANSWER_MARKER.sub("", text, count=1) for text in in_templates)
    return tuple(in_templates)


def _spelt_answers(texts: Sequence[str], prompt: Conversation, row: Row) -> list[str | None]:
    """Return for each text the answer that its messages or its transcript end with, or None."""
    answers = []
    read = Row({}, Counter())  # what is read counts only if all texts have an answer
    for index, text in enumerate(texts):
        at = f"responses[{index}]"
        try:
            messages = messages_in_text(text, at)
            spelt = (
                parse_transcript(text)
                if messages is None
                else as_messages(read.add_in_text(messages, at), at)
            )
        except RowProblem:
            spelt = None
        answers.append(_answer_of(spelt or (), prompt))
    if None not in answers:
        row.notes.update(read.notes)
        row.in_texts += read.in_texts
    return answers


def _answer_of(turns: Conversation, prompt: Conversation) -> str | None:
    """Return the answer if `turns` are one answer, or the prompt and one answer."""
    if not turns or turns[-1].role != "assistant":
        return None
    without_system = prompt[1:] if prompt and prompt[0].role == "system" else prompt
    return turns[-1].content if turns[:-1] in ((), prompt, without_system) else None


def _without_end_markers(texts: tuple[str, ...], prompt: Conversation, row: Row) -> tuple[str, ...]:
    """Return the texts without a marker at the end, unless the answer may be that marker.

    It may if the prompt speaks of markers, or if the responses differ in nothing else.
    """
    asked = " ".join(message.content for message in prompt)
    stripped = tuple(
        text if end_marker(text) in asked else without_end_marker(text) for text in texts
    )
    if stripped == texts:
        return texts
    if _ABOUT_MARKERS.search(asked) or len(set(stripped)) < len(set(texts)):
        row.note("a response ends with a marker of a chat template, perhaps its topic: kept")
        return texts
    row.note("a response ends with a marker of a chat template, which is removed")
    return stripped


def _without_prompt(
    texts: tuple[str, ...], prompt: Conversation, row: Row, *, is_kept: bool
) -> tuple[str, ...]:
    """Return the responses without the prompt's text if each of them begins with it."""
    question = prompt[-1].content.strip() if prompt else ""
    if not question or (len(question) < _MIN_PROMPT and len(question.split()) < 2):
        return texts
    begins = [_begins_with(text.lstrip(), question) for text in texts]
    if not any(begins):
        return texts
    rest = tuple(text.lstrip()[len(question) :] for text in texts)
    if is_kept or not all(begins) or not all(text.strip() for text in rest):
        row.note("a response begins with the text of the prompt: kept as it is")
        return texts
    row.note(
        "the responses begin with the text of the prompt, which is removed (see --keep-prompt)"
    )
    # Space at the beginning of a line may indent code.
    return tuple(re.sub(r"\A(?:[ \t]*\r?\n)+|\A[ \t]+", "", text) for text in rest)


def _begins_with(text: str, question: str) -> bool:
    """Return whether `text` begins with `question`, which does not end inside of a word of it."""
    end = len(question)
    if not text.startswith(question):
        return False
    is_in_word = text[end - 1].isalnum() and text[end : end + 1].isalnum()
    return not is_in_word or is_between_words(text, end)
