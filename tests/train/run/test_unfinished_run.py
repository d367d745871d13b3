"""No option deletes what kwise train did not write, and the new checkpoint replaces the old as a
whole.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kwise import publish
from kwise.errors import ConfigError
from kwise.train.options.config import TrainConfig
from kwise.train.run.processes import Processes
from kwise.train.run.training import train
from kwise.train.run.unfinished_run import REPORT_NAME, MarkComplete, UnfinishedRun
from tests.training_runs import options

OURS: dict[str, Any] = {"rankings_by_size": {}, "versions": {}}
RUN: dict[str, Any] = {"config": {}, "rankings_sha256": ""}


def write_checkpoint(directory: Path, files: dict[str, str]) -> None:
    """Write what a finished run leaves."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    (directory / REPORT_NAME).write_text(json.dumps({**OURS, "files": sorted(files)}))


def check(output: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    UnfinishedRun(output).check(resume=resume, overwrite=overwrite)


def begun(output: Path) -> UnfinishedRun:
    """A run that has begun and is not finished."""
    run = UnfinishedRun(output)
    run.open(overwrite=False)
    run.write_run(RUN)
    return run


def contents(directory: Path) -> dict[str, str]:
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file() and path.name != REPORT_NAME
    }


def test_a_finished_checkpoint_and_an_unfinished_run_of_ours_may_be_overwritten(
    tmp_path: Path,
) -> None:
    output = tmp_path / "checkpoint"
    check(output, overwrite=True)
    write_checkpoint(output, {"config.json": "old", "adapter/weights": "old", "runs/events": "old"})
    check(output, overwrite=True)
    run = UnfinishedRun(output)
    run.open(overwrite=False)
    check(output, overwrite=True)
    run.write_run(RUN)
    check(output, overwrite=True)
    run.open(overwrite=True)
    assert run.read_run() is None and contents(output).keys() > {"config.json"}


def test_a_directory_with_something_in_it_needs_an_option(tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    check(output)
    with pytest.raises(
        ConfigError, match=r"--resume: .*checkpoint\.unfinished has no unfinished run"
    ):
        check(output, resume=True)
    write_checkpoint(output, {"config.json": "old"})
    with pytest.raises(ConfigError, match="is not empty; choose --overwrite"):
        check(output)
    begun(output)
    with pytest.raises(ConfigError, match="has an unfinished run; choose --resume or --overwrite"):
        check(output)
    check(output, resume=True)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"out.unfinished/notes.txt": "mine"}, r"out\.unfinished is not known"),
        ({"out.unfinished/run.json": "[]"}, r"out\.unfinished is not known"),
        ({"out.unfinished/run.json": '{"config": {}}'}, r"out\.unfinished is not known"),
        ({"out/thesis.tex": "mine"}, r"out has thesis\.tex, which"),
        ({"out/adapter/thesis.tex": "mine"}, r"out has adapter/thesis\.tex, which"),
        ({f"out/{REPORT_NAME}": "{}"}, rf"out has {REPORT_NAME}, which"),
        (
            {
                f"out/{REPORT_NAME}": json.dumps({**OURS, "files": ["model"]}),
                "out/model": "",
                "out/thesis.tex": "mine",
            },
            r"out has thesis\.tex, which",
        ),
        (
            {
                f"out/{REPORT_NAME}": json.dumps(
                    {**OURS, "files": ["sub/thesis.tex", "..", "sub"]}
                ),
                "out/sub/thesis.tex": "mine",
            },
            r"out has sub/thesis\.tex, which",
        ),
    ],
)
def test_a_directory_with_anything_else_in_it_is_refused_by_name(
    tmp_path: Path, files: dict[str, str], named: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=named):
        check(tmp_path / "out", overwrite=True)


def test_a_file_a_mount_point_and_the_current_directory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is not a directory"):
        check(tmp_path / "file", overwrite=True)
    with pytest.raises(ConfigError, match="is a mount point, which cannot be replaced"):
        check(Path("/"), overwrite=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is the current directory, which the checkpoint would"):
        check(Path())  # it was deleted under the user's shell, which saw no file any more


def test_an_earlier_checkpoint_is_whole_until_the_new_one_takes_its_place(tmp_path: Path) -> None:
    """Files were published one by one: a reader could meet the new config with the old weights."""
    output = tmp_path / "checkpoint"
    old = {"config.json": "old", "model.safetensors": "old", "vocab.txt": "old", "runs/a": "old"}
    new = {"config.json": "new", "model.safetensors": "new", "adapter/weights": "new"}
    write_checkpoint(output, old)
    reader = (output / "config.json").open()
    run = begun(output)
    final = run.make_final()
    write_checkpoint(final, new)
    assert contents(output) == old
    run.publish(final)
    assert contents(output) == new and not run.path.exists()
    assert reader.read() == "old", "who had opened the old one reads it to the end"
    reader.close()


def test_a_foreign_file_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    run = begun(output)
    final = run.make_final()
    write_checkpoint(final, {"config.json": "new"})
    output.mkdir()
    (output / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"has README\.md, .*; move it and give --resume"):
        run.publish(final)
    assert contents(output) == {"README.md": "mine"} and (final / "config.json").exists()
    (output / "README.md").unlink()
    run.publish(final)
    assert contents(output) == {"config.json": "new"}


class Killed(Exception):
    pass


@pytest.mark.parametrize("point", ["before the exchange", "after the exchange", "while deleting"])
@pytest.mark.parametrize("again", ["resume", "overwrite"])
def test_publishing_can_be_killed_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, again: str
) -> None:
    output = tmp_path / "checkpoint"
    old, new = {"config.json": "old", "vocab.txt": "old"}, {"config.json": "new"}
    write_checkpoint(output, old)
    run = begun(output)
    final = run.make_final()
    write_checkpoint(final, new)

    def killed(*args: Any, **kwargs: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        match point:
            case "before the exchange":
                patched.setattr(publish, "_exchange", killed)
            case "after the exchange":
                patched.setattr("shutil.rmtree", killed)
            case _:
                patched.setattr(UnfinishedRun, "_delete", killed)
        with pytest.raises(Killed):
            run.publish(final)
    assert contents(output) == (old if point == "before the exchange" else new)
    check(output, resume=again == "resume", overwrite=again == "overwrite")
    run.open(overwrite=again == "overwrite")
    run.write_run(RUN)
    final = run.make_final()
    write_checkpoint(final, {"config.json": "new again"})
    run.publish(final)
    assert contents(output) == {"config.json": "new again"} and not run.path.exists()


def test_a_half_written_step_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    run = begun(tmp_path / "checkpoint")
    for name in ("checkpoint-5", "checkpoint-10"):
        (run.path / name).mkdir()
    (run.path / "checkpoint-5" / "complete").touch()
    assert run.newest_complete() == run.path / "checkpoint-5"


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_step_checkpoint_is_not_resumed_from_and_is_named(
    tmp_path: Path, damage: str
) -> None:
    """Without its optimizer's file a run went on with a new optimizer, to other weights."""
    run = begun(tmp_path / "checkpoint")
    for step in (5, 10):
        path = run.path / f"checkpoint-{step}"
        path.mkdir()
        (path / "optimizer.pt").write_text("moments")
        state: Any = SimpleNamespace(global_step=step)
        MarkComplete(Processes()).on_save(SimpleNamespace(output_dir=run.path), state, None)
    assert run.newest_complete() == run.path / "checkpoint-10" and run.damages() == []
    optimizer = run.path / "checkpoint-10" / "optimizer.pt"
    optimizer.unlink() if damage == "missing" else optimizer.write_text("mom")
    assert run.newest_complete() == run.path / "checkpoint-5"
    assert run.damages() == [
        "checkpoint-10 is not used: optimizer.pt is missing or has another size"
    ]


def test_of_two_runs_that_start_at_once_one_is_refused(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Loading the model takes a while, and then both wrote to one directory."""
    output = tmp_path / "checkpoint"
    others: list[UnfinishedRun] = []

    def progress(line: str) -> None:
        if not others:
            others.append(begun(output))

    with pytest.raises(ConfigError, match=r"another run has begun in .*checkpoint\.unfinished"):
        train(TrainConfig(**options(data, tiny_checkpoint, output)), progress)
    assert others[0].read_run() == RUN and not output.exists()
