"""The arithmetic of machines: formulas, the options, and the numbers in docs/capacity.md."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kwise.benchmarks.capacity.hardware import DEVICES, MODELS, Device
from kwise.benchmarks.capacity.machines import Demand, Plan, group_size, plan
from kwise.benchmarks.options import Cell
from kwise.cli import main
from kwise.engine.trie import build_trie
from tests.real_data import ROOT

ONLINE = Demand(cell=Cell(P=256, R=512, K=9), groups_per_s=1000 / 60)
OVERNIGHT = Demand(cell=Cell(P=256, R=512, K=9), groups_per_s=1e8 / 9 / 36_000, utilisation=0.95)
# Two cores with AVX2, measured at 256/512/9: smollm2-fp32-48-cells.md.
TWO_CORES = Device(peak_flops=None, rates=(0.9 * 555, 555, 1.1 * 555), memory_bytes=25e9)
DOCUMENTED = {
    "135m": {"2 CPU cores": TWO_CORES},
    "7b": {"h200": DEVICES["h200"]},
    "8b": DEVICES,
    "70b": {"h200": DEVICES["h200"], "h100": DEVICES["h100"], "a100": DEVICES["a100"]},
}


@pytest.mark.parametrize("shares_prompts", [True, False])
def test_rows_and_pairs_are_those_of_tries(shares_prompts: bool) -> None:
    cell = Cell(P=7, R=5, K=3)
    sequences = [sequence.token_ids for sequence in cell.group(vocab_size=10_000, seed=1)]
    batches = [sequences] if shares_prompts else [[sequence] for sequence in sequences]
    tries = [build_trie(batch) for batch in batches]
    assert group_size(cell, shares_prompts=shares_prompts) == (
        sum(trie.num_nodes for trie in tries),
        sum(int((trie.depths + 1).sum()) for trie in tries),
    )


def test_a_plan_by_hand() -> None:
    """4,864 rows of 14 GFLOP and 2.39 million pairs of 0.52 MFLOP, 16.7 times a second."""
    result = plan(ONLINE, MODELS["8b"], DEVICES["h100"])
    assert result.rows == 256 + 9 * 512
    pairs = 256 * 257 / 2 + 9 * (512 * 256 + 512 * 513 / 2)
    operations = 2 * 6.98e9 * 4864 + 4 * 32 * 4096 * pairs
    assert result.operations == pytest.approx(operations)
    seconds = operations / (989e12 * 0.5)
    assert result.expected.seconds == pytest.approx(seconds)
    assert result.expected.replicas == 4 == -(-1000 / 60 * seconds // 0.7)
    assert result.best.devices <= result.expected.devices <= result.worst.devices


def test_a_measured_rate_needs_no_peak() -> None:
    result = plan(ONLINE, MODELS["135m"], TWO_CORES)
    assert result.expected.seconds == pytest.approx(4864 / 555)
    assert result.expected.replicas == 209


def test_what_saves_work_saves_machines() -> None:
    replicas = [
        plan(demand, MODELS["8b"], DEVICES["l4"]).expected.replicas
        for demand in (
            replace(ONLINE, shares_prompts=False),
            ONLINE,
            replace(ONLINE, cached=0.5),
            replace(ONLINE, cached=0.5, utilisation=0.95),
        )
    ]
    assert replicas == sorted(replicas, reverse=True)
    assert len(set(replicas)) == 4


def test_weights_that_do_not_fit_take_several_devices() -> None:
    per_replica = {
        name: plan(ONLINE, MODELS["70b"], device).devices_per_replica
        for name, device in DEVICES.items()
    }
    assert per_replica == {"h200": 2, "h100": 4, "a100": 4, "l4": 8}


def documented_row(model: str, device: str, result: Plan) -> str:
    """Return a row of the tables in docs/capacity.md."""
    expected = result.expected
    return (
        f"| {model} | {device} | {result.devices_per_replica} | {expected.seconds:.3g} "
        f"| {expected.replicas:,d} | {expected.devices:,d} "
        f"({result.best.devices:,d} to {result.worst.devices:,d}) |"
    )


@pytest.mark.parametrize("demand", [ONLINE, OVERNIGHT], ids=["online", "overnight"])
def test_the_page_has_the_numbers_of_the_function(demand: Demand) -> None:
    page = (ROOT / "docs" / "capacity.md").read_text(encoding="utf-8")
    rows = [
        documented_row(model, name, plan(demand, MODELS[model], device))
        for model, devices in DOCUMENTED.items()
        for name, device in devices.items()
    ]
    assert [row for row in rows if row not in page] == []


def test_the_command_computes_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "capacity.json"
    options = ["--model", "70b", "--responses", "1e8", "--utilisation", "0.95"]
    assert main(["bench", "capacity", *options, "--json", str(path)]) == 0
    written = json.loads(path.read_text())["plans"]
    for name, device in DEVICES.items():
        expected = plan(OVERNIGHT, MODELS["70b"], device)
        assert written[name]["expected"]["devices"] == expected.expected.devices
    assert "h200" in capsys.readouterr().out
    assert main(["bench", "capacity", "--model", "135m", "--rows-per-s", "555"]) == 0
    assert "209 (190 to 232)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "9b"], "--model is '9b'; it must be one of 135m, 7b, 8b, 70b"),
        (["--device", "tpu"], "--device is 'tpu'; it must be one of h200, h100, a100, l4"),
        (["--rows-per-s", "5", "--device", "l4"], "--rows-per-s is a measured rate"),
        (["--cell", "1/2"], "--cell is '1/2'; it must be P/R/K in integers"),
        (["--cell", "1/2/0"], "--cell is '1/2/0'; each number must be at least 1"),
        (["--hours", "5"], "--hours needs --responses"),
        (["--memory-gb", "5"], "--memory-gb needs --peak-tflops or --rows-per-s"),
        (["--responses", "9", "--prompts-per-minute", "9"], "not both"),
        (["--utilisation", "0"], "--utilisation is 0.0; it must be greater than 0"),
    ],
)
def test_wrong_options_are_told(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "capacity", *options]) == 2
    assert message in capsys.readouterr().err
