"""Choose the chat template of a model, and check it before anything is trained or exported.

`kwise train` and `kwise export` both call `choose_template`, and the engine renders what it
returns. So a template that training accepts can be exported and served. The engine renders with its
own environment (engine/text/chat_template.py) and tokenises a conversation in two parts. Therefore
a few conversations are encoded both by transformers and by the engine, and the tokens must agree.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.text.limits import EncoderLimits
from kwise.errors import ConfigError, InvalidRequest
from kwise.library_errors import cause_of, is_foreign, library_errors
from kwise.train.template.fixed_date import prints_date, today, with_fixed_date
from kwise.types import Conversation, Group, Message

_DEFAULT = "default"  # the template that transformers uses when a tokenizer has several
_PROCESSORS_FILE = "chat_template.json"  # which tokenizers do not read
_NO_LIMIT = 2**40


class TemplateRefusal(ConfigError):
    """The chat template cannot render a conversation. The message says why, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """The chat template that a model is trained or exported with.

    Attributes:
        text: Jinja; None for models that read a pair of texts.
        origin: where it comes from, for messages and the model card.
        date: the date that it prints, "YYYY-MM-DD"; None if it prints none.
        notes: lines that the user should know, for instance that the model has no template.
    """

    text: str | None
    origin: str
    date: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str | None:
        """The hash of the text."""
        return None if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()


def choose_template(
    tokenizer: PreTrainedTokenizerBase,
    *,
    model: str,
    file: Path | None,
    date: str,
    today_by_default: bool,
    plain: str | None,
) -> ChatTemplate:
    """Return the chat template to use, and set it in the tokenizer.

    It is that of `file` if given, else the model's own, else `plain`.

    Args:
        model: the model's name on the command line.
        file: a Jinja file, or the name of one of the model's templates.
        date: the date that the template prints, "YYYY-MM-DD"; "" if the user gave none.
        today_by_default: fix today's date if the user gave none, instead of refusing a template
            that prints today's date.
        plain: the template of models that have none; None leaves them without one.

    Raises:
        ConfigError: there are several templates and none is the default; the template is malformed,
            cannot render a message of a user and one of an assistant, or is rendered otherwise by
            the engine; it prints today's date and no date is given; or a date is given and it
            prints none.
        OSError: the file cannot be read.
    """
    text, origin, notes = _find(tokenizer, model, file, plain)
    fixed_date = None
    if text is not None:
        with library_errors(f"{origin} is not a Jinja template"):
            has_date = prints_date(text)
        if has_date:
            if not date and not today_by_default:
                raise ConfigError(
                    f"{origin} prints today's date (strftime_now), so rewards would change every "
                    "day: give the date that it printed in training as --template-date YYYY-MM-DD, "
                    "or a template with a fixed date as --chat-template FILE"
                )
            fixed_date = date or today(tokenizer)
            text = with_fixed_date(text, fixed_date)
            if not date:
                notes.append(
                    f"{origin} prints today's date (strftime_now); so that rewards do not change "
                    f"every day, the saved template prints {fixed_date} from now on; "
                    "--template-date chooses another date"
                )
    if date and fixed_date is None:
        raise ConfigError(f"--template-date: {origin} prints no date")
    tokenizer.chat_template = text
    if text is not None:
        notes += _check(tokenizer, origin)
    return ChatTemplate(text=text, origin=origin, date=fixed_date, notes=tuple(notes))


def _find(
    tokenizer: PreTrainedTokenizerBase, model: str, file: Path | None, plain: str | None
) -> tuple[str | None, str, list[str]]:
    """Return the text of the template, its origin and notes."""
    own = tokenizer.chat_template or None
    named: dict[str, str] = own if isinstance(own, dict) else {}
    if file is not None and (file.exists() or str(file) not in named):
        content = file.read_bytes()
        with library_errors(f"--chat-template {file}: is not UTF-8"):
            return content.decode(), f"the chat template {file}", []
    if named:
        name = _DEFAULT if file is None else str(file)
        names = ", ".join(sorted(named))
        if name not in named:
            raise ConfigError(
                f"{model} has several chat templates ({names}) and none is called {_DEFAULT}: "
                "choose one of them as --chat-template NAME, or give a file"
            )
        note = f"{model} has the chat templates {names}; {name} is used"
        return named[name], f"the chat template {name} of {model}", [note]
    if own is not None:
        return str(own), f"the chat template of {model}", []
    if (Path(model) / _PROCESSORS_FILE).is_file():
        raise ConfigError(
            f"{model} has its chat template in {_PROCESSORS_FILE}, which is read for images only: "
            "save the template as a Jinja file, and give it as --chat-template FILE"
        )
    if plain is None:
        return None, f"no chat template: {model} reads pairs of texts", []
    note = (
        f"{model} has no chat template: kwise's plain one is used and saved, which writes "
        "'role: content' and an empty line for each message; give another one as "
        "--chat-template FILE"
    )
    return plain, f"kwise's plain chat template, because {model} has none", [note]


def render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, opens_answer: bool = False
) -> str:
    """Return the text of a conversation as the chat template renders it.

    Args:
        opens_answer: add what precedes the assistant's next message.

    Raises:
        TemplateRefusal: the template raises any error.
    """
    messages = [{"role": message.role, "content": message.content} for message in conversation]
    try:
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opens_answer
            )
        )
    except Exception as error:  # a template may fail in any way, for instance divide by zero
        if not is_foreign(error):
            raise
        raise TemplateRefusal(cause_of(error)) from error


def template_variables(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the special tokens that a template may name, such as `bos_token`, and their text."""
    return {
        name: str(token)
        for name, token in tokenizer.special_tokens_map.items()
        if isinstance(token, str)
    }


def _conversation(*contents: str, system: str = "") -> Conversation:
    turns = [
        Message(role="user" if index % 2 == 0 else "assistant", content=content)
        for index, content in enumerate(contents)
    ]
    return (*([Message(role="system", content=system)] if system else []), *turns)


def _refusal(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str | None:
    try:
        render(tokenizer, conversation)
    except TemplateRefusal as refusal:
        return str(refusal)
    return None


def _rendered(tokenizer: PreTrainedTokenizerBase, question: str, answer: str) -> str | None:
    """Return the text of a question and its answer; None if the template refuses them."""
    try:
        return render(tokenizer, _conversation(question, answer))
    except TemplateRefusal:
        return None


def _check(tokenizer: PreTrainedTokenizerBase, origin: str) -> list[str]:
    """Check that the template renders an answer, in the engine as in transformers; return notes."""
    if problem := _refusal(tokenizer, _conversation("Well?", "Yes.")):
        raise ConfigError(f"{origin} cannot render a question and its answer: {problem}")
    if _rendered(tokenizer, "Well?", "Yes.") == _rendered(tokenizer, "Well?", "No!"):
        raise ConfigError(
            f"{origin} prints the same text whatever the answer is; kwise gives it each message's "
            "content as a string"
        )
    encoder = ConversationEncoder(
        Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        template=tokenizer.chat_template,
        special_tokens=template_variables(tokenizer),
        limits=EncoderLimits(max_tokens=_NO_LIMIT, vocab_size=_NO_LIMIT),
        trailing_pad_id=None,
    )
    special = " ".join(tokenizer.all_special_tokens)
    for conversation in (
        _conversation("Well?", "Yes."),
        _conversation(" a \n", " b \n"),
        _conversation(f"Is {special} a token?", f"No, {special}."),
        _conversation("One?", "1", "Two?", "2"),
        _conversation("One?", "1", system="Count."),
    ):
        _compare(tokenizer, encoder, conversation, origin)
    notes = []
    if _rendered(tokenizer, "Well?", "Yes.") == _rendered(tokenizer, "Or?", "Yes."):
        notes.append(f"{origin} prints the same text whatever the question is")
    if turns := _refusal(tokenizer, _conversation("One?", "1", "Two?", "2")):
        notes.append(f"{origin} refuses conversations of more than one turn: {turns}")
    return notes


def _compare(
    tokenizer: PreTrainedTokenizerBase,
    encoder: ConversationEncoder,
    conversation: Conversation,
    origin: str,
) -> None:
    """Raise ConfigError if the engine encodes a conversation otherwise than transformers."""
    expected: Sequence[int] | None = None
    if _refusal(tokenizer, conversation) is None:
        text = render(tokenizer, conversation)
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
    group = Group(prompt=conversation[:-1], responses=(conversation[-1].content,))
    try:
        (outcome,) = encoder.encode(group)
    except InvalidRequest as error:
        outcome = error
    served = outcome.token_ids.tolist() if isinstance(outcome, EncodedSequence) else None
    # Neither takes an empty conversation, but transformers gives it no tokens.
    if served != (expected or None):
        problem = outcome.problem if isinstance(outcome, InvalidRequest) else "other tokens"
        raise ConfigError(
            f"{origin} cannot be served: the engine's result for a conversation of "
            f"{len(conversation)} messages is not that of transformers: {problem}"
        )
