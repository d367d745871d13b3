"""The prompt cache changes no reward on any runtime, and a prompt is computed once."""

import tracemalloc
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs
from numpy.typing import NDArray

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.prefix_cache import MIN_TOKENS
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.protocol import Arrays, Graph
from kwise.engine.model.session import GraphSession, Pass
from kwise.engine.model.shape_buckets import BucketedGraph
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.errors import ArtifactError, ConfigError
from kwise.types import Group, Message
from tests.real_data import read_examples

EXACT = 2e-5  # fp32, another order of additions; 2,760 random batches differed by at most 8e-6
LARGE = 64 << 20
VOCAB = 40


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Path) -> Artifact:
    return read_artifact(tiny_artifact)


@pytest.fixture(scope="module")
def encoder(artifact: Artifact) -> ConversationEncoder:
    return new_encoder(artifact, EngineConfig())


@pytest.fixture(
    scope="module",
    params=[Runtime.ONNXRUNTIME, Runtime.OPENVINO],
    ids=lambda runtime: runtime.value,
)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return request.param


def _session(artifact: Artifact, prompt_cache_bytes: int, runtime: Runtime) -> GraphSession:
    return GraphSession(artifact, runtime=runtime, threads=1, prompt_cache_bytes=prompt_cache_bytes)


@pytest.fixture(scope="module")
def plain(artifact: Artifact) -> GraphSession:
    """The reference: a session without prompt cache."""
    return _session(artifact, 0, Runtime.ONNXRUNTIME)


def _encode(encoder: ConversationEncoder, group: Group) -> list[EncodedSequence]:
    outcomes = [
        outcome for outcome in encoder.encode(group) if isinstance(outcome, EncodedSequence)
    ]
    assert len(outcomes) == len(group.responses)
    return outcomes


def _asked(prompt: str, *responses: str) -> Group:
    return Group(prompt=(Message(role="user", content=prompt),), responses=responses)


def _num_nodes(batch: Sequence[EncodedSequence]) -> int:
    sequences = [tuple(sequence.token_ids.tolist()) for sequence in batch]
    return len({sequence[: n + 1] for sequence in sequences for n in range(len(sequence))})


def _shared(first: EncodedSequence, second: EncodedSequence) -> int:
    """Return how many tokens two sequences have in common at the start."""
    length = min(len(first.token_ids), len(second.token_ids))
    differ = np.flatnonzero(first.token_ids[:length] != second.token_ids[:length])
    return int(differ[0]) if len(differ) else length


def test_responses_one_call_after_another_get_the_rewards_of_one_batch_and_compute_the_prompt_once(
    artifact: Artifact, encoder: ConversationEncoder, plain: GraphSession, runtime: Runtime
) -> None:
    session = _session(artifact, LARGE, runtime)
    for messages, responses in read_examples()[:4]:
        prompt = tuple(Message(**message) for message in messages)
        together = plain.run(_encode(encoder, Group(prompt=prompt, responses=tuple(responses))))
        for index, response in enumerate(responses):
            (sequence,) = _encode(encoder, Group(prompt=prompt, responses=(response,)))
            alone = session.run([sequence])
            assert alone.rewards == pytest.approx(together.rewards[index : index + 1], abs=EXACT)
            assert alone.num_rows + alone.num_reused == len(sequence.token_ids)
            if index:
                assert sequence.prompt_tokens > MIN_TOKENS
                assert alone.num_reused - sequence.prompt_tokens in (3, 4), "assistant, line feed"


def test_a_batch_that_was_prepared_during_a_pass_reuses_the_prompt_that_the_pass_cached(
    artifact: Artifact, encoder: ConversationEncoder, plain: GraphSession
) -> None:
    session = _session(artifact, LARGE, Runtime.ONNXRUNTIME)
    first, second = _encode(encoder, _asked("What is the capital of France?", "Paris.", "Rome."))
    run_first, run_second = session.prepare([first]), session.prepare([second])
    assert run_first().num_reused == 0
    passed = run_second()
    assert passed.num_reused >= second.prompt_tokens
    assert passed.rewards == pytest.approx(plain.run([second]).rewards, abs=EXACT)


def test_a_batch_that_waits_for_its_pass_has_no_copy_of_cached_states(
    artifact: Artifact, encoder: ConversationEncoder
) -> None:
    """The pass before it may have one as large as the cache."""
    session = _session(artifact, LARGE, Runtime.ONNXRUNTIME)
    groups = [_asked(f"{word} " * 200, "Yes.", "No.") for word in ("apples", "pears")]
    first, second = ([_encode(encoder, group)[n] for group in groups] for n in (0, 1))
    session.run(first)
    tracemalloc.start()
    try:
        run = session.prepare(second)
        num_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert num_bytes < session.prompt_cache.num_bytes / 4
    assert run().num_reused >= 400


def test_without_prompt_cache_every_call_computes_its_prompt(
    encoder: ConversationEncoder, plain: GraphSession
) -> None:
    for response in ("Paris.", "Rome.", "Paris."):
        (sequence,) = _encode(encoder, _asked("What is the capital of France?", response))
        alone = plain.run([sequence])
        assert (alone.num_rows, alone.num_reused) == (len(sequence.token_ids), 0)
    assert len(plain.prompt_cache) == 0


def test_a_prefix_cached_for_one_prompt_serves_another_that_shares_only_its_first_part(
    artifact: Artifact, encoder: ConversationEncoder, plain: GraphSession, runtime: Runtime
) -> None:
    session = _session(artifact, LARGE, runtime)
    opening = "A farmer has three fields, and every field has seven rows of cabbages. " * 3
    (first,) = _encode(encoder, _asked(opening + "How many rows are there?", "Twenty-one."))
    (second,) = _encode(encoder, _asked(opening + "Which vegetable grows there?", "Cabbage."))
    session.run([first])
    passed = session.run([second])
    assert MIN_TOKENS < _shared(first, second) < first.prompt_tokens
    assert passed.num_reused == _shared(first, second)
    assert passed.rewards == pytest.approx(plain.run([second]).rewards, abs=EXACT)


def _assert_new_prompt_is_cached(
    session: GraphSession, encoder: ConversationEncoder, plain: GraphSession
) -> None:
    """Assert it of a prompt beside a cached one. The two share only their first few tokens."""
    known, new = tuple(range(100, 140)), (*range(100, 110), *range(200, 230))
    session.run(_encode(encoder, Group(prompt=known, responses=((1,),))))
    batch = [
        _encode(encoder, Group(prompt=prompt, responses=((3,),)))[0] for prompt in (known, new)
    ]
    for num_reused in (40 - 10, 40 + 30):
        passed = session.run(batch)
        assert passed.num_reused == num_reused
        assert passed.rewards == pytest.approx(plain.run(batch).rewards, abs=EXACT)


def test_a_new_prompt_beside_a_cached_one_is_scored_and_cached(
    artifact: Artifact, encoder: ConversationEncoder, plain: GraphSession, runtime: Runtime
) -> None:
    """The two prompts share only their first few tokens, and the pass failed."""
    session = _session(artifact, LARGE, runtime)
    _assert_new_prompt_is_cached(session, encoder, plain)


def test_a_reused_prompt_that_is_a_whole_sequence_gets_its_reward(
    artifact: Artifact, plain: GraphSession, runtime: Runtime
) -> None:
    """Its last token is cached but computed again, because the head reads it."""
    session = _session(artifact, LARGE, runtime)
    prompt = np.arange(100, 140)
    whole = EncodedSequence(token_ids=prompt, type_ids=None, num_tokens=40, prompt_tokens=40)
    longer = EncodedSequence(
        token_ids=np.append(prompt, 7), type_ids=None, num_tokens=41, prompt_tokens=40
    )
    expected = plain.run([whole, longer]).rewards
    assert session.run([whole, longer]).num_rows == 41
    for batch, right in (
        ([whole, longer], expected),
        ([whole], expected[:1]),
        ([longer, longer], expected[[1, 1]]),
    ):
        passed = session.run(batch)
        assert passed.rewards == pytest.approx(right, abs=EXACT)
        assert passed.num_rows == len({len(sequence.token_ids) for sequence in batch})


@st.composite
def _batches(draw: st.DrawFn) -> list[list[EncodedSequence]]:
    """Many batches of few prompts, which extend one another's beginnings."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    prompts = [random.integers(3, VOCAB, random.integers(1, 200))]
    for _ in range(draw(st.integers(1, 5))):
        before = prompts[random.integers(len(prompts))]
        prompts.append(
            np.concatenate(
                [before[: random.integers(len(before) + 1)], random.integers(3, VOCAB, 30)]
            )
        )
    batches = []
    for _ in range(draw(st.integers(2, 12))):
        batch = []
        for _ in range(random.integers(1, 6)):
            prompt = prompts[random.integers(len(prompts))]
            tokens = np.concatenate([prompt, random.integers(3, VOCAB, random.integers(0, 60))])
            told = int(random.choice([0, len(prompt), len(tokens)], p=[0.1, 0.8, 0.1]))
            batch.append(
                EncodedSequence(
                    token_ids=tokens, type_ids=None, num_tokens=len(tokens), prompt_tokens=told
                )
            )
        batches.append(batch)
    return batches


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=_batches(), max_tokens=st.sampled_from([40, 150, 400, 10_000]))
def test_any_batches_one_after_another_get_the_rewards_of_a_session_without_cache(
    artifact: Artifact,
    plain: GraphSession,
    runtime: Runtime,
    batches: list[list[EncodedSequence]],
    max_tokens: int,
) -> None:
    inputs = plain.inputs(batches[0])
    widths = [array.shape[1] for name, array in inputs.items() if name.startswith("past.")]
    bytes_per_token = 4 * sum(widths)
    session = _session(artifact, max_tokens * (bytes_per_token + 4), runtime)
    for batch in batches:
        passed, expected = session.run(batch), plain.run(batch)
        np.testing.assert_allclose(passed.rewards, expected.rewards, rtol=0, atol=EXACT)
        assert passed.num_rows + passed.num_reused == expected.num_rows == _num_nodes(batch)
        assert session.prompt_cache.num_bytes <= session.prompt_cache.max_bytes


_SLOT_BYTES = 512  # 2 layers, keys and values, 32 floats


def _slot_session(artifact: Artifact, num_slots: int, *, bucketed: bool) -> GraphSession:
    """Return a session of the graph for CUDA, on a CPU. Slot 0 is not counted."""
    contract = artifact.manifest.cuda_graphs[Precision.FP32]
    session = _session(
        artifact.with_graph(Precision.FP32, contract), num_slots * _SLOT_BYTES, Runtime.ONNXRUNTIME
    )
    assert session._graph.num_slots == num_slots + 1
    if bucketed:
        session._graph = BucketedGraph(session._graph)
    return session


@pytest.mark.parametrize("bucketed", [False, True])
def test_a_new_prompt_beside_a_cached_one_is_scored_and_cached_by_the_graph_for_cuda(
    artifact: Artifact, encoder: ConversationEncoder, plain: GraphSession, bucketed: bool
) -> None:
    """Its attention is causal. The first rows of the cached prompt are computed again."""
    session = _slot_session(artifact, 500, bucketed=bucketed)
    _assert_new_prompt_is_cached(session, encoder, plain)


def test_prompts_that_share_a_few_tokens_keep_their_slots_when_one_of_them_is_dropped(
    artifact: Artifact, encoder: ConversationEncoder, plain: GraphSession
) -> None:
    session = _slot_session(artifact, 130, bucketed=False)
    first, second, third = (
        _encode(encoder, Group(prompt=prompt, responses=((3,),)))[0]
        for prompt in (
            (*range(10), *range(100, 140)),
            (*range(10), *range(200, 240)),
            tuple(range(300, 373)),
        )
    )
    session.run([first, second])  # 10 + 2 * 41 slots
    session.run([second])
    session.run([third])  # takes slots of the first prompt
    assert len(session.prompt_cache) == 2
    usage = session.prompt_cache.usage
    assert usage.max_bytes == session._graph.slot_bytes * (session._graph.num_slots - 1)
    assert usage.entries == 2 and usage.num_bytes % session._graph.slot_bytes == 0
    assert 41 * session._graph.slot_bytes < usage.num_bytes <= usage.max_bytes
    passed = session.run([second])
    assert passed.num_reused >= 50
    assert passed.rewards == pytest.approx(plain.run([second]).rewards, abs=EXACT)


class _Faults:
    """A graph whose next pass fails before it or after it, or overflows."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.runtime, self.num_slots = graph.runtime, graph.num_slots
        self.slot_bytes = graph.slot_bytes
        self.inputs, self.outputs = graph.inputs, graph.outputs
        self.next = ""

    def run(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        return self.prepare(arrays)()

    def prepare(self, arrays: Arrays) -> Callable[[], dict[str, NDArray[Any]]]:
        run = self._graph.prepare(arrays)

        def run_or_fail() -> dict[str, NDArray[Any]]:
            fault, self.next = self.next, ""
            if fault == "before":
                raise MemoryError
            outputs = run()
            if fault == "after":
                raise MemoryError
            return {name: array * np.nan for name, array in outputs.items()} if fault else outputs

        return run_or_fail


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    batches=_batches(),
    num_slots=st.sampled_from([1, 17, 40, 200, 1000]),
    bucketed=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_batches_of_the_graph_for_cuda_get_their_rewards_in_whatever_order_they_run(
    artifact: Artifact,
    plain: GraphSession,
    batches: list[list[EncodedSequence]],
    num_slots: int,
    bucketed: bool,
    seed: int,
) -> None:
    """A batch is prepared before others or during their passes, fails, is dropped or runs again."""
    random = np.random.default_rng(seed)
    session = _slot_session(artifact, num_slots, bucketed=bucketed)
    session._graph = faults = _Faults(session._graph)
    prepared: list[tuple[list[EncodedSequence], Callable[[], Pass]]] = []
    for number, batch in enumerate([*batches, *batches]):
        during = batches[number // 2]

        def started(during: list[EncodedSequence] = during) -> None:
            prepared.append((during, session.prepare(during)))

        is_followed = bool(random.integers(2))
        prepared.append(
            (batch, session.prepare(batch, started) if is_followed else session.prepare(batch))
        )
        while len(prepared) > random.integers(4):
            sequences, run = prepared.pop(random.integers(len(prepared)))
            if random.random() < 0.1:
                continue
            faults.next = str(
                random.choice(["", "before", "after", "overflow"], p=[0.7, 0.1, 0.1, 0.1])
            )
            with suppress(MemoryError):
                passed = run()
                if np.isfinite(passed.rewards).all():
                    expected = plain.run(sequences).rewards
                    np.testing.assert_allclose(passed.rewards, expected, rtol=0, atol=EXACT)


def test_both_runtimes_name_themselves_and_refuse_what_they_cannot(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _session(artifact, 0, Runtime.AUTO).runtime.startswith("onnxruntime ")
    assert _session(artifact, 0, Runtime.OPENVINO).runtime.endswith(" CPU")
    with pytest.raises(ConfigError, match=r"--runtime openvino runs on --device cpu, not 'cuda'"):
        GraphSession(artifact, runtime=Runtime.OPENVINO, device="cuda")
    with pytest.raises(ConfigError, match=r"--device cuda needs onnxruntime-gpu"):
        GraphSession(artifact, device="cuda")
    older = replace(artifact, manifest=structs.replace(artifact.manifest, cuda_graphs={}))
    with pytest.raises(ArtifactError, match="no graph in fp32 for CUDA"):
        GraphSession(older, device="cuda")
    monkeypatch.setattr("kwise.engine.model.runtime.open.find_spec", lambda _: None)
    for runtime, extra in ((Runtime.OPENVINO, "openvino"), (Runtime.AUTO, "engine")):
        with pytest.raises(
            ConfigError, match=rf"needs the package .*: pip install '\.\[{extra}\]'"
        ):
            GraphSession(artifact, runtime=runtime)


def _with_contract(artifact: Artifact, **changed: object) -> Artifact:
    """Return the artifact with another contract for its fp32 graph."""
    contract = structs.replace(artifact.manifest.graphs[Precision.FP32], **changed)
    manifest = structs.replace(artifact.manifest, graphs={Precision.FP32: contract})
    return replace(artifact, manifest=manifest)


def test_the_contract_and_not_the_precision_says_how_the_graph_is_fed(artifact: Artifact) -> None:
    prompt = np.arange(100, 140)
    batch = [
        EncodedSequence(token_ids=ids, type_ids=None, num_tokens=len(ids))
        for ids in (prompt, np.append(prompt, 7))
    ]

    def inputs(**changed: object) -> dict[str, np.ndarray]:
        return GraphSession(_with_contract(artifact, **changed)).inputs(batch)

    assert len(inputs()["input_ids"]) == 41
    assert len(inputs(separate_last_tokens=True)["input_ids"]) == 42
    assert {"queries.7", "keys.7"} <= inputs().keys()
    assert {name for name in inputs(num_tile_groups=1) if "." in name} >= {"queries.0", "keys.0"}
    assert "queries.1" not in inputs(num_tile_groups=1)
    assert inputs()["keys.0"].shape[1] % 64
    assert inputs(aligned_keys=True)["keys.0"].shape[1] % 64 == 0


def test_the_reward_output_is_found_by_its_name(artifact: Artifact) -> None:
    """A graph may have several heads, so the position of an output says nothing."""
    with pytest.raises(ArtifactError, match=r"model\.onnx: the graph has no output 'helpfulness'"):
        GraphSession(_with_contract(artifact, reward_output="helpfulness"))
    for runtime in (Runtime.ONNXRUNTIME, Runtime.OPENVINO):
        session = GraphSession(artifact, runtime=runtime)
        assert {"rewards", "present.0.key", "present.1.value"} <= set(session._graph.outputs)
