"""Convert parsed JSON to a type, with an error that names the place and the field."""

from typing import Any, TypeVar

import msgspec

from kwise.errors import ArtifactError

# What msgspec raises for bytes that are not JSON. The second is for bytes that are not UTF-8, the
# third for deep nesting.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

T = TypeVar("T")


def convert(content: Any, kind: type[T], place: str) -> T:
    """Return parsed JSON as a `kind`.

    Raises:
        ArtifactError: a field is missing, unknown or of the wrong type. The message names the field
            and what is expected, as "manifest.json: max_tokens: Expected `int`, got `str`".
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        problem, _, field = str(error).partition(" - at ")
        field = field.replace("`", "").replace("$.", "")
        raise ArtifactError(f"{place}: {f'{field}: ' if field else ''}{problem}") from None
