"""Faults that happen in production, over a real socket.

A fault costs at most the request that it hits, and the rewards stay right.
"""

import asyncio
import random
import resource
import shutil
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kwise.benchmarks.serving.server_process import memory_bytes
from kwise.client import AsyncRewardClient, RewardClient, RewardServiceError
from kwise.client.flight import WINDOW_GROUPS
from kwise.engine.artifact.read import read_artifact
from kwise.protos.kwise.v1 import reward_pb2 as pb
from tests.exports import export_quietly
from tests.held_model import HeldModel, running_held_server
from tests.real_data import read_examples
from tests.requests import compare_request, score_request
from tests.servers import PATIENCE_S, Server, raw_rewards, running_server, wait_until

EXACT = 1e-4
Prompt = list[dict[str, str]]


@pytest.fixture(scope="module")
def groups() -> list[tuple[Prompt, list[str]]]:
    return [(messages, responses[:4]) for messages, responses in read_examples()[:40]]


@pytest.fixture(scope="module")
def expected(tiny_server: Server, groups: list[tuple[Prompt, list[str]]]) -> list[list[float]]:
    with RewardClient(tiny_server.address, timeout_s=PATIENCE_S) as client:
        return [raw_rewards(client.score(messages, responses)) for messages, responses in groups]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def resident_bytes(server: Server) -> int:
    return memory_bytes(server.process.pid, "VmRSS")


def open_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


# The server is killed, or its artifact is replaced


def test_a_server_killed_and_restarted_under_load_costs_no_request(
    tiny_artifact: Path,
    held: HeldModel,
    groups: list[tuple[Prompt, list[str]]],
    expected: list[list[float]],
) -> None:
    """Kill a server twice, while eight threads with single calls and a stream wait for it."""
    port = free_port()
    options = ("--port", str(port), "--cache-bytes", "0", "--max-batch-tokens", "512")

    def single_calls(worker: int) -> list[tuple[int, list[float]]]:
        with RewardClient(f"127.0.0.1:{port}", timeout_s=PATIENCE_S) as client:
            numbers = [(worker * 5 + step) % len(groups) for step in range(40)]
            return [(number, raw_rewards(client.score(*groups[number]))) for number in numbers]

    def stream() -> list[tuple[int, list[float]]]:
        with RewardClient(f"127.0.0.1:{port}", timeout_s=PATIENCE_S) as client:
            numbers = [step % len(groups) for step in range(400)]
            results = client.score_many(groups[number] for number in numbers)
            return [
                (number, raw_rewards(result))
                for number, result in zip(numbers, results, strict=True)
            ]

    with ThreadPoolExecutor(9) as workers, ExitStack() as servers:
        held.hold()
        calls: list[Future[list[tuple[int, list[float]]]]] = []
        for num_batches in (10, 20):
            num_before = len(held.batches)
            server = servers.enter_context(running_held_server(tiny_artifact, held, *options))
            if not calls:
                calls = [workers.submit(single_calls, worker) for worker in range(8)]
                calls.append(workers.submit(stream))
            held.let_through(num_batches)
            held.wait_for_batches(num_before + num_batches + 1)
            assert not any(call.done() for call in calls[:-1])
            server.process.kill()
            server.process.wait()
        held.release()
        servers.enter_context(running_server(tiny_artifact, *options))
        answers = [call.result(PATIENCE_S) for call in calls]
    assert [len(answer) for answer in answers] == [40] * 8 + [400]
    for number, rewards in (pair for answer in answers for pair in answer):
        assert rewards == pytest.approx(expected[number], abs=EXACT)


def test_a_changed_artifact_is_swapped_in_without_a_failed_request(
    tiny_artifact: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    groups: list[tuple[Prompt, list[str]]],
) -> None:
    """Reload under load: each reply names the model that made it, and none mixes two models."""
    other = export_quietly(
        changed_head(tiny_checkpoint, tmp_path / "checkpoint"), tmp_path / "other", name="tiny"
    )
    path = tmp_path / "served"
    shutil.copytree(tiny_artifact, path)
    fingerprints = [read_artifact(artifact).manifest.fingerprint for artifact in (path, other)]
    seen: list[tuple[int, str, list[float]]] = []
    done = threading.Event()

    def load(worker: int, address: str) -> None:
        rng = random.Random(worker)
        with RewardClient(address, timeout_s=PATIENCE_S) as client:
            while not done.is_set():
                number = rng.randrange(len(groups))
                scored = client.score(*groups[number])
                seen.append((number, scored.fingerprint, raw_rewards(scored)))

    with (
        running_server(path, "--cache-bytes", "0") as server,
        ThreadPoolExecutor(4) as workers,
        server.stub() as stub,
    ):

        def model() -> Any:
            return stub.GetModel(pb.GetModelRequest())

        calls = [workers.submit(load, worker, server.address) for worker in range(4)]
        try:
            server.process.send_signal(signal.SIGHUP)  # the artifact is the same
            wait_until(lambda: "has not changed" in server.log.text and len(seen) > 0)
            shutil.rmtree(path)
            shutil.copytree(other, path)
            (path / "model.onnx").write_bytes(b"damaged")
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: "reload refused" in server.log.text)
            assert f"{path / 'model.onnx'}: the file has 7 bytes" in server.log.text
            assert model().fingerprint == fingerprints[0]
            before = model().counters
            shutil.copy(other / "model.onnx", path)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: model().fingerprint == fingerprints[1])
            assert model().counters.sequences >= before.sequences > 0
            count = len(seen)
            wait_until(lambda: len(seen) > count + 20)
        finally:
            done.set()
        for call in calls:
            call.result(PATIENCE_S)
    assert {fingerprint for _, fingerprint, _ in seen} == set(fingerprints)
    by_model: dict[tuple[int, str], list[float]] = {}
    for number, fingerprint, rewards in seen:
        assert rewards == pytest.approx(
            by_model.setdefault((number, fingerprint), rewards), abs=EXACT
        )
    for number in {number for number, _ in by_model}:
        old, new = (by_model.get((number, fingerprint)) for fingerprint in fingerprints)
        assert old is None or new is None or old != pytest.approx(new, abs=10 * EXACT)


def changed_head(checkpoint: Path, path: Path) -> Path:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    torch.nn.init.normal_(model.score.weight, std=0.5)
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(path)
    return path


# Memory runs out


def test_a_batch_that_does_not_fit_in_memory_is_halved_until_it_does(
    tiny_artifact: Path, groups: list[tuple[Prompt, list[str]]], expected: list[list[float]]
) -> None:
    """The process has a real memory limit: 50,000 rows exceed it, but 1,200 do not."""
    responses = [f"{number}. Many words follow. " * 150 for number in range(40)]
    options = (
        "--max-batch-tokens",
        "200000",
        "--cache-bytes",
        "0",
        "--prompt-cache-bytes",
        "0",
        "--max-queue-tokens",
        "10000000",
    )
    with (
        running_server(tiny_artifact, *options) as server,
        RewardClient(server.address, timeout_s=PATIENCE_S) as client,
    ):
        alone = raw_rewards(client.score("Say much.", responses[:1]))
        limit = memory_bytes(server.process.pid, "VmSize") + (96 << 20)
        resource.prlimit(server.process.pid, resource.RLIMIT_AS, (limit, limit))
        scored = raw_rewards(client.score("Say much.", responses, timeout_s=3 * PATIENCE_S))
        assert scored[0] == pytest.approx(alone[0], abs=EXACT)
        wait_until(lambda: "in halves" in server.log.text)
        assert raw_rewards(client.score(*groups[0])) == pytest.approx(expected[0], abs=EXACT)
        assert len(scored) == 40 and server.process.poll() is None


# Clients misbehave


@pytest.fixture(scope="module")
def hardy_server(tiny_artifact: Path) -> Iterator[Server]:
    """One server for all tests of bad clients. It must still run after them."""
    with running_server(tiny_artifact) as server:
        yield server
        assert server.process.poll() is None


def test_ten_thousand_fuzzed_messages_are_answered_and_harm_no_other_request(
    hardy_server: Server, groups: list[tuple[Prompt, list[str]]], expected: list[list[float]]
) -> None:
    """Every rpc gets random bytes, real requests with bytes changed, cut or repeated, and messages
    with hostile fields."""
    rng = random.Random(0)
    message = score_request(
        prompt=pb.Prompt(
            messages=pb.Conversation(messages=[pb.Message(**turn) for turn in groups[0][0]])
        ),
        responses=[pb.Response(text=text) for text in groups[0][1][:2]],
    )
    ids = score_request(
        prompt=pb.Prompt(token_ids=pb.TokenIds(ids=range(5, 30))),
        responses=[pb.Response(token_ids=pb.TokenIds(ids=[7, 8, 9]))],
    )
    seeds = [
        message.SerializeToString(),
        ids.SerializeToString(),
        compare_request(pairs=[pb.Pair(first=9)]).SerializeToString(),
    ]
    codes: dict[str, int] = {}

    def hostile() -> bytes:
        """Return a message that parses, with fields that kwise's own clients never send."""

        def text() -> str:
            return rng.choice(
                ["", " ", "\0", "<|im_end|>", "é" * 50, "\U0010ffff", "a" * rng.randrange(3000)]
            )

        def some_ids() -> pb.TokenIds:
            ids = [rng.randrange(2 ** rng.randrange(33)) for _ in range(rng.randrange(20))]
            return pb.TokenIds(ids=ids)

        prompt = rng.choice([pb.Prompt(), pb.Prompt(text=text()), pb.Prompt(token_ids=some_ids())])
        if rng.random() < 0.3:
            turns = [
                pb.Message(role=rng.choice(["user", "system", "assistant", text()]), content=text())
                for _ in range(3)
            ]
            prompt = pb.Prompt(messages=pb.Conversation(messages=turns[: rng.randrange(4)]))
        responses = [
            rng.choice([pb.Response(), pb.Response(text=text()), pb.Response(token_ids=some_ids())])
            for _ in range(rng.randrange(6))
        ]
        return compare_request(  # also parses as a Score or Rank request
            model=rng.choice(["", "", "", "tiny", text()[:40]]),
            prompt=prompt,
            responses=responses,
            pairs=[
                pb.Pair(first=rng.randrange(9), second=rng.randrange(2**32))
                for _ in range(rng.randrange(2))
            ],
        ).SerializeToString()

    def mutated() -> bytes:
        if rng.random() < 0.5:
            return hostile()
        if rng.random() < 0.2:
            return rng.randbytes(rng.randrange(200))
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 6)):
            match rng.randrange(4):
                case 0:
                    data[rng.randrange(len(data))] = rng.randrange(256)
                case 1:
                    del data[rng.randrange(len(data)) :]
                case 2:
                    at = rng.randrange(len(data) + 1)
                    data[at:at] = data[: rng.randrange(1, 40)]
                case 3:
                    data += rng.randbytes(rng.randrange(1, 20))
            if not data:
                break
        return bytes(data)

    async def fuzz() -> None:
        async with grpc.aio.insecure_channel(hardy_server.address) as channel:
            unary: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
                channel.unary_unary(f"/kwise.v1.RewardService/{rpc}")
                for rpc in ("Score", "Rank", "Compare", "GetModel")
            ]
            stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
                "/kwise.v1.RewardService/ScoreStream"
            )

            async def send() -> None:
                try:
                    if rng.random() < 0.1:
                        async for _ in stream(
                            iter([mutated() for _ in range(3)]), timeout=PATIENCE_S
                        ):
                            pass
                    else:
                        await rng.choice(unary)(mutated(), timeout=PATIENCE_S)
                    code = "OK"
                except grpc.aio.AioRpcError as error:
                    code = error.code().name
                codes[code] = codes.get(code, 0) + 1

            for _ in range(200):
                await asyncio.gather(*(send() for _ in range(50)))

    before = resident_bytes(hardy_server)
    asyncio.run(fuzz())
    assert sum(codes.values()) == 10_000
    # gRPC's client reports INTERNAL if the stream ends while it writes.
    assert set(codes) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "INTERNAL"}, codes
    assert all(codes[name] > 100 for name in ("OK", "INVALID_ARGUMENT")), codes
    with RewardClient(hardy_server.address, timeout_s=PATIENCE_S) as client:
        assert raw_rewards(client.score(*groups[1])) == pytest.approx(expected[1], abs=EXACT)
    assert resident_bytes(hardy_server) < before + (200 << 20)


def test_a_stream_that_sends_an_invalid_message_gets_its_earlier_replies_and_an_error(
    hardy_server: Server,
) -> None:
    """The invalid message comes before, while or after replies are written.

    gRPC ignores a status that is set while a reply is being written, and the client waited forever.
    """

    async def one(channel: grpc.aio.Channel, number: int) -> None:
        async def sent() -> AsyncIterator[bytes]:
            for id_ in range(number % 5):
                response = pb.Response(text="To be sure." if number % 2 else "")
                request = score_request(
                    prompt=pb.Prompt(text=f"Why {number}?"), responses=[response]
                )
                yield pb.ScoreStreamRequest(id=str(id_), group=request.group).SerializeToString()
            # Varies the moment only. The outcome is the same at each.
            await asyncio.sleep(number % 10 / 1000)
            yield b"\xff no request"

        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/kwise.v1.RewardService/ScoreStream"
        )
        answered = set()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            async for reply in stream(sent(), timeout=PATIENCE_S):
                answered.add(pb.ScoreStreamResponse.FromString(reply).id)
        assert answered == {str(id_) for id_ in range(number % 5)}
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert f"requests[{number % 5}]" in str(raised.value.details())

    async def many() -> None:
        async with grpc.aio.insecure_channel(hardy_server.address) as channel:
            for start in range(0, 2000, 50):
                await asyncio.gather(*(one(channel, number) for number in range(start, start + 50)))

    asyncio.run(many())


def test_a_message_over_the_limit_is_refused_and_not_sent_again(
    tiny_artifact: Path,
) -> None:
    """A client that sent it again would do so for an hour, and this test would time out."""
    with (
        running_server(tiny_artifact, "--max-message-bytes", "2000") as server,
        RewardClient(server.address, timeout_s=3600) as client,
    ):
        with pytest.raises(RewardServiceError, match=r"RESOURCE_EXHAUSTED at .*2000") as raised:
            client.score("p", ["long " * 1000])
        assert raised.value.retry_after_s is None
        with pytest.raises(RewardServiceError, match="RESOURCE_EXHAUSTED"):
            list(client.score_many([("p", ["long " * 1000])]))
        assert raw_rewards(client.score("p", ["short"]))


def test_a_thousand_streams_at_once_are_all_answered(
    hardy_server: Server, groups: list[tuple[Prompt, list[str]]], expected: list[list[float]]
) -> None:
    async def one(client: AsyncRewardClient, start: int) -> None:
        numbers = [(start + step) % len(groups) for step in range(3)]
        results = client.score_many([groups[number] for number in numbers], timeout_s=PATIENCE_S)
        rewards = [raw_rewards(result) async for result in results]
        assert len(rewards) == 3
        for number, values in zip(numbers, rewards, strict=True):
            assert values == pytest.approx(expected[number], abs=EXACT)

    async def all_at_once() -> None:
        async with AsyncRewardClient(hardy_server.address, timeout_s=PATIENCE_S) as client:
            await asyncio.gather(*(one(client, start) for start in range(1000)))

    before = resident_bytes(hardy_server)
    asyncio.run(all_at_once())
    assert resident_bytes(hardy_server) < before + (300 << 20)


def test_clients_that_disconnect_or_send_nothing_leave_no_open_files(
    hardy_server: Server, groups: list[tuple[Prompt, list[str]]], expected: list[list[float]]
) -> None:
    host, port = hardy_server.address.split(":")
    files = open_files(hardy_server)
    silent = [socket.create_connection((host, int(port))) for _ in range(100)]
    silent[0].sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")  # half of a handshake
    silent[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    silent[2].sendall(random.Random(0).randbytes(10_000))

    async def vanish(count: int) -> None:
        async with AsyncRewardClient(hardy_server.address, timeout_s=PATIENCE_S) as client:
            calls = [
                asyncio.create_task(client.score("Vanish. " * 200 + str(n), ["a", "b"]))
                for n in range(count)
            ]
            stream = client.score_many(groups)
            await anext(stream)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(vanish(200))
    with RewardClient(hardy_server.address, timeout_s=PATIENCE_S) as client:
        assert raw_rewards(client.score(*groups[2])) == pytest.approx(expected[2], abs=EXACT)
    for connection in silent:
        connection.close()
    wait_until(lambda: open_files(hardy_server) <= files + 1)


def test_a_connection_that_pings_often_while_it_waits_stays_open(tiny_server: Server) -> None:
    """A server that minds pings would end it after the third one. gRPC's own limit is 5 minutes."""
    options = [("grpc.keepalive_time_ms", 1_500), ("grpc.http2.max_pings_without_data", 0)]
    ended = threading.Event()
    with grpc.insecure_channel(tiny_server.address, options=options) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.add_callback(ended.set)
        assert not ended.wait(7), watch.details()
        watch.cancel()


# Load


def test_a_client_with_many_groups_in_the_queue_does_not_delay_another_one(
    tiny_artifact: Path, held: HeldModel
) -> None:
    """One client keeps 128 groups waiting. Another client's group is in one of the next batches."""
    options = ("--cache-bytes", "0", "--prompt-cache-bytes", "0", "--max-batch-tokens", "2048")
    words = random.Random(0)

    def group(number: int, num_words: int) -> tuple[str, list[str]]:
        vocabulary = ["river", "stone", "seven", "why", "loud", "paper", "of"]
        texts = (words.choices(vocabulary, k=num_words) for _ in range(4))
        return f"Question {number}?", [" ".join(text) for text in texts]

    flood = [group(number, 60) for number in range(200)]
    with (
        running_held_server(tiny_artifact, held, *options) as server,
        ThreadPoolExecutor(2) as workers,
        RewardClient(server.address, client="flood", timeout_s=PATIENCE_S) as large,
        RewardClient(server.address, client="modest", timeout_s=PATIENCE_S) as modest,
    ):
        held.hold()
        flooding = workers.submit(lambda: list(large.score_many(flood)))
        held.wait_for_tokenised(WINDOW_GROUPS)
        for number in range(3):
            num_groups, num_batches = held.num_tokenised, len(held.batches)
            # Its texts are longer, so that the log shows which batch they are in.
            call = workers.submit(modest.score, *group(200 + number, 150))
            held.wait_for_tokenised(num_groups + 1)
            # It waits for the batch that runs, and for one more if that was made before the queue
            # had the group.
            for _ in range(3):
                num_waited = len(held.batches) - num_batches
                if any(max(batch) > 150 for batch in held.batches[num_batches:]):
                    break
                held.let_through(1)
                held.wait_for_batches(num_batches + num_waited + 1)
            assert (
                sum(length > 150 for batch in held.batches[num_batches:] for length in batch) == 4
            )
            held.let_through(1)
            assert len(raw_rewards(call.result(PATIENCE_S))) == 4
        held.release()
        assert [len(raw_rewards(result)) for result in flooding.result(PATIENCE_S)] == [4] * 200
