"""Draw runs of grpo.py: `python -m examples.grpo_plot PLOT.png RUN [RUN …]`.

A run is the --output of grpo.py, and its name is the label. matplotlib must be installed.
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt  # pyright: ignore[reportMissingImports]

# The keys and titles of the panels. Each shows the held-out questions, and the questions of the
# training steps if the curve has the key.
PANELS = {
    "reward": "mean reward",
    "kl": "KL divergence from the start, nats per answer",
    "tokens": "tokens per answer",
    "lists": "share of answers that begin with a list",
}


def main() -> None:
    """Draw the runs: points for the held-out questions, thin lines for the training steps."""
    output, *runs = map(Path, sys.argv[1:])
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for run, colour in zip(runs, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False):
        steps, evaluations = rows(run / "curve.jsonl"), rows(run / "evaluations.jsonl")
        sampled = sorted(
            (row for row in evaluations if row["temperature"]), key=lambda row: row["step"]
        )
        for axis, key in zip(axes.flat, PANELS, strict=True):
            if key in steps[0]:
                draw(axis, steps, key, "-", color=colour, alpha=0.4, label=f"{run.name}: training")
            draw(axis, sampled, key, "o-", color=colour, label=f"{run.name}: held out")
    for axis, title in zip(axes.flat, PANELS.values(), strict=True):
        axis.set_title(title, fontsize="medium")
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("step")
        axis.locator_params(axis="x", integer=True)
    axes.flat[0].legend(fontsize="small")
    figure.savefig(output, dpi=100)


def draw(axis: Any, table: list[dict[str, Any]], key: str, style: str, **options: Any) -> None:
    """Draw a column of a table against its steps."""
    axis.plot([row["step"] for row in table], [row[key] for row in table], style, **options)


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
