"""Bulk work on Ray: the rewards and the output of a single process, and a worker that is killed."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.bulk.runs import groups, rerank, write_lines
from tests.cluster.processes import ray_processes
from tests.servers import wait_until

WORKERS = ["--ray", "--workers", "2"]


def rows_of(count: int) -> list[dict[str, Any]]:
    """Return rows whose prompts are texts, because a column of Arrow has one type."""
    rows = groups(count)
    return [{**row, "prompt": row["prompt"], "n": n} for n, row in enumerate(rows) if n % 4 != 3]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with several hundred windows, and some bad rows."""
    rows: list[dict[str, object] | str] = [*groups(400, responses=4)]
    for place in (5, 150, 399):
        rows.insert(place, "not JSON")
    return write_lines(tmp_path_factory.mktemp("given") / "in.jsonl", rows)


@pytest.fixture
def kill() -> Iterator[Callable[[Callable[[], bool], str], Future[None]]]:
    """A function that kills one process of Ray, in another thread, once a condition is true."""
    with ThreadPoolExecutor(1) as pool:

        def killed(condition: Callable[[], bool], name: str) -> None:
            wait_until(lambda: condition() and bool(ray_processes(name)))
            ray_processes(name)[0].kill()

        yield lambda condition, name: pool.submit(killed, condition, name)


Kill = Callable[[Callable[[], bool], str], "Future[None]"]


def test_rerank_writes_the_bytes_of_a_single_process_although_a_worker_is_killed(
    ray_cluster: Any, given: Path, tiny_artifact: Path, tmp_path: Path, kill: Kill
) -> None:
    options: list[str | Path] = [
        "--artifact",
        tiny_artifact,
        "--threads",
        "1",
        "--window-tokens",
        "1024",
    ]
    alone, output = tmp_path / "alone.jsonl", tmp_path / "ray.jsonl"
    assert rerank(given, alone, *options) == 1
    partial = tmp_path / "ray.jsonl.partial"
    killed = kill(lambda: partial.exists() and partial.stat().st_size > 0, "Worker")
    assert rerank(given, output, *options, *WORKERS) == 1
    killed.result()
    assert output.read_bytes() == alone.read_bytes()
    bad = [path.with_name(f"{path.name}.bad.jsonl").read_bytes() for path in (alone, output)]
    assert bad[0] == bad[1]


def test_rerank_says_in_one_line_why_it_cannot_begin(
    ray_cluster: Any,
    given: Path,
    tiny_artifact: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out.jsonl"
    assert rerank(given, output, "--artifact", tmp_path / "none", *WORKERS) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err
    artifact: list[str | Path] = ["--artifact", tiny_artifact]
    assert rerank(given, output, *artifact, "--ray", "--cpus-per-worker", "900") == 2
    assert "--cpus-per-worker is 900" in capsys.readouterr().err
    assert rerank(given, output, "--server", "localhost:1", *WORKERS) == 2
    assert "give --artifact" in capsys.readouterr().err
    assert rerank(given, output, *artifact, *WORKERS, "--device", "cuda") == 2
    assert "give --gpus-per-worker 1" in capsys.readouterr().err


async def test_a_data_set_gets_the_rewards_of_a_single_process(
    ray_cluster: Any, tiny_artifact: Path, kill: Kill
) -> None:
    from kwise.cluster.data import score_dataset
    from kwise.engine.scorer import Scorer
    from kwise.types import Group, Message

    rows = rows_of(80)
    broken = {"id": "broken", "prompt": "a", "responses": [], "n": 1000}
    dataset = ray_cluster.data.from_items([*rows, broken]).repartition(12)
    scored = score_dataset(dataset, str(tiny_artifact), workers=2, batch_groups=8)
    killed = kill(lambda: True, "MapWorker")
    found = {row["n"]: row for row in scored.take_all()}
    killed.result()
    assert len(found) == len(rows) + 1 and found.pop(1000)["rewards"] == []
    async with Scorer.load(tiny_artifact) as scorer:
        for row in rows:
            prompt = (Message(role="user", content=row["prompt"]),)
            alone = await scorer.score(Group(prompt=prompt, responses=tuple(row["responses"])))
            assert found[row["n"]]["rewards"] == pytest.approx(alone.values, abs=1e-4)
            assert list(found[row["n"]]["errors"]) == [None] * 3
