"""A run is resumed only with what it began with: model, template, its date, tokenizer, data."""

from pathlib import Path
from typing import Any

import pytest

from kwise.errors import ConfigError
from kwise.train.options.config import TrainConfig
from kwise.train.report.provenance import tokenizer_sha256
from kwise.train.run.run_record import check_same_run
from kwise.train.run.training import train
from tests.training_runs import IGNORED_WARNINGS, interrupted_at, options

pytestmark = IGNORED_WARNINGS
LINES = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
RUN: dict[str, Any] = {
    "config": {"model": "m", "seed": 0},
    "rankings_sha256": "1",
    "validation_sha256": None,
    "model_sha256": "2",
    "tokenizer_sha256": "3",
    "template_sha256": "4",
    "template_date": None,
    "layout": "trie",
    "precision": "fp32",
    "sharded": False,
    "versions": {"torch": "2.0"},
}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"rankings_sha256": "x"}, "the rankings are not those with which the run began"),
        (
            {"validation_sha256": "x"},
            "the rankings of --validation are not those with which the run began",
        ),
        ({"model_sha256": "x"}, "the model m is not the one with which the run began"),
        ({"tokenizer_sha256": "x"}, "the tokenizer is not the one with which the run began"),
        ({"template_sha256": "x"}, "the chat template is not the one with which the run began"),
        ({"layout": "padded"}, "the layout was trie when the run began and is padded now"),
        ({"precision": "bf16"}, "the precision was fp32 when the run began and is bf16 now"),
        ({"config": {"model": "m", "seed": 1}}, "--seed was 0 when the run began and is 1 now"),
        (
            {"config": {"model": "m", "seed": None}},
            "--seed was 0 when the run began and is not given now",
        ),
    ],
)
def test_what_has_changed_is_named(changed: dict[str, Any], problem: str) -> None:
    assert check_same_run(RUN, RUN) == []
    with pytest.raises(ConfigError, match=f"^--resume: {problem}$"):
        check_same_run({**RUN, **changed}, RUN)


def test_what_is_hashed_may_have_been_moved() -> None:
    """The same rankings under another path were refused."""
    moved = {**RUN, "config": {**RUN["config"], "model": "copy"}}
    assert check_same_run(moved, RUN) == []
    without_hash = {name: value for name, value in RUN.items() if name != "model_sha256"}
    with pytest.raises(ConfigError, match=r"^--resume: --model was m when the run began"):
        check_same_run(moved, without_hash)


def test_a_limit_of_the_tokenizer_is_part_of_its_hash(smollm2_tokenizer: Any) -> None:
    """It decides which rankings are too long."""
    before, limit = tokenizer_sha256(smollm2_tokenizer), smollm2_tokenizer.model_max_length
    try:
        smollm2_tokenizer.model_max_length = 7
        assert tokenizer_sha256(smollm2_tokenizer) != before
    finally:
        smollm2_tokenizer.model_max_length = limit


def test_another_version_of_a_library_is_noted_and_an_older_record_is_accepted() -> None:
    (note,) = check_same_run({**RUN, "versions": {"torch": "2.1"}}, RUN)
    assert note.startswith("torch was 2.0 when the run began and is 2.1 now: the weights may")
    older = {name: RUN[name] for name in ("config", "rankings_sha256", "sharded")}
    assert check_same_run(RUN, older) == []


def test_an_edited_template_ends_a_resumed_run_and_a_printed_date_can_be_kept(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The weights differed by 0.02 from those of an uninterrupted run."""
    template = tmp_path / "t.jinja"
    template.write_text("{{ strftime_now('%d %b %Y') }}\n" + LINES)
    settings = options(
        data, tiny_checkpoint, tmp_path / "out", chat_template=template, epochs=0.2, save_every=1
    )
    interrupted_at("step 2/", TrainConfig(**settings, template_date="2025-03-01"))
    with pytest.raises(ConfigError, match=r"printed 2025-03-01 .* add --template-date 2025-03-01$"):
        train(TrainConfig(**settings, resume=True))
    template.write_text(LINES + "{{ strftime_now('%d %b %Y') }}")
    again = TrainConfig(**settings, resume=True, template_date="2025-03-01")
    with pytest.raises(ConfigError, match="the chat template is not the one"):
        train(again)
    template.write_text("{{ strftime_now('%d %b %Y') }}\n" + LINES)
    report = train(again)
    assert report.template_date == "2025-03-01" and report.num_steps == 3
    card = (settings["output"] / "README.md").read_text()
    assert f"the chat template {template}, which prints the date 2025-03-01; sha256" in card
    saved = (settings["output"] / "chat_template.jinja").read_text()
    assert "01 Mar 2025" in saved and saved.endswith(LINES)
