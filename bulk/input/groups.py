"""The group that a row describes, or why it describes none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kwise.bulk.input.row import BadRow
from kwise.client.messages import to_group
from kwise.errors import ConfigError
from kwise.meanings import Meaning, row_meaning, says_nothing
from kwise.train.rankings.json_value import json_type
from kwise.types import Conversation, Group, Message, Priority, TokenIds

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a row that make up a group.

    Attributes:
        prompt: the column with the prompt: a text, messages or token ids.
        responses: one column with a list of responses, or several with one response each.
        ignored: columns that would change the conversation, and are left out all the same.
    """

    prompt: str = "prompt"
    responses: tuple[str, ...] = ("responses",)
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.responses:
            raise ConfigError("--responses-column needs at least one name")
        named = (self.prompt, *self.responses)
        if repeated := next((name for name in named if named.count(name) > 1), None):
            raise ConfigError(f"the column {repeated!r} is named twice")
        if both := next((name for name in self.ignored if name in named), None):
            raise ConfigError(f"--ignore-columns names {both!r}, which is read")

    def group(self, row: Any, priority: Priority = Priority.BULK) -> Group:
        """Return the group of a row. A text as a prompt is one message of the user.

        Raises:
            BadRow: the row describes no group.
        """
        if not isinstance(row, dict):
            raise BadRow("", f"a JSON object is expected, not {json_type(row)}")
        for name in (self.prompt, *self.responses):
            if name not in row:
                raise BadRow(name, f"the row has no such column; it has {_names(row)}")
        if not isinstance(row[self.prompt], str | list):
            kind = json_type(row[self.prompt])
            raise BadRow(self.prompt, f"it must be a text, messages or token ids, not {kind}")
        self._refuse_meanings(row)
        responses = self._responses(row)
        try:
            # The client's own check, so that a bad value is told with its name.
            to_group("", row[self.prompt], responses, priority)
        except (TypeError, ValueError) as error:
            field, problem = _renamed(str(error), self.prompt, self.responses)
            raise BadRow(field, problem) from None
        prompt = _prompt(row[self.prompt])
        return Group(prompt=prompt, responses=tuple(responses), priority=priority)

    def _responses(self, row: Row) -> list[Any]:
        if len(self.responses) > 1:
            return [_text(name, row[name]) for name in self.responses]
        (name,) = self.responses
        responses = row[name]
        if not isinstance(responses, list):
            raise BadRow(name, f"it must be a list, not {json_type(responses)}")
        if not responses:
            raise BadRow(name, "there must be at least one response")
        return [_text(f"{name}[{number}]", item) for number, item in enumerate(responses)]

    def _refuse_meanings(self, row: Row) -> None:
        """Refuse a column that says more of the conversation than prompt and responses do."""
        read = {self.prompt, *self.responses, *self.ignored}
        for name, value in row.items():
            meaning = None if name in read else row_meaning(name)
            if meaning and meaning is not Meaning.PROMPT and not says_nothing(value):
                raise BadRow(
                    name,
                    f"it has {meaning.value}, which would not be scored; put it into the messages "
                    f"of the prompt, or leave it out with --ignore-columns {name}",
                )


def _text(name: str, response: Any) -> Any:
    """Return the text or the token ids of a response, which may be an object with a text."""
    if isinstance(response, str):
        return response
    if isinstance(response, list):
        return tuple(response)
    if not isinstance(response, dict):
        raise BadRow(name, f"it must be a text or token ids, not {json_type(response)}")
    if "text" not in response:
        raise BadRow(name, "the response has no 'text'")
    for key, value in response.items():
        meaning = row_meaning(key)
        if meaning and meaning is not Meaning.PROMPT and not says_nothing(value):
            raise BadRow(name, f"it has {key!r}, {meaning.value}, which would not be scored")
    return response["text"]


def _prompt(prompt: Any) -> Conversation | TokenIds:
    """Return a prompt that `to_group` has accepted in the types of `Group`."""
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),)
    if isinstance(prompt[0], dict):
        return tuple(Message(role=item["role"], content=item["content"]) for item in prompt)
    return tuple(prompt)


def _renamed(message: str, prompt: str, responses: tuple[str, ...]) -> tuple[str, str]:
    """Return (field, problem) of a client's message, with the names of the columns."""
    named, _, rest = message.partition(" ")
    for name, column in (("prompt", prompt), ("responses", responses[0])):
        if named.startswith(name):
            place = named.removeprefix(name)
            if name == "responses" and len(responses) > 1 and place.startswith("["):
                number, _, place = place[1:].partition("]")
                column = responses[int(number)]
            return f"{column}{place}", f"it {rest}"
    return "", message


def _names(row: Row) -> str:
    shown = ", ".join(repr(str(name)[:40]) for name in list(row)[:12])
    return shown + (", …" if len(row) > 12 else "") if row else "none"
