"""`kwise top` shows the work of an interval, on a terminal and without one."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from kwise.bulk.commands.top_sample import Reading, facts_of, sample_of
from kwise.cli import main
from kwise.client import RewardClient
from kwise.types import Counters, ModelInfo
from tests.client.test_client import nowhere
from tests.servers import Server

__all__ = ["nowhere"]

PROGRAM = """
import signal, sys
from kwise.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.exit(main())
"""
NOTHING = Counters(**dict.fromkeys(Counters.__dataclass_fields__, 0))
INFO = ModelInfo(
    model="m",
    fingerprint="f",
    layout="trie",
    precision="fp32",
    runtime="r",
    max_tokens=10,
    max_batch_tokens=10,
    overlong="reject",
    control_tokens="accept",
    reward_mean=0,
    reward_std=1,
    counters=NOTHING,
    max_responses=1,
    max_pairs=1,
    queue_tokens=7,
    queue_sequences=2,
    max_queue_tokens=100,
    num_devices=2,
)


def reading(at_s: float, **counters: float) -> Reading:
    done = replace(NOTHING, **counters)  # type: ignore[arg-type]
    return Reading(info=replace(INFO, counters=done), at_s=at_s)


def test_a_sample_has_the_rates_and_shares_of_its_interval() -> None:
    before = reading(10, answered_groups=100, cache_hits=50, busy_s=5, rejected_groups=1)
    after = reading(
        14,
        answered_groups=140,
        cached_groups=10,
        failed_groups=4,
        rejected_groups=3,
        cache_hits=80,
        cache_misses=90,
        joined=12,
        model_passes=8,
        sequences=72,
        rows=600,
        unshared_rows=1000,
        reused_rows=100,
        busy_s=11,
        idle_with_work_s=2,
    )
    sample = sample_of(before, after)
    assert (sample.groups_per_s, sample.cached_groups) == (10, 0.25)
    assert (sample.failed_groups_per_s, sample.rejected_groups_per_s) == (1, 0.5)
    assert (sample.rewards_per_s, sample.cached_rewards, sample.joined_rewards) == (30, 0.25, 0.1)
    assert (sample.passes_per_s, sample.batch_sequences, sample.batch_rows) == (2, 9, 75)
    assert (sample.tokens_per_s, sample.saved_rows, sample.reused_rows) == (250, 0.4, 0.1)
    assert (sample.busy, sample.idle_with_work) == (0.75, 0.25)
    assert sample.total_rejected_groups == 3
    facts = facts_of(sample)
    assert facts["groups"] == "10.0 /s, 25% from the cache, 1.0 /s failed"
    assert facts["queue"] == "7 of 100 tokens, 2 conversations"
    assert facts["model"] == "75% busy, 25% idle with work, 2 devices"


@pytest.mark.parametrize("after", [reading(5), reading(9, cache_hits=3)], ids=["same", "restarted"])
def test_what_an_interval_does_not_tell_is_none(after: Reading) -> None:
    before = reading(5) if after.at_s == 5 else reading(5, cache_hits=4, rows=9)
    sample = sample_of(before, after)
    for name in ("groups_per_s", "rewards_per_s", "cached_rewards", "busy", "saved_rows"):
        assert getattr(sample, name) is None
    assert facts_of(sample)["rewards"] == "- /s, - from the cache, - joined"


def test_one_sample_as_text_and_as_json(
    tiny_server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The load comes in place of the pause between the two readings."""

    def load(_: float) -> None:
        with RewardClient(tiny_server.address) as client:
            client.score("What is top?", ["A view.", "A toy."])
            client.score("What is top?", ["A view.", "A toy."])

    monkeypatch.setattr(time, "sleep", load)
    assert main(["top", tiny_server.address, "--once", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    sample = json.loads(line)
    assert sample["model"] == "tiny" and sample["cached_rewards"] >= 0.5
    assert sample["groups_per_s"] * sample["interval_s"] > 1.9
    assert main(["top", tiny_server.address, "--once"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith(f"tiny on {tiny_server.address}: fp32, onnxruntime")
    assert [row.split()[0] for row in rest if row][:3] == ["groups", "rewards", "queue"]
    assert "\x1b" not in first


def test_a_terminal_gets_a_live_view_and_its_screen_back(tiny_server: Server) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, "top", tiny_server.address, "--interval-s", "0.1"]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while shown.count(b"groups") < 3:
            shown += os.read(controller, 4096)
        process.send_signal(signal.SIGINT)
        with suppress(OSError):  # the terminal's other end is closed
            while part := os.read(controller, 4096):
                shown += part
        assert process.wait() == 130
    os.close(controller)
    assert shown.startswith(b"\x1b[?1049h") and shown.endswith(b"\x1b[?1049l")
    assert re.search(rb"queue +0 of 524,288 tokens", shown)
    assert b"Traceback" not in shown


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["localhost"], "must be HOST:PORT"),
        (["a:1", "--interval-s", "0.01"], "--interval-s is 0.01; it must be at least 0.1"),
        (["a:1", "--timeout-s", "-1"], "--timeout-s"),
    ],
)
def test_a_wrong_command_line_is_told_so(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_a_server_that_does_not_answer_is_named(
    nowhere: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", nowhere, "--once", "--timeout-s", "0.2"]) == 1
    assert nowhere in capsys.readouterr().err
