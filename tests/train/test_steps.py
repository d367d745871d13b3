"""What --output, --resume and --overwrite may do to a directory: nothing is deleted that kwise train did not write, and an
earlier checkpoint stays until the new one is whole."""

import json
from pathlib import Path

import pytest

from kwise.engine.errors import ConfigError
from kwise.train.steps import REPORT_NAME, StepsDir

OURS = {"rankings_by_size": {}, "versions": {}}
RUN = {"config": {}, "rankings_sha256": ""}


def write_checkpoint(directory: Path, *names: str) -> None:
    """As a finished run leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text("old")
    (directory / REPORT_NAME).write_text(json.dumps({**OURS, "files": names}))


def check(output: Path) -> None:
    StepsDir(output).check(resume=False, overwrite=True)


def test_a_finished_checkpoint_and_an_unfinished_run_of_ours_may_be_overwritten(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "finished", "config.json", "model.safetensors")
    check(tmp_path / "finished")
    unfinished = StepsDir(tmp_path / "unfinished")
    unfinished.open(overwrite=False)
    check(tmp_path / "unfinished")
    unfinished.write_run(RUN)
    check(tmp_path / "unfinished")
    check(tmp_path / "not there yet")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"steps/notes.txt": "mine"}, "steps"),
        ({"steps/run.json": "[]"}, "steps"),
        ({"steps/run.json": json.dumps({"config": {}})}, "steps"),
        ({"steps/run.json": json.dumps(RUN), "thesis.tex": "mine"}, "thesis.tex"),
        ({REPORT_NAME: "{}"}, REPORT_NAME),
        ({REPORT_NAME: json.dumps({**OURS, "files": ["model"]}), "model": "", "thesis.tex": "mine"}, "thesis.tex"),
        ({REPORT_NAME: json.dumps({**OURS, "files": ["sub/thesis.tex", "..", "sub"]}), "sub/thesis.tex": "mine"}, "sub"),
    ],
)
def test_a_directory_with_anything_else_in_it_is_refused_by_name(tmp_path: Path, files: dict[str, str], named: str) -> None:
    """Any directory with a steps/ in it was taken for ours and deleted whole."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=f"^--overwrite: .* has {named}, which"):
        check(tmp_path)


def test_an_earlier_checkpoint_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "config.json", "model.safetensors", "vocab.txt")
    steps = StepsDir(tmp_path)
    check(tmp_path)
    steps.open(overwrite=True)
    steps.write_run(RUN)
    assert (tmp_path / "model.safetensors").read_text() == "old"
    check(tmp_path)  # a run that was killed here can be overwritten again
    final = steps.path / "final"
    final.mkdir()
    for name in ("config.json", "model.safetensors", REPORT_NAME):
        (final / name).write_text("new")
    steps.publish(final)
    steps.close()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "config.json": "new",
        "model.safetensors": "new",
        REPORT_NAME: "new",
    }


def test_the_folders_of_a_checkpoint_are_overwritten_file_by_file(tmp_path: Path) -> None:
    for name in ("adapter/old", "runs/events"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("old")
    write_checkpoint(tmp_path, "config.json")
    (tmp_path / REPORT_NAME).write_text(json.dumps({**OURS, "files": ["config.json", "adapter/old", "runs/events"]}))
    check(tmp_path)
    (tmp_path / "adapter" / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"has adapter/thesis\.tex, which"):
        check(tmp_path)
    (tmp_path / "adapter" / "thesis.tex").unlink()
    steps = StepsDir(tmp_path)
    steps.open(overwrite=True)
    final = steps.path / "final"
    (final / "adapter").mkdir(parents=True)
    for name in ("adapter/new", REPORT_NAME):
        (final / name).write_text("new")
    steps.publish(final)
    steps.close()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"adapter", "adapter/new", REPORT_NAME}


def test_a_file_for_an_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is no directory"):
        check(tmp_path / "file")
