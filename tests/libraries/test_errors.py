"""Exceptions of other libraries become one line; a bug in kwise stays one."""

import json
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer

from kwise.errors import ArtifactError, ConfigError
from kwise.libraries.errors import cause_of, library_errors
from kwise.train.rankings.split import split_by_prompt


def divides_in_a_template() -> None:
    jinja2.Template("{{ 1 // 0 }}").render()


def reads_a_broken_tokenizer() -> None:
    Tokenizer.from_str("{}")  # written in Rust: it has no frame of its own


def parses_json() -> None:
    json.loads("[")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (divides_in_a_template, "ZeroDivisionError: "),
        (reads_a_broken_tokenizer, "Model missing"),
        (parses_json, "Expecting value: line 1 column 2 (char 1)"),
    ],
)
def test_an_exception_of_a_library_is_one_line_with_its_cause(
    call: Callable[[], None], says: str
) -> None:
    with (
        pytest.raises(ArtifactError) as raised,
        library_errors("x: cannot be read", advice="try another", raises=ArtifactError),
    ):
        call()
    line = str(raised.value)
    assert line.startswith(f"x: cannot be read: {says}") and line.endswith("; try another")
    assert "\n" not in line
    assert raised.value.__cause__ is not None


def test_a_builtin_that_the_block_calls_itself_is_foreign() -> None:
    with pytest.raises(ConfigError, match=r"^x: TypeError: "), library_errors("x"):
        int([])  # type: ignore[call-overload]


def test_a_bug_in_kwise_and_an_error_of_kwise_pass_unchanged() -> None:
    with pytest.raises(AttributeError), library_errors("x"):
        split_by_prompt([None], 0.5, 0)  # type: ignore[list-item]
    with pytest.raises(ArtifactError, match=r"^own$"), library_errors("x"):
        raise ArtifactError("own")


def test_what_the_machine_lacks_and_ctrl_c_pass_unchanged() -> None:
    for error in (MemoryError(), OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises(type(error)), library_errors("x"):
            raise error


def test_a_long_message_is_cut_and_stacks_are_left_out() -> None:
    assert len(cause_of(ValueError("a" * 1000))) == 301
    assert cause_of(RuntimeError("shapes differ\nException raised from f at x.cpp")) == (
        "shapes differ"
    )
    assert cause_of(KeyError("model_type")) == "KeyError: 'model_type'"
    assert cause_of(ValueError()) == "ValueError"


def test_a_model_that_kwise_does_not_handle_is_not_a_bug(tmp_path: Path) -> None:
    def refuses() -> None:
        raise NotImplementedError("attends with sinks")

    with pytest.raises(ConfigError, match=r"^m: attends with sinks$"), library_errors("m"):
        refuses()


def test_memory_that_is_too_small_has_its_own_advice() -> None:
    def allocates() -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B")

    with (
        pytest.raises(ConfigError, match=r"9 B; smaller batches$"),
        library_errors("x", advice="other", memory_advice="smaller batches"),
    ):
        allocates()
