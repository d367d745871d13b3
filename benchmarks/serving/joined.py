"""The cost of single calls relative to calls of whole groups.

OpenRLHF, verl and others send one response per call, at different times and from different
processes. How much longer do such calls take? Physics: both ways need the same rows of the model if
the server computes each prompt once. Single calls cost more protocol, and tokenise the prompt K
times. If the responses to a prompt arrive at different times, the prompt must be in the prompt
cache, or is computed again. The figure is the time of K·N single calls relative to the time of N
calls of K, with new texts in each run:

    at once      all single calls are open together, in random order
    staggered    the responses of a prompt come one after another, with one response of each other
                 prompt between them, and each process has at most `--window` calls open

Whole groups and single calls alternate within one run, because other load on the machine would
change a ratio of figures from different times.
"""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kwise.benchmarks.options import JoinedBenchConfig
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.serving.server_process import running_server
from kwise.client import AsyncRewardClient, RewardClient
from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.text.chat_template import ChatTemplate
from kwise.errors import ConfigError

# One call: a prompt and its responses.
_CallOfTexts = tuple[str, list[str]]
# All calls wait together, so the last one takes as long as the run.
_TIMEOUT_S = 86_400
_TEXT = (
    "air blue light scatters more than red because short waves bend often the sky looks dark at "
    "night and when sun sets it turns orange while clouds stay white or grey over water"
)
_WORDS = _TEXT.split()


def run(config: JoinedBenchConfig) -> None:
    """Print the ratios and write them to `config.json`."""
    artifact = read_artifact(Path(config.artifact))
    seconds: dict[str, list[float]] = {"whole": [], "at once": [], "staggered": []}
    reused: dict[str, list[int]] = {way: [] for way in seconds}
    with running_server(artifact, "--http-port", "0") as server:
        address = server.http_address if config.http else server.address
        with RewardClient(server.address) as client:
            for repeat in range(-1, config.repeats):  # -1 is the warm-up
                for way in seconds:
                    calls = _calls(config, way, seed=f"{repeat} {way}")
                    if config.http:  # OpenRLHF sends whole conversations in their template
                        calls = [
                            (prompt, _in_template(artifact, prompt, rs)) for prompt, rs in calls
                        ]
                    before = client.get_model().counters
                    elapsed_s = _timed(config, way, calls, address)
                    after = client.get_model().counters
                    if repeat >= 0:
                        seconds[way].append(elapsed_s)
                        reused[way].append(after.rows - before.rows)
    protocol = "http" if config.http else "grpc"
    ratios = {
        way: [single / whole for single, whole in zip(seconds[way], seconds["whole"], strict=True)]
        for way in ("at once", "staggered")
    }
    whole_s = statistics.median(seconds["whole"])
    print(f"whole groups: {config.prompts / whole_s:.2f} groups/s over {protocol}")
    for way, values in ratios.items():
        print(
            f"{way + ':':13} {statistics.median(values):.3f} times the time of whole groups "
            f"({min(values):.3f} to {max(values):.3f}), "
            f"{statistics.median(reused[way]) / statistics.median(reused['whole']):.3f} times the "
            "rows"
        )
    if config.json:
        results = {
            "artifact": artifact.manifest.name,
            "protocol": protocol,
            "seconds": seconds,
            "rows": reused,
            "ratios": ratios,
        }
        write_results(config.json, "joined", config, results)


def _calls(config: JoinedBenchConfig, way: str, seed: str) -> list[_CallOfTexts]:
    """Return the calls of a run in their order, with texts that no other run has."""
    rng = random.Random(seed)

    def text(num_words: int) -> str:
        return " ".join(rng.choices(_WORDS, k=num_words))

    cell = config.parsed_cell()
    groups = [(text(cell.P), [text(cell.R) for _ in range(cell.K)]) for _ in range(config.prompts)]
    if way == "whole":
        return groups
    calls = [(prompt, [responses[k]]) for k in range(cell.K) for prompt, responses in groups]
    if way == "at once":
        rng.shuffle(calls)
    return calls


def _in_template(artifact: Artifact, prompt: str, responses: list[str]) -> list[str]:
    """Return the conversation of each response with the artifact's chat template applied."""
    if artifact.chat_template is None:
        raise ConfigError("--http: /get_reward needs an artifact with a chat template")
    template = ChatTemplate(artifact.chat_template)
    user = {"role": "user", "content": prompt}
    return [
        template.render(
            messages=[user, {"role": "assistant", "content": response}],
            add_generation_prompt=False,
            **artifact.manifest.special_tokens,
        )
        for response in responses
    ]


def _timed(config: JoinedBenchConfig, way: str, calls: list[_CallOfTexts], address: str) -> float:
    """Return the seconds that the calls take, divided among processes that start together."""
    window = config.window if way == "staggered" else len(calls)
    command = [sys.executable, "-m", "kwise.benchmarks.serving.joined"]
    command += [address, str(window), "http" if config.http else "grpc"]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(config.clients)
    ]
    for number, process in enumerate(processes):
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(calls[number :: config.clients]) + "\n")
        process.stdin.flush()
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("a client failed to start")
    started = time.perf_counter()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline() != "done\n":
            raise RuntimeError("a client failed")
    elapsed_s = time.perf_counter() - started
    for process in processes:
        process.communicate()
    return elapsed_s


async def _send(address: str, window: int, protocol: str) -> None:
    """Read calls from standard input, and send them when the next line arrives."""
    calls: list[_CallOfTexts] = json.loads(sys.stdin.readline())
    free = asyncio.Semaphore(window)
    async with AsyncRewardClient(address, timeout_s=_TIMEOUT_S) as client:
        if protocol == "grpc":
            await client.wait_until_ready()

        async def call(prompt: str, responses: list[str]) -> None:
            async with free:
                if protocol == "http":
                    values = await _post(address, responses)
                else:
                    values = list((await client.score(prompt, responses)).values)
            if len(values) != len(responses) or None in values:
                raise RuntimeError(f"a reward is missing: {values}")

        print("ready", flush=True)
        sys.stdin.readline()
        await asyncio.gather(*(call(*item) for item in calls))
        print("done", flush=True)


async def _post(address: str, queries: list[str]) -> list[Any]:
    """Return the rewards of a POST to /get_reward over a connection of its own, as OpenRLHF."""
    host, port = address.rsplit(":", 1)
    body = json.dumps({"query": queries, "prompts": queries}).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /get_reward HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + body)
    status, _, answer = (await reader.read()).partition(b"\r\n")
    writer.close()
    if b" 200 " not in status:
        raise RuntimeError(answer.decode())
    rewards: list[Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["rewards"]
    return rewards


if __name__ == "__main__":
    asyncio.run(_send(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
