"""What --output, --resume and --overwrite may do to a directory: nothing is deleted that kwise train did not write, and an
earlier checkpoint stays until the new one is whole."""

import json
from pathlib import Path
from typing import Any

import pytest

from kwise.errors import ConfigError
from kwise.train.run.steps import REPORT_NAME, StepsDir

OURS: dict[str, object] = {"rankings_by_size": {}, "versions": {}}
RUN = {"config": {}, "rankings_sha256": ""}


def write_checkpoint(directory: Path, *names: str) -> None:
    """As a finished run leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text("old")
    (directory / REPORT_NAME).write_text(json.dumps({**OURS, "files": names}))


def check(output: Path) -> None:
    StepsDir(output).check(resume=False, overwrite=True)


def test_a_finished_checkpoint_and_an_unfinished_run_of_ours_may_be_overwritten(
    tmp_path: Path,
) -> None:
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
        (
            {
                REPORT_NAME: json.dumps({**OURS, "files": ["model"]}),
                "model": "",
                "thesis.tex": "mine",
            },
            "thesis.tex",
        ),
        (
            {
                REPORT_NAME: json.dumps({**OURS, "files": ["sub/thesis.tex", "..", "sub"]}),
                "sub/thesis.tex": "mine",
            },
            "sub",
        ),
    ],
)
def test_a_directory_with_anything_else_in_it_is_refused_by_name(
    tmp_path: Path, files: dict[str, str], named: str
) -> None:
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
    (tmp_path / REPORT_NAME).write_text(
        json.dumps({**OURS, "files": ["config.json", "adapter/old", "runs/events"]})
    )
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
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {
        "adapter",
        "adapter/new",
        REPORT_NAME,
    }


def test_a_file_for_an_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is no directory"):
        check(tmp_path / "file")


def finished(output: Path, files: dict[str, str]) -> StepsDir:
    """An unfinished run whose new checkpoint is whole and not yet published."""
    steps = StepsDir(output)
    steps.open(overwrite=False)
    steps.write_run(RUN)
    write_final(steps, files)
    return steps


def write_final(steps: StepsDir, files: dict[str, str]) -> None:
    """As a run and one that is resumed do."""
    (steps.path / "final").mkdir(exist_ok=True)
    for name, text in files.items():
        (steps.path / "final" / name).write_text(text)
    (steps.path / "final" / REPORT_NAME).write_text(json.dumps({**OURS, "files": sorted(files)}))


def contents(output: Path) -> dict[str, str]:
    return {
        path.name: path.read_text()
        for path in output.iterdir()
        if path.is_file() and path.name != REPORT_NAME
    }


def test_a_file_of_somebody_elses_is_not_replaced_and_nothing_is_moved(tmp_path: Path) -> None:
    """A README.md written beside steps/ was lost with --resume."""
    steps = finished(tmp_path, {"README.md": "card", "config.json": "new"})
    final = steps.path / "final"
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"README\.md is in the way of the checkpoint"):
        steps.publish(final)
    assert contents(tmp_path) == {"README.md": "mine"} and (final / "config.json").exists()
    (tmp_path / "README.md").unlink()
    (tmp_path / "adapter").write_text("mine")
    (final / "adapter").mkdir()
    (final / "adapter" / "weights").touch()
    with pytest.raises(ConfigError, match="adapter is in the way"):
        steps.publish(final)
    (tmp_path / "adapter").unlink()
    steps.publish(final)
    assert contents(tmp_path) == {"README.md": "card", "config.json": "new"}


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("again", ["resume", "overwrite"])
def test_publishing_can_be_killed_anywhere_and_leaves_no_file_that_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, again: str
) -> None:
    """A kill between the report and the deletion left the earlier checkpoint's vocab.txt for good."""
    write_checkpoint(tmp_path, "config.json", "old.txt", "vocab.txt")
    files = {"config.json": "new", "model.safetensors": "new", "tokenizer.json": "new"}
    steps = finished(tmp_path, files)
    changes = 0

    def killed(change: Any) -> Any:
        def changing(path: Path, *args: Any) -> Any:
            nonlocal changes
            if changes == at:
                raise Killed
            changes += 1
            return change(path, *args)

        return changing

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed(Path.replace))
        patched.setattr(Path, "unlink", killed(Path.unlink))
        with pytest.raises(Killed):
            steps.publish(steps.path / "final")
    steps.check(resume=again == "resume", overwrite=again == "overwrite")
    steps.open(overwrite=again == "overwrite")
    check(tmp_path)
    steps.write_run(RUN)
    write_final(steps, {name: f"{text} again" for name, text in files.items()})
    steps.publish(steps.path / "final")
    steps.close()
    assert contents(tmp_path) == dict.fromkeys(files, "new again")
    assert json.loads((tmp_path / REPORT_NAME).read_text())["files"] == sorted(files)
