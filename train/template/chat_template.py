"""Choose the chat template of a model before anything is trained or exported.

`kwise train` and `kwise export` both call `choose_template`, and the engine renders what it
returns. So a template that training accepts can be exported and served.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase

from kwise.errors import ConfigError
from kwise.libraries.errors import library_errors
from kwise.train.template.check import check_template
from kwise.train.template.fixed_date import prints_date, today, with_fixed_date

_DEFAULT = "default"  # the template that transformers uses when a tokenizer has several
_PROCESSORS_FILE = "chat_template.json"  # which tokenizers do not read


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
        try:
            has_date = prints_date(text)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"{origin} is not a Jinja template: line {error.lineno}: {error.message}"
            ) from error
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
        notes += check_template(tokenizer, origin)
    return ChatTemplate(text=text, origin=origin, date=fixed_date, notes=tuple(notes))


def _find(
    tokenizer: PreTrainedTokenizerBase, model: str, file: Path | None, plain: str | None
) -> tuple[str | None, str, list[str]]:
    """Return the text of the template, its origin and notes."""
    own = tokenizer.chat_template or None
    named: dict[str, str] = own if isinstance(own, dict) else {}
    if file is not None and (file.exists() or str(file) not in named):
        try:
            content = file.read_bytes()
        except OSError as error:
            names = f"; {model} has the templates {', '.join(sorted(named))}" if named else ""
            raise ConfigError(f"--chat-template {file}: {error.strerror}{names}") from None
        with library_errors(f"--chat-template {file}: is not UTF-8"):
            return content.decode(), f"the chat template {file}", []
    if named:
        name = _DEFAULT if file is None else str(file)
        names = ", ".join(sorted(named))
        if name not in named:
            raise ConfigError(
                f"{model} has chat templates by name ({names}), and none is called {_DEFAULT}: "
                "choose one as --chat-template NAME, or give a file"
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
