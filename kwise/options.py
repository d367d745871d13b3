"""Command-line options generated from a frozen dataclass.

The declaration of a field is the one place with an option's description, default and bounds.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class ServeConfig:
        port: int = option(50051, "TCP port; 0 takes a free one", minimum=0, maximum=65535)

    add_options(parser, ServeConfig)
    config = from_options(ServeConfig, parser.parse_args())

argparse and dataclasses do the work. Libraries that do more (tyro, jsonargparse) would become
dependencies of the client, which needs grpcio and protobuf only.
"""

import argparse
import dataclasses
import types
from collections.abc import Mapping
from datetime import date
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from kwise.errors import ConfigError

T = TypeVar("T")

MAX_UINT32 = (1 << 32) - 1  # the bound of an option that the server reports in a uint32
# Bounds far above what is of use, so that a slip of the keyboard is told and not obeyed.
MAX_COUNT = (1 << 31) - 1
MAX_BYTES = 1 << 50
MAX_SECONDS = 366 * 86_400
# Each thread takes a stack and a share of an arena: 100,000 of them end a process for memory.
MAX_THREADS = 1024


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",  # noqa: A002 - argparse's name for it
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    exclusive_minimum: float | None = None,
    secret: bool = False,
) -> Any:
    """Return a dataclass field with a description and bounds.

    A field without a default becomes a positional argument. The value of a secret one may hold a
    password, so it is not in the `repr` of the config.
    """
    bounds = {"minimum": minimum, "maximum": maximum, "exclusive_minimum": exclusive_minimum}
    return dataclasses.field(default=default, repr=not secret, metadata={"help": help, **bounds})


def sentence(summary: str) -> str:
    """Return a summary as a sentence. The case of names such as gRPC and CPU stays."""
    return f"{summary[:1].upper()}{summary[1:]}."


def check_bounds(config: Any) -> None:
    """Check all fields of a config. Call this from `__post_init__`.

    Raises:
        ConfigError: a field is outside its bounds. The message names the option and the bound.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float):
                _check_number(flag_of(field.name), number, field.metadata)


def _check_number(flag: str, value: float, bounds: Mapping[str, Any]) -> None:
    # The comparisons are negated because NaN, which is within no bounds, makes each one false.
    if (low := bounds.get("minimum")) is not None and not value >= low:
        raise ConfigError(f"{flag} is {value}; it must be at least {low}")
    if (high := bounds.get("maximum")) is not None and not value <= high:
        raise ConfigError(f"{flag} is {value}; it must be at most {high}")
    if (low := bounds.get("exclusive_minimum")) is not None and not value > low:
        raise ConfigError(f"{flag} is {value}; it must be greater than {low}")


def check_date(flag: str, value: str) -> None:
    """Raise ConfigError if `value` is neither empty nor a date "YYYY-MM-DD"."""
    try:
        is_date = not value or date.fromisoformat(value).isoformat() == value
    except ValueError:
        is_date = False
    if not is_date:
        raise ConfigError(f"{flag} is {value!r}; it must be a date, for instance 2026-01-31")


def add_options(parser: argparse.ArgumentParser, config_type: type) -> None:
    """Add one argument per field of `config_type`: `--max-batch-tokens` for `max_batch_tokens`."""
    hints = get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        kind, repeated = _value_type(hints[field.name])
        text = field.metadata.get("help", "").replace("%", "%%")
        required = field.default is dataclasses.MISSING
        if kind is bool:
            parser.add_argument(
                flag_of(field.name),
                action=argparse.BooleanOptionalAction,
                default=field.default,
                help=text,
            )
            continue
        arguments: dict[str, Any] = {"help": text, "type": _parser_of(kind)}
        if isinstance(kind, type) and issubclass(kind, Enum):
            arguments["metavar"] = "{" + ",".join(member.value for member in kind) + "}"
        else:
            arguments["metavar"] = field.name.upper()
        if repeated:
            arguments["nargs"] = "+"
            if not required:
                arguments["action"] = _Values
        if required:
            parser.add_argument(field.name, **arguments)
            continue
        shown = field.default.value if isinstance(field.default, Enum) else field.default
        if shown not in (None, (), ""):
            arguments["help"] += f" (default: {shown})"
        parser.add_argument(flag_of(field.name), default=field.default, **arguments)


def from_options(config_type: type[T], namespace: argparse.Namespace) -> T:
    """Return the config that the parsed arguments describe.

    Raises:
        ConfigError: a value is out of range.
    """
    names = [field.name for field in dataclasses.fields(config_type)]  # type: ignore[arg-type]
    values = {name: getattr(namespace, name) for name in names}
    # argparse collects repeated values in lists, and a frozen config holds tuples.
    return config_type(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()})


def flag_of(name: str) -> str:
    """Return the option of a field: "--max-tokens" of "max_tokens"."""
    return "--" + name.replace("_", "-")


class _Values(argparse.Action):
    """Collects the values of an option, given once or several times, in place of its default.

    argparse's own "extend" would add them to the default, and "store" would drop all but the last.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        earlier = getattr(namespace, self.dest, None)
        given = _Given(earlier if isinstance(earlier, _Given) else ())
        given.extend(values)
        setattr(namespace, self.dest, given)


class _Given(list[Any]):
    """The values of an option that the command line gave so far."""


def _value_type(hint: Any) -> tuple[Any, bool]:
    """Return the type of one value, and True if the option takes several.

    The hint is `T`, `T | None` or `tuple[T, ...]`.
    """
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    return hint, False


def _parser_of(kind: Any) -> Any:
    """Return a function for argparse's `type`. A member of an Enum is given by its value."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        return kind

    def parse(text: str) -> Enum:
        try:
            return kind(text)
        except ValueError:
            choices = ", ".join(member.value for member in kind)
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {choices}") from None

    return parse
