"""The adapters below the real code of each RL library, against a real server.

Every library must give the same reward, wait for a server that restarts, and never turn a failure
into a reward. `rollouts.py` has the libraries. `make test-rl` installs them.
"""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kwise.client import RewardClient
from kwise.engine.artifact.manifest import read_manifest
from kwise.engine.artifact.names import MANIFEST
from tests.held_model import HeldModel, running_held_server
from tests.rl.rollouts import DRIVERS, TOLERANCE, Messages, Rollouts, Score, free_port, require
from tests.servers import PATIENCE_S, Server, running_server

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own

PROMPT: Messages = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": "Why is the sky blue?"},
]
RESPONSES = ["Air scatters blue light more than red.", "Because it likes blue.", "Dunno.", ""]
TOO_LONG = "blue " * 4000


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Callable[[Rollouts], Score]:
    """The driver of a library."""
    driver, package = DRIVERS[request.param]
    if package is not None:
        require(package)
    return driver


@pytest.fixture
def rollouts(smollm2_tokenizer: Any, tiny_checkpoint: Path) -> Callable[..., Rollouts]:
    """A function that returns what a driver needs, given the server's address."""

    def of(address: str, **options: Any) -> Rollouts:
        return Rollouts(
            address=address,
            tokenizer=smollm2_tokenizer,
            directory=tiny_checkpoint,
            options=options,
        )

    return of


@contextmanager
def opened(driver: Callable[[Rollouts], Score], rollouts: Rollouts) -> Iterator[Score]:
    """Open a library, and close what it leaves behind."""
    score = driver(rollouts)
    with ExitStack() as stack:
        if close := getattr(score, "close", None):
            stack.callback(close)
        yield score


def other_model(artifact: Path, copy: Path) -> Path:
    """Return a copy of an artifact with another fingerprint."""
    shutil.copytree(artifact, copy)
    changed = msgspec.structs.replace(read_manifest(copy), reward_mean=7.0).signed()
    (copy / MANIFEST).write_text(changed.to_json())
    return copy


def test_the_reward_is_that_of_the_messages(
    driver: Callable[[Rollouts], Score], rollouts: Callable[..., Rollouts], tiny_server: Server
) -> None:
    with RewardClient(tiny_server.address) as client:
        expected = client.score(PROMPT, RESPONSES).values
    with opened(driver, rollouts(tiny_server.address)) as score:
        rewards = [score(PROMPT, response) for response in RESPONSES]
        assert rewards == pytest.approx(expected, abs=TOLERANCE)


def test_a_response_that_cannot_be_scored_is_an_error_that_names_the_cause(
    driver: Callable[[Rollouts], Score], rollouts: Callable[..., Rollouts], tiny_server: Server
) -> None:
    with opened(driver, rollouts(tiny_server.address)) as score:
        with pytest.raises(Exception, match="2048"):
            score(PROMPT, TOO_LONG)
        assert isinstance(score(PROMPT, "Dunno."), float)  # the next one is unharmed


def test_a_server_that_restarts_costs_time_and_no_reward(
    driver: Callable[[Rollouts], Score], rollouts: Callable[..., Rollouts], tiny_artifact: Path
) -> None:
    port = str(free_port())
    with opened(driver, rollouts(f"localhost:{port}", timeout_s=PATIENCE_S)) as score:
        with running_server(tiny_artifact, "--port", port):
            before = score(PROMPT, "Dunno.")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(score, PROMPT, "Dunno.")  # no server listens now
            with running_server(tiny_artifact, "--port", port):
                assert waiting.result(PATIENCE_S) == pytest.approx(before, abs=TOLERANCE)


def test_another_model_in_mid_run_is_an_error(
    driver: Callable[[Rollouts], Score],
    rollouts: Callable[..., Rollouts],
    tiny_artifact: Path,
    tmp_path: Path,
) -> None:
    port = str(free_port())
    other = other_model(tiny_artifact, tmp_path / "other")
    with opened(driver, rollouts(f"localhost:{port}", timeout_s=PATIENCE_S)) as score:
        with running_server(tiny_artifact, "--port", port):
            score(PROMPT, "Dunno.")
        with (
            running_server(other, "--port", port),
            pytest.raises(Exception, match="changed its model during the run"),
        ):
            score(PROMPT, "Dunno.")


def test_a_server_that_takes_too_long_is_an_error_and_not_a_reward(
    driver: Callable[[Rollouts], Score],
    rollouts: Callable[..., Rollouts],
    tiny_artifact: Path,
    held: HeldModel,
) -> None:
    with (
        running_held_server(tiny_artifact, held) as server,
        opened(driver, rollouts(server.address, timeout_s=0.5)) as score,
    ):
        held.hold()
        with pytest.raises(Exception, match=r"DEADLINE_EXCEEDED|no result|no server was ready"):
            score(PROMPT, "Dunno.")
        held.release()


def test_an_overloaded_server_costs_time_and_no_reward(
    driver: Callable[[Rollouts], Score],
    rollouts: Callable[..., Rollouts],
    tiny_artifact: Path,
    held: HeldModel,
) -> None:
    """The queue holds one conversation, so the others are refused until it is empty."""
    with (
        running_held_server(tiny_artifact, held, "--max-queue-tokens", "64") as server,
        opened(driver, rollouts(server.address, timeout_s=PATIENCE_S)) as score,
        ThreadPoolExecutor(4) as pool,
    ):
        # AReaL forks its process here, because one that is forked later would hold the model too.
        score(PROMPT, "Dunno.")
        held.hold()
        num_batches = len(held.batches)
        waiting = [pool.submit(score, PROMPT, f"Answer {number}.") for number in range(4)]
        held.wait_for_batches(num_batches + 1)
        held.release()
        rewards = [call.result(PATIENCE_S) for call in waiting]
        with RewardClient(server.address) as client:
            expected = client.score(PROMPT, [f"Answer {number}." for number in range(4)]).values
        assert rewards == pytest.approx(expected, abs=TOLERANCE)
