"""Settings of hypothesis, and the fixtures that tests of several folders share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.exports import export_quietly
from tests.held_model import HeldModel
from tests.real_data import SMOLLM2_GGUF, smollm2_directory
from tests.servers import Server, running_server

# No test depends on how fast the machine is, so there is no deadline for an example.
# To run more examples: pytest --hypothesis-profile=thorough
settings.register_profile(
    "kwise", deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "thorough", deadline=None, max_examples=1000, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("kwise")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def smollm2_tokenizer() -> Any:
    from transformers import AutoTokenizer

    from kwise.train.model.gguf_reader import gguf_parsed_once

    with gguf_parsed_once():
        return AutoTokenizer.from_pretrained(smollm2_directory(), gguf_file=SMOLLM2_GGUF)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: Any) -> Path:
    """A two-layer Llama with random weights and SmolLM2's real tokenizer and chat template."""
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


@pytest.fixture(scope="session")
def members_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with three heads that are members of an ensemble, which reads bytes."""
    from tests.tiny_models import TRIE, byte_tokenizer, tiny_model

    family, options = TRIE["llama"]
    heads = {"num_labels": 3, "kwise_members": 3}
    path = tmp_path_factory.mktemp("members") / "checkpoint"
    return tiny_model(family, {**options, **heads}, byte_tokenizer(), path, 5)


@pytest.fixture(scope="session")
def members_artifact(members_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`members_checkpoint` in all precisions. Its random weights leave small margins."""
    path = tmp_path_factory.mktemp("members-artifact") / "members"
    return export_quietly(members_checkpoint, path, dtype="fp32,fp16,bf16,int8", min_agreement=0.5)


@pytest.fixture(scope="session")
def tiny_server(tiny_artifact: Path) -> Iterator[Server]:
    """A server of `tiny_artifact` that tests share: they may score with it, but not stop it."""
    with running_server(tiny_artifact) as server:
        yield server


@pytest.fixture
def held(tmp_path: Path) -> HeldModel:
    """A model that the test can hold, for `running_held_server`."""
    directory = tmp_path / "held"
    directory.mkdir()
    return HeldModel(directory)


@pytest.fixture(scope="session")
def plain_rewards() -> Callable[..., list[float]]:
    """A function that scores conversations with plain transformers, in fp32 and one at a time."""
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
            input_ids = torch.tensor(
                [tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)]
            )
            with torch.inference_mode():
                values.append(float(model(input_ids).logits))
        return values

    return rewards
