"""Every body of another protocol gets the rewards that kwise's own client gets."""

import base64
import math
import struct
from collections.abc import Callable
from typing import Any

import pytest

from kwise.engine.server.http.bodies.table import ENDPOINTS
from kwise.types import Reward
from tests.http_caller import EXACT, PROMPT, RESPONSES, HttpCaller


def sigmoid(reward: float) -> float:
    return 1 / (1 + math.exp(-reward))


def probs(answer: Any) -> list[float]:
    assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
    assert all(item["num_classes"] == len(item["probs"]) == 1 for item in answer["data"])
    return [item["probs"][0] for item in answer["data"]]


def by_index(results: list[Any], score: str = "relevance_score") -> list[float]:
    """Return the scores in the order of the request, after a check that the best comes first."""
    scores = [result[score] for result in results]
    assert scores == sorted(scores, reverse=True)
    return [result[score] for result in sorted(results, key=lambda result: result["index"])]


PLAIN = {"query": PROMPT, "documents": RESPONSES}
PAIRS = [[PROMPT, response] for response in RESPONSES]
Make = Callable[[HttpCaller, list[str]], Any]

# Of each body: the path, the body of the texts of whole conversations, the scores in a reply, and
# whether these are sigmoids.
BODIES: dict[str, tuple[str, Make, Callable[[Any], list[float]], bool]] = {
    "OpenRLHF": (
        "/get_reward",
        lambda _, texts: {"query": texts, "prompts": [PROMPT] * 3, "labels": ["a", None, 3]},
        lambda answer: answer["rewards"],
        False,
    ),
    "LLaMA-Factory": (
        "/v1/score/evaluation",
        lambda _, texts: {"model": "model", "messages": texts},
        lambda answer: answer["scores"],
        False,
    ),
    "vLLM classify": (
        "/classify",
        lambda caller, texts: {"model": caller.model, "input": texts},
        probs,
        True,
    ),
    "verl on vLLM": (
        "/classify",
        lambda caller, texts: {
            "model": caller.model,
            "input": texts,
            "use_activation": False,
        },
        probs,
        False,
    ),
    "vLLM pooling": (
        "/pooling",
        lambda _, texts: {"input": texts, "use_activation": False, "task": "classify"},
        lambda answer: [item["data"][0] for item in answer["data"]],
        False,
    ),
    "verl on SGLang": (
        "/v1/embeddings",
        lambda caller, texts: {"model": caller.model, "input": texts},
        lambda answer: [item["embedding"][-1] for item in answer["data"]],
        False,
    ),
    "SGLang classify": (
        "/classify",
        lambda _, texts: {"text": texts},
        lambda answer: [item["embedding"][0] for item in answer],
        False,
    ),
    "SGLang score": (
        "/v1/score",
        lambda _, texts: {"query": "", "items": texts},
        lambda answer: [row[0] for row in answer["scores"]],
        False,
    ),
    "infinity classify": (
        "/classify",
        lambda _, texts: {"input": texts, "raw_scores": False},
        lambda answer: [item[0]["score"] for item in answer["data"]],
        True,
    ),
    "TEI predict": (
        "/predict",
        lambda _, texts: {"inputs": [[text] for text in texts]},
        lambda answer: [item[0]["score"] for item in answer],
        True,
    ),
    # Plain texts.
    "vLLM score": (
        "/score",
        lambda caller, _: {
            "model": caller.model,
            "text_1": PROMPT,
            "text_2": RESPONSES,
        },
        lambda answer: [item["score"] for item in answer["data"]],
        True,
    ),
    "vLLM score, N to N": (
        "/v1/score",
        lambda _, __: {"queries": [PROMPT] * 3, "items": RESPONSES, "use_activation": False},
        lambda answer: [item["score"] for item in answer["data"]],
        False,
    ),
    "vLLM and Jina rerank": (
        "/v1/rerank",
        lambda caller, _: {**PLAIN, "model": caller.model, "top_n": 3},
        lambda answer: by_index(answer["results"]),
        True,
    ),
    "Cohere rerank": (
        "/v2/rerank",
        lambda caller, _: {**PLAIN, "model": caller.model},
        lambda answer: by_index(answer["results"]),
        True,
    ),
    "infinity rerank": (
        "/rerank",
        lambda _, __: {**PLAIN, "raw_scores": True},
        lambda answer: by_index(answer["results"]),
        False,
    ),
    **{
        path: (path, lambda _, __: PLAIN, lambda answer: by_index(answer["results"]), True)
        for path in ("/infinity/rerank", "/infinity/v1/rerank")
    },
    "TEI rerank": (
        "/rerank",
        lambda _, __: {"query": PROMPT, "texts": RESPONSES, "raw_scores": True, "truncate": True},
        lambda answer: by_index(answer, "score"),
        False,
    ),
    "TEI predict, pairs": (
        "/predict",
        lambda _, __: {"inputs": PAIRS, "raw_scores": True},
        lambda answer: [item[0]["score"] for item in answer],
        False,
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_gets_the_rewards_of_the_grpc_client(caller: HttpCaller, name: str) -> None:
    path, body, scores, is_sigmoid = BODIES[name]
    texts = [caller.templated(response) for response in RESPONSES]
    expected = caller.rewards(RESPONSES)
    answer = caller.ok(path, body(caller, texts))
    assert scores(answer) == pytest.approx(
        [sigmoid(reward) for reward in expected] if is_sigmoid else expected, abs=EXACT
    )
    assert caller.headers["kwise-fingerprint"] == caller.client.get_model().fingerprint


def test_every_path_has_a_case() -> None:
    slime = {"/slime/reward", "/slime/reward/templated"}  # one sample a call: tested below
    paths = {endpoint.path for endpoint in ENDPOINTS} - slime
    assert paths - {path for path, *_ in BODIES.values()} == set()


def test_slime_gets_a_bare_number(caller: HttpCaller) -> None:
    (expected,) = caller.rewards(RESPONSES[:1])
    messages = [{"role": "user", "content": [{"type": "text", "text": PROMPT}]}]
    for prompt in (PROMPT, messages):
        body: Any = {"prompt": prompt, "response": RESPONSES[0], "label": {"any": 1}}
        assert caller.ok("/slime/reward", body) == pytest.approx(expected, abs=EXACT)
    start, _, end = caller.templated(RESPONSES[0]).partition(RESPONSES[0])
    body = {"prompt": start, "response": RESPONSES[0] + end, "label": None}
    assert caller.ok("/slime/reward/templated", body) == pytest.approx(expected, abs=EXACT)


def test_openrlhf_gets_numbers_under_the_same_keys_in_every_reply(caller: HttpCaller) -> None:
    answers = [
        caller.ok("/get_reward", {"query": [caller.templated(text)]})
        for text in ("A new text.", "A new text.", *RESPONSES)
    ]
    assert len({tuple(answer["extra_logs"]) for answer in answers}) == 1
    for answer in answers:
        assert answer["scores"] == answer["rewards"]
        assert all(isinstance(number, float) for number in answer["extra_logs"].values())
    assert [answer["extra_logs"]["kwise_cached"] for answer in answers[:2]] == [0.0, 1.0]


def test_messages_get_the_template_and_the_last_one_is_scored(caller: HttpCaller) -> None:
    prompt = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": PROMPT},
    ]
    messages = [*prompt, {"role": "assistant", "content": RESPONSES[0]}]
    expected = caller.rewards(RESPONSES[:1], prompt)
    answer = caller.ok("/classify", {"messages": messages, "use_activation": False})
    assert probs(answer) == pytest.approx(expected, abs=EXACT)


def test_token_ids_get_the_reward_of_their_text(caller: HttpCaller, smollm2_tokenizer: Any) -> None:
    texts = [caller.templated(response) for response in RESPONSES]
    ids = [smollm2_tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    expected = caller.rewards(RESPONSES)
    answer = caller.ok("/classify", {"input": ids, "use_activation": False})
    assert probs(answer) == pytest.approx(expected, abs=EXACT)
    for given in (ids[0], [ids[0]]):
        (embedding,) = caller.ok("/v1/embeddings", {"input": given})["data"]
        assert embedding["embedding"] == pytest.approx(expected[:1], abs=EXACT)
    body = {"query": ids[1][:9], "items": [ids[1][9:]]}
    ((score,),) = caller.ok("/v1/score", body)["scores"]
    assert score == pytest.approx(expected[1], abs=EXACT)
    body = {"query": ids[1][9:], "items": [ids[1][:9]], "item_first": True}
    assert caller.ok("/v1/score", body)["scores"] == [[score]]


def test_a_query_and_its_items_may_be_cut_anywhere(caller: HttpCaller) -> None:
    start, _, _ = caller.templated(RESPONSES[0]).partition(RESPONSES[0])
    answer = caller.ok("/v1/score", {"query": start, "items": RESPONSES, "model": "default"})
    expected = [[reward] for reward in caller.rewards(RESPONSES)]
    assert answer["scores"] == [pytest.approx(row, abs=EXACT) for row in expected]
    text = caller.templated(RESPONSES[0])
    body = {"query": text[40:], "items": [text[:40]], "item_first": True}
    assert caller.ok("/v1/score", body)["scores"] == [pytest.approx(expected[0], abs=EXACT)]


def test_vectors_may_be_base64(caller: HttpCaller) -> None:
    body = {"input": caller.templated(RESPONSES[0]), "encoding_format": "base64"}
    (item,) = caller.ok("/v1/embeddings", body)["data"]
    (number,) = struct.unpack("<f", base64.b64decode(item["embedding"]))
    assert number == pytest.approx(caller.rewards(RESPONSES[:1])[0], abs=EXACT)


def test_different_prompts_are_answered_in_order(caller: HttpCaller) -> None:
    prompts = ["Why?", "How?", "Why?", "Who?", "How?"]
    answers = ["a", "b", "c", "d", "e"]
    body = {"text_1": prompts, "text_2": answers, "use_activation": False}
    data = caller.ok("/score", body)["data"]
    expected = [
        caller.rewards([answer], prompt)[0] for prompt, answer in zip(prompts, answers, strict=True)
    ]
    assert [item["score"] for item in data] == pytest.approx(expected, abs=EXACT)
    assert [item["index"] for item in data] == [0, 1, 2, 3, 4]


def test_the_request_of_vllms_documentation_is_answered(caller: HttpCaller) -> None:
    texts = {"text_1": PROMPT, "text_2": RESPONSES[0]}
    body = {"model": caller.model, "encoding_format": "float", **texts}
    (item,) = caller.ok("/score", body)["data"]
    expected = sigmoid(caller.rewards(RESPONSES[:1])[0])
    assert item["score"] == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("top_n", [None, 0, 1, 2, 99])
def test_the_best_documents_come_first_and_ties_keep_their_order(
    caller: HttpCaller, top_n: int | None
) -> None:
    documents = [*RESPONSES, RESPONSES[0]]
    body = {"query": PROMPT, "documents": documents, "top_n": top_n, "return_documents": False}
    results = caller.ok("/rerank", body)["results"]
    rewards = caller.rewards(documents)
    order = sorted(range(4), key=lambda index: -rewards[index])
    assert [result["index"] for result in results] == order[: top_n or None]
    assert order.index(0) < order.index(3)
    assert all("document" not in result for result in results)


def test_usage_counts_the_tokens_of_all_conversations(caller: HttpCaller) -> None:
    scored = caller.client.score(PROMPT, RESPONSES)
    counts = [reward.tokens for reward in scored.rewards if isinstance(reward, Reward)]
    tokens = sum(counts)
    answer = caller.ok("/rerank", PLAIN)
    assert answer["usage"] == {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
    }
    caller.ok("/predict", {"inputs": [PROMPT, RESPONSES[0]]})
    assert caller.headers["x-compute-tokens"] == str(counts[0])


def test_documents_come_back_in_the_form_of_each_protocol(caller: HttpCaller) -> None:
    body: Any = {"query": PROMPT, "documents": [{"text": "a"}, "b"]}
    results = caller.ok("/v1/rerank", body)["results"]
    assert sorted(result["document"]["text"] for result in results) == ["a", "b"]
    body = {"query": PROMPT, "documents": ["a"], "raw_scores": False, "return_documents": True}
    assert caller.ok("/rerank", body)["results"][0]["document"] == "a"
    body = {"query": PROMPT, "texts": ["a"], "return_text": True}
    assert caller.ok("/rerank", body)[0]["text"] == "a"


def test_tei_answers_a_single_input_with_a_single_list(caller: HttpCaller) -> None:
    for inputs in ("Hello", ["Hello"], [PROMPT, "Hello"]):
        (prediction,) = caller.ok("/predict", {"inputs": inputs})
        assert prediction["label"] == "LABEL_0"


def test_single_calls_compute_the_prompt_of_a_conversation_once(caller: HttpCaller) -> None:
    """OpenRLHF sends each response of a prompt by itself, with the prompt before it."""
    prompt = "How do tides work? " + "The moon and the sun pull at the sea. " * 8
    texts = [caller.templated(f"{number} times a day.", prompt) for number in range(6)]
    before = caller.client.get_model().counters
    for text in texts:
        caller.ok("/get_reward", {"query": [text]})
    after = caller.client.get_model().counters
    tokens = after.unshared_rows - before.unshared_rows
    assert after.sequences - before.sequences == 6
    assert after.rows - before.rows < tokens / 3
