"""A checkpoint with mean pooling exports and is served with the mean over the response's tokens."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from kwise.cli import main
from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import check_golden, new_encoder
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.session import GraphSession
from kwise.engine.model.shape_buckets import BucketedGraph
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ArtifactError, ConfigError
from kwise.export.config import Layout
from kwise.types import Group, Message, TemplatedText
from tests.exports import export_quietly
from tests.real_data import read_examples
from tests.tiny_models import PADDED, TRIE, byte_tokenizer, tiny_model

# <|im_start|>assistant, as the tokens of `byte_tokenizer`.
HEADER = byte_tokenizer()("<|im_start|>assistant", add_special_tokens=False)["input_ids"]
POOLED = {**TRIE["llama"][1], "kwise_response_header": HEADER}
CACHE_BYTES = 1 << 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pooled") / "checkpoint"
    return tiny_model(TRIE["llama"][0], POOLED, byte_tokenizer(), path, 5)


@pytest.fixture(scope="module")
def artifact(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    path = tmp_path_factory.mktemp("pooled-artifact") / "pooled"
    export_quietly(checkpoint, path, dtype="fp32,int8", min_agreement=0.5)
    return read_artifact(path)


def _mean_rewards(checkpoint: Path, sequences: Sequence[EncodedSequence]) -> NDArray[np.float64]:
    """Return the mean of transformers' rewards at each token of a response.

    transformers reads the last token, so a pass over the conversation up to a token has the reward
    at this token.
    """
    model = transformers.AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    means = []
    for sequence in sequences:
        ids = sequence.token_ids.tolist()
        ends = [i for i in range(len(ids)) if ids[max(i - len(HEADER), 0) : i] == HEADER]
        start = ends[-1] if ends else 0
        with torch.inference_mode():
            rewards = [
                model(torch.tensor([ids[:end]]), attention_mask=torch.ones(1, end)).logits.item()
                for end in range(start + 1, len(ids) + 1)
            ]
        means.append(np.mean(rewards))
    return np.array(means)


def _encode(artifact: Artifact, prompt: Any, responses: Sequence[Any]) -> list[EncodedSequence]:
    encoder = new_encoder(artifact, EngineConfig())
    outcomes: list[Any] = encoder.encode(Group(prompt=prompt, responses=tuple(responses)))
    assert all(isinstance(outcome, EncodedSequence) for outcome in outcomes)
    return outcomes


def _conversation(*turns: str) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    return tuple(Message(role=roles[i % 2], content=turn) for i, turn in enumerate(turns))


def _sequences(artifact: Artifact) -> list[EncodedSequence]:
    """Conversations that share prompts, of which one is the beginning of another's prompt."""
    sequences = []
    for messages, responses in read_examples()[:2]:
        question = messages[-1]["content"][:60]
        texts = [response[:50] for response in responses[:3]]
        sequences += _encode(artifact, _conversation(question), [*texts, ""])
        sequences += _encode(artifact, _conversation(question, texts[0], "Why?"), texts[1:])
    ids = tuple(sequences[0].token_ids.tolist())
    sequences += _encode(artifact, ids[:40], [ids[40:45], ()])  # no header in these
    return sequences + _encode(artifact, ids[: len(ids) // 2], [ids[len(ids) // 2 :]])


def _assert_parity(
    expected: NDArray[np.float64], sequences: Sequence[EncodedSequence], session: GraphSession
) -> None:
    assert expected.std() > 1e-2, "rewards so alike would hide a wrong graph"
    alone = np.concatenate([session.run([sequence]).rewards for sequence in sequences])
    together = session.run(sequences).rewards
    again = np.concatenate([session.run([sequence]).rewards for sequence in sequences[::-1]])[::-1]
    for rewards in (alone, together, session.run(sequences[::-1]).rewards[::-1], again):
        np.testing.assert_allclose(rewards, expected, atol=1e-4)


def test_rewards_are_the_means_of_transformers_rewards(
    checkpoint: Path, artifact: Artifact
) -> None:
    sequences = _sequences(artifact)
    expected = _mean_rewards(checkpoint, sequences)
    cuda = artifact.manifest.cuda_graphs[Precision.FP32]
    bucketed = GraphSession(
        artifact.with_graph(Precision.FP32, cuda), prompt_cache_bytes=CACHE_BYTES
    )
    bucketed._graph = BucketedGraph(bucketed._graph)
    for session in (
        GraphSession(artifact),
        GraphSession(artifact, prompt_cache_bytes=CACHE_BYTES),
        GraphSession(artifact, runtime=Runtime.OPENVINO, prompt_cache_bytes=CACHE_BYTES),
        bucketed,
    ):
        _assert_parity(expected, sequences, session)


def test_what_is_read_does_not_depend_on_what_is_cached(artifact: Artifact) -> None:
    """A response may be a part of a cached prompt, and still all of its tokens are read."""
    first = _encode(artifact, _conversation("Which month is the longest?"), ["Several. " * 8])
    longer = _conversation("Which month is the longest?", "Several. " * 8, "Which?")
    second = _encode(artifact, longer, ["July, for one."])
    expected = GraphSession(artifact).run(first).rewards
    session = GraphSession(artifact, prompt_cache_bytes=CACHE_BYTES)
    session.run(second)
    assert session.run(first).num_reused > 0
    np.testing.assert_allclose(session.run(first).rewards, expected, atol=1e-5)
    np.testing.assert_allclose(session.run([*second, *first]).rewards[1:], expected, atol=1e-5)


def test_a_reward_does_not_depend_on_the_form_of_the_request(artifact: Artifact) -> None:
    prompt, response = _conversation("Name a colour."), "Blue, I think."
    (as_messages,) = _encode(artifact, prompt, [response])
    ids = tuple(as_messages.token_ids.tolist())
    text = "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\nBlue, I think."
    others = [
        *_encode(artifact, TemplatedText(text=text[:-9]), [text[-9:]]),
        *_encode(artifact, TemplatedText(text=text), [""]),
        *(s for cut in (3, 20, len(ids)) for s in _encode(artifact, ids[:cut], [ids[cut:]])),
    ]
    (expected,) = GraphSession(artifact).run([as_messages]).rewards
    for other in others:
        np.testing.assert_allclose(GraphSession(artifact).run([other]).rewards, expected, atol=1e-6)


def test_int8_has_no_finer_rows(artifact: Artifact) -> None:
    """Finer rows must not be inner rows of another sequence, and responses may be."""
    precision = Precision.INT8
    assert not artifact.manifest.graphs[precision].separate_last_tokens
    bounds, sequences = artifact.manifest.error_bounds[precision], _sequences(artifact)
    session = GraphSession(artifact, precision=precision, prompt_cache_bytes=CACHE_BYTES)
    together = session.run(sequences).rewards
    errors = np.abs(together - GraphSession(artifact).run(sequences).rewards)
    assert 0 < errors.max() < 3 * bounds.max_error
    alone = np.concatenate([session.run([sequence]).rewards for sequence in sequences])
    np.testing.assert_allclose(alone, together, atol=bounds.max_batch_change)


def test_the_artifact_is_another_than_without_pooling(
    checkpoint: Path, artifact: Artifact, tmp_path: Path
) -> None:
    manifest = artifact.manifest
    assert manifest.response_header == tuple(HEADER)
    check_golden(artifact, new_encoder(artifact, EngineConfig()), GraphSession(artifact))
    last = tiny_model(*TRIE["llama"], byte_tokenizer(), tmp_path / "last", 5)
    other = read_artifact(export_quietly(last, tmp_path / "artifact"))
    assert not other.manifest.mean_pooling
    assert other.manifest.fingerprint != manifest.fingerprint
    sequences = _sequences(artifact)[:3]
    read_last = GraphSession(other).run(sequences).rewards
    assert np.abs(read_last - GraphSession(artifact).run(sequences).rewards).min() > 1e-3


def test_the_artifact_says_how_its_rewards_are_read(
    artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(artifact.path)]) == 0
    assert "raw reward            the mean over the response's tokens" in capsys.readouterr().out


def test_members_have_a_mean_each(tmp_path: Path) -> None:
    heads = {"num_labels": 2, "kwise_members": 2}
    path = tiny_model(TRIE["llama"][0], POOLED | heads, byte_tokenizer(), tmp_path / "two", 5)
    artifact = read_artifact(export_quietly(path, tmp_path / "artifact"))
    sequences = _sequences(artifact)
    rewards = GraphSession(artifact).run(sequences).rewards
    assert rewards.shape == (len(sequences), 2)  # the export has checked them


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ([], "kwise_response_header []; it must be a list of token ids"),
        ([1, -2], "must be a list of token ids"),
        ([1, True], "must be a list of token ids"),
        ("assistant", "'assistant'; it must be a list of token ids"),
        (3, "must be a list of token ids"),
    ],
)
def test_a_header_that_is_not_a_list_of_token_ids_is_refused(
    tmp_path: Path, value: Any, problem: str
) -> None:
    options = POOLED | {"kwise_response_header": value}
    path = tiny_model(TRIE["llama"][0], options, byte_tokenizer(), tmp_path / "checkpoint", 5)
    with pytest.raises(ConfigError, match=re.escape(problem)):
        export_quietly(path, tmp_path / "artifact")


def test_a_template_without_the_header_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Every conversation would be read whole, and parity would hold all the same."""
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}")
    with pytest.raises(ConfigError, match=r"does not write '<\|im_start\|>assistant', after which"):
        export_quietly(checkpoint, tmp_path / "artifact", chat_template=str(template))


def test_conversations_without_a_header_do_not_multiply_the_work(artifact: Artifact) -> None:
    """They are read whole; the head reads their shared prompt once."""
    sequences = _encode(artifact, tuple(range(10, 90)), [(token,) for token in range(90, 120)])
    session = GraphSession(artifact)
    assert len(session.layout.inputs(sequences)["last_rows"]) == 80 + 30
    together = session.run(sequences).rewards
    alone = np.concatenate([session.run([sequence]).rewards for sequence in sequences])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_pooling_needs_the_trie(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--layout padded: the model reads its reward with mean"):
        export_quietly(checkpoint, tmp_path / "artifact", layout=Layout.PADDED)
    options = {**PADDED["bert"][1], "kwise_response_header": HEADER}
    encoder = tiny_model(PADDED["bert"][0], options, byte_tokenizer(), tmp_path / "bert")
    with pytest.raises(ConfigError, match="BertForSequenceClassification cannot share prompts"):
        export_quietly(encoder, tmp_path / "artifact")


def test_a_manifest_with_a_header_needs_the_trie(artifact: Artifact, tmp_path: Path) -> None:
    changed = msgspec.structs.replace(artifact.manifest, layout="padded").signed()
    (tmp_path / "manifest.json").write_text(changed.to_json())
    with pytest.raises(ArtifactError, match="response_header needs the layout trie"):
        read_artifact(tmp_path)
