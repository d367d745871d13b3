"""`kwise rerank --server`: several servers, and a model that changes in mid-run."""

from pathlib import Path
from typing import Any

import pytest

from kwise.protos.kwise.v1 import reward_pb2 as pb
from tests.bulk.runs import groups, read_lines, rerank, write_lines
from tests.length_server import Service, serving


def test_groups_go_to_all_servers_as_bulk_work_and_come_back_in_order(tmp_path: Path) -> None:
    services = [_PriorityService(), _PriorityService()]
    given = groups(60)
    path = write_lines(tmp_path / "in.jsonl", given)
    with serving(service=services[0]) as first, serving(service=services[1]) as second:
        servers = f"{first},{second}"
        options = ["--server", servers, "--window-tokens", "1024"]
        assert rerank(path, tmp_path / "out.jsonl", *options) == 0
    written = [row["rewards"] for row in read_lines(tmp_path / "out.jsonl")]
    assert written == [[len(response) for response in row["responses"]] for row in given]
    for service in services:
        assert {*service.priorities} == {pb.PRIORITY_BULK}


def test_rewards_of_two_models_do_not_get_into_one_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = _ChangingService()
    path = write_lines(tmp_path / "in.jsonl", groups(60))
    output = tmp_path / "out.jsonl"
    with serving(service=service) as server:
        options = ["--server", server, "--window-tokens", "1024"]
        assert rerank(path, output, *options) == 1
        errors = capsys.readouterr().err
        assert "the server has another model now: fingerprint changed and not f" in errors
        assert "The same command with --resume goes on" in errors
        assert not output.exists()
        # The model of the record is back, and the run goes on.
        service.num_left = 1000
        assert rerank(path, output, *options, "--resume") == 0
    assert [row["row"] for row in read_lines(output)] == list(range(1, 61))


SETTINGS: list[tuple[str, Any, Any]] = [
    ("max_tokens", 512, 1024),
    ("overlong", "reject", "drop-turns"),
    ("control_tokens", "accept", "reject"),
]


@pytest.mark.parametrize(("name", "one", "other"), [("precision", "fp32", "int8"), *SETTINGS])
def test_servers_that_answer_differently_are_refused_before_the_first_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, one: Any, other: Any
) -> None:
    path, output = write_lines(tmp_path / "in.jsonl", groups(3)), tmp_path / "out.jsonl"
    with (
        serving(service=_SettingService({name: one})) as first,
        serving(service=_SettingService({name: other})) as second,
    ):
        assert rerank(path, output, "--server", f"{first},{second}") == 1
    flag = "--" + name.replace("_", "-")
    told = f"the servers differ in {name} ({one}, {other}), so their rewards"
    errors = capsys.readouterr().err
    assert told in errors and f"start them with one {flag}" in errors
    assert not output.exists()


@pytest.mark.parametrize(("name", "before", "now"), SETTINGS)
def test_a_run_goes_on_only_with_a_server_that_answers_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, before: Any, now: Any
) -> None:
    service = _ChangingService({name: before})
    path, output = write_lines(tmp_path / "in.jsonl", groups(60)), tmp_path / "out.jsonl"
    with serving(service=service) as server:
        options = ["--server", server, "--window-tokens", "1024", "--resume"]
        assert rerank(path, output, *options) == 1
        service.num_left = 1000
        service.settings = {name: now}
        capsys.readouterr()
        assert rerank(path, output, *options) == 2
        flag = "--" + name.replace("_", "-")
        told = f"the server has {flag} {now}, and had {before} in the run of {output}.run.json: "
        assert told in capsys.readouterr().err
        service.settings = {name: before}
        assert rerank(path, output, *options) == 0
    assert len(read_lines(output)) == 60


def test_a_server_that_is_no_address_is_a_wrong_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "in.jsonl", groups(1))
    assert rerank(path, tmp_path / "out.jsonl", "--server", "a:1,b") == 2
    assert "--server[1]: must be HOST:PORT" in capsys.readouterr().err


class _SettingService(Service):
    """A server that says with which options it was started."""

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.settings = settings or {}

    def GetModel(self, request: pb.GetModelRequest, context: Any) -> pb.GetModelResponse:
        model = super().GetModel(request, context)
        model.MergeFrom(pb.GetModelResponse(**self.settings))
        return model


class _PriorityService(Service):
    """A server that keeps the priorities that it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.priorities: list[int] = []

    def scored(self, group: pb.Group) -> pb.ScoredGroup:
        self.priorities.append(group.priority)
        return super().scored(group)


class _ChangingService(_SettingService):
    """A server that has another model after some groups."""

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        super().__init__(settings)
        self.num_left = 30

    def scored(self, group: pb.Group) -> pb.ScoredGroup:
        scored = super().scored(group)
        self.num_left -= 1
        if self.num_left < 0:
            scored.fingerprint = "changed"
        return scored
