"""`kwise bench experiments` and `kwise bench evidence`, with a tiny model and forty rankings."""

import json
import random
from pathlib import Path

import pytest

from kwise.benchmarks.experiments.cells import PROMPTS
from kwise.benchmarks.experiments.options import STUDIES
from kwise.benchmarks.experiments.report.run import TABLES
from kwise.cli import main

NUM_PROMPTS = 40


@pytest.fixture(scope="module")
def rankings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rankings of nine: the more often a response says yes, the higher is its score."""
    path = tmp_path_factory.mktemp("rankings") / "rankings.jsonl"
    draws = random.Random(0)
    lines = []
    for number in range(NUM_PROMPTS):
        responses = [
            {
                "text": " ".join(["yes"] * good + ["no"] * (8 - good)),
                "score": round((good + draws.random()) / 10, 6),
                "source": f"system {good % 3}{good}",
            }
            for good in range(9)
        ]
        lines.append(json.dumps({"prompt": f"Question {number}?", "responses": responses}))
    path.write_text("\n".join(lines))
    return path


def test_results_tables_and_plots_of_all_experiments(
    rankings: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, images = tmp_path / "results", tmp_path / "images"
    folders = ["--states", str(tmp_path / "states"), "--results", str(results)]
    models = ["--models", f"tiny={tiny_checkpoint}"]
    run = ["bench", "experiments", str(rankings), *models, *folders, "--seeds", "1"]
    some = [*run, "--studies", *STUDIES[:-1], "--max-cells", "3"]
    assert main(some) == 0
    assert main(some) == 0  # the next three
    assert main([*run, "--studies", "fine-tuning", "--max-cells", "1"]) == 0
    lines = {name: (results / f"{name}.jsonl").read_text().splitlines() for name in STUDIES}
    assert {name: len(set(own)) for name, own in lines.items()} == {
        "annotators": 6,
        "group-size": 3,  # 30 rankings of nine, with three kinds of noise
        "data-size": 2,
        "losses": 6,
        "models": 4,
        "systems": 6,
        "fine-tuning": 1,
    }
    for line in lines["data-size"]:
        right = json.loads(line)["right"]
        assert len(right) == NUM_PROMPTS // 5
        assert sum(right) > 0.8 * 36 * len(right)  # yes and no are easily told apart
    before = (results / "data-size.jsonl").read_bytes()
    assert main([*run, "--studies", "data-size"]) == 0
    assert (results / "data-size.jsonl").read_bytes() == before
    draw = ["bench", "evidence", "--results", str(results), "--images", str(images)]
    assert main([*draw, "--draws", "50"]) == 0
    tables = (results / TABLES).read_text()
    assert "## annotators" in tables and "| longer wins |" in tables and "nan" not in tables
    names = ("annotators", "data-size", "group-size", "losses", "models")
    assert [path.name for path in sorted(images.iterdir())] == [
        f"evidence-{name}.svg" for name in names
    ]
    capsys.readouterr()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(rankings.read_text().splitlines()[1:]))
    run[2] = str(other)
    assert main(run) == 2
    assert "is of other rankings" in capsys.readouterr().err


def test_no_text_of_the_rankings_is_in_the_results(
    rankings: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    folders = ["--states", str(tmp_path / "states"), "--results", str(results)]
    run = ["bench", "experiments", str(rankings), "--models", f"tiny={tiny_checkpoint}", *folders]
    assert main([*run, "--studies", "systems", "--seeds", "1", "--max-cells", "2"]) == 0
    assert "Question" not in (results / PROMPTS).read_text()
    assert "Question" not in (results / "systems.jsonl").read_text()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--models", "checkpoint"], "--models must be NAME=MODEL"),
        (["--models", "a=x", "a=y"], "--models gives the same name twice"),
        (["--models", "a=x", "--studies", "speed"], "--studies is 'speed'; it must be one of"),
        ([], "--models must be NAME=MODEL"),
    ],
)
def test_wrong_options_are_named(
    options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "experiments", "rankings.jsonl", *options]) == 2
    assert problem in capsys.readouterr().err


def test_rankings_without_scores_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["bench", "experiments", "examples/rankings.jsonl", "--models", "a=b"]
    assert main([*run, "--results", str(tmp_path)]) == 2
    assert "must have as many responses as the first" in capsys.readouterr().err
    assert main(["bench", "evidence", "--results", str(tmp_path)]) == 2
    assert "run kwise bench experiments first" in capsys.readouterr().err
