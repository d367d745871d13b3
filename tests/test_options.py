"""Each option declares its description and bounds; the command line and checks follow from it."""

import argparse
import dataclasses
import math
from enum import Enum
from typing import Any, get_args, get_type_hints

import pytest

from kwise.benchmarks.command import _BENCHMARKS
from kwise.benchmarks.options import TrainBenchConfig
from kwise.engine.config import EngineConfig
from kwise.engine.server.config import ServerConfig
from kwise.errors import ConfigError
from kwise.export.config import ExportConfig
from kwise.options import add_options, check_bounds, from_options, option
from kwise.train.data.convert.options import ConvertConfig
from kwise.train.data.validate import ValidateConfig
from kwise.train.options.config import TrainConfig

CONFIGS = (EngineConfig, ServerConfig)
ALL_CONFIGS = (
    *CONFIGS,
    TrainConfig,
    ExportConfig,
    ConvertConfig,
    ValidateConfig,
    *(config for _, config, _ in _BENCHMARKS.values()),
)
OPTIONS = [
    pytest.param(config, f, id=f"{config.__name__}.{f.name}")
    for config in CONFIGS
    for f in dataclasses.fields(config)
]


class Colour(Enum):
    RED = "red"
    DARK_BLUE = "dark-blue"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    source: str = option(help="where from, 100 % of it")
    count: int = option(3, "how many", minimum=1, maximum=5)
    rate: float = option(0.5, "how fast", exclusive_minimum=0)
    colour: Colour = option(Colour.RED, "which")
    loud: bool = option(False, "whether to shout")
    limit: int | None = option(None, "at most", minimum=2)
    names: tuple[str, ...] = option((), "who")

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Defaults:
    names: tuple[str, ...] = option(("x",), "who")


def _parser(config: type) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="example")
    add_options(parser, config)
    return parser


def _parse(*arguments: str) -> Example:
    return from_options(Example, _parser(Example).parse_args(arguments))


def test_no_options_give_the_defaults() -> None:
    assert _parse("here") == Example(source="here")


def test_every_kind_of_value_is_parsed() -> None:
    arguments = [
        "here",
        "--count",
        "4",
        "--rate",
        "2.5",
        "--colour",
        "dark-blue",
        "--loud",
        "--limit",
        "7",
        "--names",
        "a",
        "b",
    ]
    expected = Example(
        source="here",
        count=4,
        rate=2.5,
        colour=Colour.DARK_BLUE,
        loud=True,
        limit=7,
        names=("a", "b"),
    )
    assert _parse(*arguments) == expected


def test_an_option_that_is_given_twice_adds_its_values() -> None:
    assert _parse("here", "--names", "a", "b", "--names", "c").names == ("a", "b", "c")
    namespace = _parser(_Defaults).parse_args(["--names", "a", "--names", "b"])
    assert from_options(_Defaults, namespace).names == ("a", "b"), "the default is replaced"


def test_an_option_of_several_values_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse("here", "--names")
    assert "--names: expected at least one argument" in capsys.readouterr().err


def test_boolean_has_a_positive_and_a_negative_form() -> None:
    assert _parse("here", "--loud").loud
    assert not _parse("here", "--no-loud").loud


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"count": 0}, "--count is 0; it must be at least 1"),
        ({"count": 6}, "--count is 6; it must be at most 5"),
        ({"rate": 0.0}, "--rate is 0.0; it must be greater than 0"),
        ({"limit": 1}, "--limit is 1; it must be at least 2"),
    ],
)
def test_value_out_of_bounds_names_option_and_bound(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Example(source="", **values)
    assert str(raised.value) == problem


@pytest.mark.parametrize(
    "values", [{"count": 1}, {"count": 5}, {"rate": 5e-324}, {"limit": 2}, {"limit": None}]
)
def test_bounds_themselves_are_allowed(values: dict[str, Any]) -> None:
    Example(source="", **values)


def test_unknown_member_is_refused_with_the_choices(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse("here", "--colour", "green")
    assert "'green' is not one of red, dark-blue" in capsys.readouterr().err


def test_member_is_given_by_value_not_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parse("here", "--colour", "DARK_BLUE")
    assert "is not one of" in capsys.readouterr().err


def test_help_shows_text_default_and_choices() -> None:
    text = " ".join(_parser(Example).format_help().split())
    for part in (
        "where from, 100 % of it",
        "how many (default: 3)",
        "{red,dark-blue}",
        "(default: red)",
        "--no-loud",
    ):
        assert part in text


@pytest.mark.parametrize(("config", "field"), OPTIONS)
def test_every_option_has_a_description_in_the_help(
    config: type, field: "dataclasses.Field[Any]"
) -> None:
    described = field.metadata["help"]
    shown = "".join(_parser(config).format_help().split())
    assert described
    assert "".join(described.split()) in shown
    assert "--" + field.name.replace("_", "-") in shown


# Options that are refused without another one, by the beginning of their names.
NEEDED = {
    "shared_cache_": {"shared_cache": "redis://localhost"},
    "device_memory_bytes": {"device": "cuda"},
}


@pytest.mark.parametrize(("config", "field"), OPTIONS)
def test_every_option_keeps_its_bounds(config: type, field: "dataclasses.Field[Any]") -> None:
    flag = "--" + field.name.replace("_", "-")
    bounds = field.metadata
    outside = [
        bounds["minimum"] is not None and bounds["minimum"] - 1,
        bounds["maximum"] is not None and bounds["maximum"] + 1,
        bounds["exclusive_minimum"],
    ]
    for value in (value for value in outside if value is not None and value is not False):
        with pytest.raises(ConfigError, match=f"^{flag} is "):
            config(**{field.name: value})
    for value in (bounds["minimum"], bounds["maximum"]):
        if value is not None:
            needed = [more for name, more in NEEDED.items() if field.name.startswith(name)]
            options = {field.name: value, **(needed[0] if needed else {})}
            assert getattr(config(**options), field.name) == value


@pytest.mark.parametrize("config", ALL_CONFIGS)
def test_every_number_has_both_bounds(config: type) -> None:
    hints = get_type_hints(config)
    unbounded = [
        f.name
        for f in dataclasses.fields(config)
        if {int, float} & {hints[f.name], *get_args(hints[f.name])}
        and (
            f.metadata["maximum"] is None
            or (f.metadata["minimum"] is None and f.metadata["exclusive_minimum"] is None)
        )
    ]
    assert unbounded == []


def test_each_of_several_numbers_is_within_the_bounds() -> None:
    with pytest.raises(ConfigError, match=r"^--pairs-per-pass is 0; it must be at least 1$"):
        TrainBenchConfig(model="m", pairs_per_pass=(1, 0))


def test_threads_are_bounded() -> None:
    """--threads 100000 was accepted, and the process was killed for memory."""
    with pytest.raises(ConfigError, match=r"^--threads is 100000; it must be at most 1024$"):
        EngineConfig(threads=100_000)


@pytest.mark.parametrize("config", CONFIGS)
def test_defaults_come_through_the_command_line(config: type) -> None:
    assert from_options(config, _parser(config).parse_args([])) == config()


@pytest.mark.parametrize(("name", "bound"), [("rate", "greater than"), ("count", "at least")])
def test_not_a_number_is_within_no_bounds(name: str, bound: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name} is nan; it must be {bound}"):
        dataclasses.replace(Example(source=""), **{name: math.nan})  # type: ignore[arg-type]
