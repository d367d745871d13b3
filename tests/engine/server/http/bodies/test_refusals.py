"""What kwise cannot do is refused by the name of the caller's field, in each protocol's form."""

from typing import Any

import pytest

from tests.http_caller import EXACT, PROMPT, RESPONSES, HttpCaller
from tests.servers import wait_until

LONG = "blue " * 3000
MESSAGES = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


def message_of(answer: Any) -> str:
    error = answer["error"]
    return str(error["message"] if isinstance(error, dict) else error)


# The path, the body, and how the message begins. Those with a number were found in public issues.
REFUSED: dict[str, tuple[str, Any, str]] = {
    "no query": ("/get_reward", {"query": []}, "query: the list is empty"),
    "too many queries": (
        "/get_reward",
        {"query": ["a"] * 2049},
        "query: there are 2049; the",
    ),
    "one bad query": ("/get_reward", {"query": ["fine", LONG]}, "query[1]: the conversation has"),
    "an empty query": ("/get_reward", {"query": ["a", "", ""]}, "query[1]: it is empty (2 of 3"),
    "unknown field": ("/get_reward", {"query": ["a"], "max_len": 9}, "body: Object contains unk"),
    "slime's messages without a role": (
        "/slime/reward",
        {"prompt": [{"role": "", "content": "a"}], "response": "b"},
        "prompt[0].role: it is empty",
    ),
    "slime's prompt of an unusual role": (
        "/slime/reward",
        {"prompt": [{"role": "human", "content": "a"}], "response": "b"},
        "prompt[0].role: ",
    ),
    "slime's end token in an answer to a plain prompt": (
        "/slime/reward",
        {"prompt": "a", "response": "b<|im_end|>"},
        "response: it spells out 1 special tokens; a response of slime ends with",
    ),
    "LLaMA-Factory's cut": (
        "/v1/score/evaluation",
        {"messages": ["a", RESPONSES[0]], "max_length": 8},
        "messages[1]: the conversation has",
    ),
    "no input": ("/classify", {"input": []}, "input: the list is empty"),
    "mixed input": ("/classify", {"input": ["a", 1]}, "input[1]: its type differs"),
    "empty ids": ("/classify", {"input": [[1], []]}, "input[1]: it has no token ids"),
    "unknown id": ("/classify", {"input": [[1, 2], [1, 99999999]]}, "input[1]: 99999999 is outs"),
    "a cut text": (
        "/classify",
        {"input": ["a", RESPONSES[0]], "truncate_prompt_tokens": 8},
        "input[1]: the conversation has",
    ),
    "a user's message": (
        "/classify",
        {"messages": MESSAGES[:1]},
        "messages[0].role: it is 'user', at 1 messages",
    ),
    "a part that is no text": (
        "/classify",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "text": ""}]}]},
        "messages[0].content[0].type: Invalid enum value",
    ),
    "a generation prompt": (
        "/classify",
        {"messages": MESSAGES, "add_generation_prompt": True},
        "add_generation_prompt: the reward is that of the last message",
    ),
    "another template": (
        "/classify",
        {"messages": MESSAGES, "chat_template": "{{ messages }}"},
        "chat_template: kwise applies",
    ),
    "a salt": ("/classify", {"input": "a", "cache_salt": "s"}, "cache_salt: kwise's caches"),
    "padding": ("/score", {"text_1": "a", "text_2": "b", "padding": "max_length"}, "padding: kw"),
    "dimensions": ("/pooling", {"input": "a", "dimensions": 2}, "dimensions: a reward has one"),
    "two lengths": (
        "/score",
        {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]},
        "text_1: it has 2 texts and text_2 has 3",
    ),
    "no texts": ("/score", {"text_1": "a", "text_2": []}, "text_2: the list is empty"),
    "two names": ("/score", {"text_1": "a", "data_2": "b"}, "body: it has data_2 and text_1"),
    "an instruction": (
        "/rerank",
        {"query": "a", "documents": ["b"], "instruction": "c"},
        "instruction: kwise applies",
    ),
    "no documents": ("/v2/rerank", {"query": "a", "documents": []}, "documents: the list is"),
    "a long document": (
        "/rerank",
        {"query": "a", "documents": ["b", LONG]},
        "documents[1]: the conversation has",
    ),
    "a document that is cut": (
        "/v2/rerank",
        {"query": "a", "documents": ["b", RESPONSES[0]], "max_tokens_per_doc": 9},
        "documents[0]: the conversation has",
    ),
    "another model": (
        "/v1/embeddings",
        {"input": "a", "model": "other"},
        "model: 'other' is not served here",
    ),
    "softmax": (
        "/v1/score",
        {"query": "a", "items": ["b"], "apply_softmax": True},
        "apply_softmax: the softmax over the only label",
    ),
    "ids for a text": ("/v1/score", {"query": "a", "items": [[1]]}, "items[0]: it must be a text"),
    "too many texts": ("/predict", {"inputs": [["a"], ["a", "b", "c"]]}, "inputs[1]: it has 3"),
    "text and lists": ("/predict", {"inputs": [["a"], "b"]}, "inputs[1]: a list of inputs has"),
    "infinity's top_n": (
        "/rerank",
        {"query": "a", "documents": ["b"], "raw_scores": True, "top_n": 0},
        "top_n: ",
    ),
    # vllm-project/vllm 41348: -1 was taken for all of them.
    "a negative top_n": ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n: "),
    # huggingface/text-embeddings-inference 356: a misspelled name was ignored.
    "a misspelled field": (
        "/rerank",
        {"query": "a", "texts": ["b"], "is_truncated": True},
        "body: Object contains unknown field `is_truncated`",
    ),
    # huggingface/text-embeddings-inference 52: only a single text was cut.
    "a long text of a list": (
        "/rerank",
        {"query": "a", "texts": ["b", LONG], "truncate": True},
        "texts[1]: the conversation has",
    ),
    # vllm-project/vllm 12119: a text over the limit ended the engine.
    "a long pair": ("/score", {"text_1": "a", "text_2": ["b", LONG]}, "text_2[1]: the convers"),
    # sgl-project/sglang 1943: a field of an older version.
    "an old field": ("/classify", {"conv": [MESSAGES]}, "body: it has none of the fields"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_body_is_refused_by_the_name_of_its_field(caller: HttpCaller, name: str) -> None:
    path, body, beginning = REFUSED[name]
    status, answer = caller.send(path, body)
    assert message_of(answer).startswith(beginning), answer
    expected = 404 if name == "another model" else 400
    if path == "/predict" or "texts" in body:
        expected = 422
    assert status == expected


def test_errors_have_the_form_of_each_protocol(caller: HttpCaller) -> None:
    assert caller.send("/classify", {"input": []}) == (
        400,
        {
            "error": {
                "message": "input: the list is empty; give at least one item",
                "type": "BadRequestError",
                "param": "input",
                "code": 400,
            }
        },
    )
    status, answer = caller.send("/rerank", {"query": "a", "texts": []})
    assert (status, answer["error_type"]) == (400, "Empty")
    status, answer = caller.send("/predict", {"inputs": [["a"], ["", ""]]})
    assert (status, answer["error_type"]) == (400, "Empty")
    status, answer = caller.send("/predict", {"inputs": [[LONG]]})
    assert (status, answer["error_type"]) == (422, "Validation")
    status, answer = caller.send("/get_reward", {"query": [LONG]})
    assert (status, answer["error"]["code"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        # langgenius/dify-official-plugins 453: a client that sends null for what it does not set.
        ("/rerank", {"query": PROMPT, "documents": RESPONSES, "top_n": None}),
        ("/v2/rerank", {"query": PROMPT, "documents": RESPONSES, "return_documents": None}),
        # volcengine/OpenViking 3291: documents as objects.
        ("/rerank", {"query": PROMPT, "documents": [{"text": text} for text in RESPONSES]}),
        ("/classify", {"input": "a", "truncate_prompt_tokens": -1, "truncation_side": "left"}),
        ("/classify", {"input": "a", "truncate_prompt_tokens": 512, "padding": "do_not_pad"}),
        ("/classify", {"input": "a", "priority": 3, "user": "me", "request_id": "r"}),
        ("/v2/rerank", {"query": PROMPT, "documents": RESPONSES, "max_tokens_per_doc": 4096}),
        ("/predict", {"inputs": "a", "truncate": True, "truncation_direction": "left"}),
    ],
)
def test_what_changes_no_reward_is_accepted(caller: HttpCaller, path: str, body: Any) -> None:
    caller.ok(path, body)


# huggingface/trl 3853: templates and tokenizers both add the first token. SmolLM2's template does
# not, so the parameter would.
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_special_tokens_are_right_whatever_the_caller_says(
    caller: HttpCaller, add_special_tokens: bool
) -> None:
    text = caller.templated(RESPONSES[0])
    body = {"input": text, "add_special_tokens": add_special_tokens, "use_activation": False}
    (item,) = caller.ok("/classify", body)["data"]
    assert item["probs"] == pytest.approx(caller.rewards(RESPONSES[:1]), abs=EXACT)


# huggingface/text-embeddings-inference 747: two texts are one pair and not two inputs.
def test_two_texts_are_a_pair(caller: HttpCaller) -> None:
    (prediction,) = caller.ok("/predict", {"inputs": [PROMPT, RESPONSES[0]], "raw_scores": True})
    assert prediction["score"] == pytest.approx(caller.rewards(RESPONSES[:1])[0], abs=EXACT)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/get_reward", {"query": ["a", LONG]}),
        ("/slime/reward", {"prompt": "a", "response": LONG}),
        ("/v1/score/evaluation", {"messages": ["a", LONG]}),
        # Failures before a sample is made.
        ("/get_reward", b"{"),
        ("/get_reward", {"query": []}),
        ("/get_reward", {"query": ["a"] * 2049}),
        ("/get_reward", {"queries": ["a"]}),
    ],
)
def test_the_log_says_once_why_a_run_ends(caller: HttpCaller, path: str, body: Any) -> None:
    """These clients log the status only."""
    before = caller.server.log.text
    status, answer = caller.send(path, body)
    line = f" failed with {status}: {message_of(answer)}"
    wait_until(lambda: line in caller.server.log.text[len(before) :])
    assert caller.server.log.text[len(before) :].count(line) == 1


@pytest.mark.parametrize(
    ("path", "code"),
    [("/rerank", 400), ("/v1/rerank", 400), ("/classify", 400), ("/v1/score", 400)],
)
def test_what_is_not_json_is_refused_in_the_form_of_the_usual_client(
    caller: HttpCaller, path: str, code: int
) -> None:
    """The body does not tell the protocol, so most clients of the path decide."""
    status, answer = caller.send(path, b"{")
    assert (status, answer["error"]["code"]) == (400, code)
    assert caller.send("/predict", b"{")[0] == 422  # it has one protocol


def test_infinity_has_a_path_on_which_no_field_is_needed(caller: HttpCaller) -> None:
    """LiteLLM sends what all clients send, and reads documents that are strings."""
    body = {
        "model": caller.model,
        "query": PROMPT,
        "documents": RESPONSES,
        "return_documents": True,
        "top_n": 2,
    }
    for path in ("/infinity/rerank", "/infinity/v1/rerank"):
        results = caller.ok(path, body)["results"]
        assert [r["document"] for r in results] == [RESPONSES[r["index"]] for r in results]
        assert len(results) == 2
