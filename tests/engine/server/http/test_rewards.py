"""kwise's own endpoints: the JSON of kwise.v1 in both directions, and the same rewards as gRPC."""

from typing import Any

import msgspec
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor

from kwise.engine.server.http import replies, requests, status
from kwise.engine.server.http.errors import HTTP_STATUSES, ErrorDetail
from kwise.errors import Status
from kwise.protos.kwise.v1 import reward_pb2 as pb
from tests.engine.server.http.conftest import HttpServer
from tests.http_client import encoded
from tests.real_data import read_examples
from tests.requests import compare_request, rank_request, score_request

PROMPTS = {
    "text": pb.Prompt(text="Why is the sky blue?"),
    "messages": pb.Prompt(
        messages=pb.Conversation(
            messages=[
                pb.Message(role="system", content="Be brief."),
                pb.Message(role="user", content=""),
            ]
        )
    ),
    "token_ids": pb.Prompt(token_ids=pb.TokenIds(ids=[1, 20, 300])),
    "templated_text": pb.Prompt(templated_text="<|im_start|>user\nWhy?<|im_end|>\n"),
}


def group(kind: str, **fields: Any) -> dict[str, Any]:
    responses = [pb.Response(text="Air scatters blue light."), pb.Response(text="")]
    if kind == "token_ids":
        responses = [pb.Response(token_ids=pb.TokenIds(ids=ids)) for ids in ([4, 5], [6])]
    return {"prompt": PROMPTS[kind], "responses": responses, **fields}


def json_of(message: Any, **options: Any) -> bytes:
    return json_format.MessageToJson(message, **options).encode()


# The JSON of kwise.v1


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize(
    "options",
    [{}, {"preserving_proto_field_name": True}, {"use_integers_for_enums": True}],
    ids=["camelCase", "snake_case", "integers"],
)
def test_what_json_format_writes_is_read_and_what_is_replied_json_format_reads(
    http: HttpServer, kind: str, options: dict[str, bool]
) -> None:
    request = score_request(**group(kind, model="tiny", priority=pb.PRIORITY_BULK))
    expected = http.stub.Score(request)
    for reward in expected.scored.rewards:
        reward.cached = True  # both ports have one cache, and the second call is answered from it
    expected.scored.timing.Clear()
    reply = http.post("/v1/rewards", json_of(request, **options))
    assert reply.status == 200, reply.body
    assert json_format.Parse(reply.body, pb.ScoreResponse()) == expected
    flat = http.post("/v1/rewards", json_of(request.group, **options))
    assert json_format.Parse(flat.body, pb.ScoreResponse()) == expected


def test_real_groups_get_the_rewards_of_the_grpc_port(http: HttpServer) -> None:
    for messages_, responses in read_examples()[:8]:
        body = {"prompt": messages_, "responses": responses}
        first = http.post("/v1/rewards", body).json["scored"]["rewards"]
        prompt = pb.Conversation(messages=[pb.Message(**message) for message in messages_])
        request = score_request(
            prompt=pb.Prompt(messages=prompt), responses=[pb.Response(text=t) for t in responses]
        )
        second = http.stub.Score(request).scored.rewards
        assert [reward["raw"] for reward in first] == [reward.raw for reward in second]
        assert all(reward.cached for reward in second)


def test_ranks_and_comparisons_are_those_of_the_grpc_port(http: HttpServer) -> None:
    fields = group("text")
    http.stub.Score(score_request(**fields))
    rank = rank_request(**fields)
    reply = http.post("/v1/ranks", json_of(rank))
    assert json_format.Parse(reply.body, pb.RankResponse()) == http.stub.Rank(rank)
    for pairs in ([], [pb.Pair(first=1)], [pb.Pair(first=1), pb.Pair(second=1)]):
        compare = compare_request(pairs=pairs, **fields)
        reply = http.post("/v1/comparisons", json_of(compare))
        assert json_format.Parse(reply.body, pb.CompareResponse()) == http.stub.Compare(compare)
    assert http.post(
        "/v1/comparisons", {"prompt": "p", "responses": ["a", "b"], "pairs": [[1, 0]]}
    ).json["comparisons"][0]["pair"] == {"first": 1, "second": 0}


def test_the_short_forms_mean_what_the_long_ones_do(http: HttpServer) -> None:
    same = [
        ({"prompt": "Hi", "responses": ["a"]}, pb.Prompt(text="Hi"), pb.Response(text="a")),
        (
            {"prompt": [{"role": "user", "content": "Hi"}], "responses": [{"text": "a"}]},
            pb.Prompt(text="Hi"),
            pb.Response(text="a"),
        ),
        (
            {"prompt": {"messages": [{"role": "user", "content": "Hi"}]}, "responses": ["a"]},
            pb.Prompt(text="Hi"),
            pb.Response(text="a"),
        ),
        (
            {"prompt": [1, 2], "responses": [[3]], "priority": "bulk", "model": None},
            pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2])),
            pb.Response(token_ids=pb.TokenIds(ids=[3])),
        ),
        (
            {"prompt": {"token_ids": [1, 2]}, "responses": [{"tokenIds": [3]}]},
            pb.Prompt(token_ids=pb.TokenIds(ids=[1, 2])),
            pb.Response(token_ids=pb.TokenIds(ids=[3])),
        ),
    ]
    for body, prompt, response in same:
        expected = http.stub.Score(score_request(prompt=prompt, responses=[response]))
        reply = http.post("/v1/rewards", body)
        assert reply.status == 200, reply.body
        (reward,) = reply.json["scored"]["rewards"]
        assert reward["raw"] == expected.scored.rewards[0].raw
        assert reward["cached"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (replies.RewardBody, pb.Reward),
        (replies.TimingBody, pb.Timing),
        (replies.ScoredGroupBody, pb.ScoredGroup),
        (replies.ScoreResponse, pb.ScoreResponse),
        (replies.RankResponse, pb.RankResponse),
        (replies.RankBody, pb.Rank),
        (replies.CompareResponse, pb.CompareResponse),
        (replies.ComparisonBody, pb.Comparison),
        (replies.PairReply, pb.Pair),
        (requests.PairBody, pb.Pair),
        (requests.MessageBody, pb.Message),
        (requests.ConversationBody, pb.Conversation),
        (requests.TokenIdsBody, pb.TokenIds),
        (requests.GroupBody, pb.Group),
        (ErrorDetail, pb.Error),
        (status.ModelBody, pb.GetModelResponse),
        (status.CountersBody, pb.Counters),
    ],
)
def test_a_body_has_the_fields_of_its_message(body: type[msgspec.Struct], message: Any) -> None:
    names = {field.encode_name for field in msgspec.structs.fields(body)}
    assert names == set(message.DESCRIPTOR.fields_by_name)


@pytest.mark.parametrize(
    ("body", "message"), [(requests.PromptBody, pb.Prompt), (requests.ResponseBody, pb.Response)]
)
def test_a_body_has_both_spellings_of_each_field(body: type[msgspec.Struct], message: Any) -> None:
    descriptor: Descriptor = message.DESCRIPTOR
    names = {field.encode_name for field in msgspec.structs.fields(body)}
    spelled = {name for field in descriptor.fields for name in (field.name, field.json_name)}
    assert names == spelled


# Errors


def test_a_response_that_is_not_scored_has_an_error_and_null_in_place_of_numbers(
    http: HttpServer,
) -> None:
    body = {"prompt": [1], "responses": [[2], [4_000_000_000], [3]]}
    scored = http.post("/v1/comparisons", body).json
    good, bad, _ = scored["scored"]["rewards"]
    assert good["value"] is not None and "error" not in good
    assert (bad["value"], bad["raw"]) == (None, None)
    assert bad["error"]["code"] == "INVALID_ARGUMENT" and bad["error"]["response"] == 1
    assert "4000000000" in bad["error"]["message"]
    first = scored["comparisons"][0]
    assert (first["margin"], first["win_probability"]) == (None, None)
    assert first["error"]["response"] == 1
    assert scored["comparisons"][1]["margin"] is not None
    json_format.Parse(encoded(scored), pb.CompareResponse())
    assert http.post("/v1/ranks", body).json["ranks"][1] == {}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("rewards", {}, "prompt: it is missing"),
        ("rewards", {"prompt": "p"}, "responses: there are none"),
        ("rewards", {"prompt": [], "responses": ["a"]}, "prompt: it is empty"),
        ("rewards", {"prompt": {}, "responses": ["a"]}, "prompt: none of text, messages"),
        (
            "rewards",
            {"prompt": {"text": "p", "templatedText": "q"}, "responses": ["a"]},
            "prompt: text and templated_text are set",
        ),
        (
            "rewards",
            {"prompt": {"tokenIds": [1], "token_ids": [1]}, "responses": [[1]]},
            "prompt.token_ids: it is set twice",
        ),
        (
            "rewards",
            {"prompt": [{"content": "p"}], "responses": ["a"]},
            "prompt[0].role: it is empty",
        ),
        (
            "rewards",
            {"prompt": [1, {"role": "user", "content": ""}], "responses": ["a"]},
            "prompt: it has both messages and token ids",
        ),
        (
            "rewards",
            {"prompt": [{"role": "user"}], "responses": ["a"]},
            "prompt[0]: Object missing required field `content`",
        ),
        (
            "rewards",
            {"prompt": {"messages": [{"role": "user"}]}, "responses": ["a"]},
            "prompt.messages[0]: Object missing required field `content`",
        ),
        (
            "rewards",
            {"prompt": [{"role": "user", "tool_calls": []}], "responses": ["a"]},
            "prompt[0]: Object contains unknown field `tool_calls`",
        ),
        (
            "rewards",
            {"prompt": "p", "responses": ["a", {}]},
            "responses[1]: neither text nor token_ids is set; this prompt needs text",
        ),
        (
            "rewards",
            {"prompt": "p", "responses": ["a", [1]]},
            "responses[1]: token_ids is set; this prompt needs text",
        ),
        (
            "rewards",
            {"prompt": [1], "responses": [[2], "a"]},
            "responses[1]: text is set; this prompt needs token_ids",
        ),
        ("rewards", {"prompt": "p", "responses": "a"}, "responses: Expected `array`, got `str`"),
        ("rewards", {"prompt": "p", "responses": [None]}, "responses[0]: Expected"),
        ("rewards", {"prompt": [True], "responses": [[1]]}, "prompt[0]: Expected"),
        ("rewards", {"prompt": [-1], "responses": [[1]]}, "prompt[0]: Expected `int` >= 0"),
        ("rewards", {"prompt": [10**40], "responses": [[1]]}, "prompt[0]: Expected `int` <= "),
        ("rewards", {"prompt": [1.5], "responses": [[1]]}, "prompt[0]: Expected"),
        (
            "rewards",
            {"prompt": "p", "responses": ["a"], "priority": "high"},
            "priority: 'high' is not a Priority",
        ),
        (
            "rewards",
            {"prompt": "p", "responses": ["a"], "temperature": 1},
            "Object contains unknown field `temperature`",
        ),
        (
            "rewards",
            {"group": {"prompt": "p", "responses": ["a"]}, "prompt": "q"},
            "prompt: it is set next to group",
        ),
        (
            "comparisons",
            {"prompt": "p", "responses": ["a"]},
            "responses: there are 1; a comparison needs at least two",
        ),
        (
            "comparisons",
            {"prompt": "p", "responses": ["a", "b"], "pairs": [[0, 2]]},
            "pairs[0]",
        ),
        (
            "comparisons",
            {"prompt": "p", "responses": ["a", "b"], "pairs": [[0, 1, 1]]},
            "pairs[0]: Expected",
        ),
        ("rewards", [], "body: Expected `object`, got `array`"),
        ("rewards", None, "body: Expected `object`, got `null`"),
    ],
)
def test_a_bad_request_names_the_field(
    http: HttpServer, path: str, body: object, message: str
) -> None:
    reply = http.post(f"/v1/{path}", encoded(body))
    assert reply.status == 400, reply.body
    assert reply.json["error"]["code"] == "INVALID_ARGUMENT"
    assert message in reply.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "body: Input data was truncated"),
        (b'{"prompt": "p", "responses": ["a"]} x', "trailing characters"),
        (b'{"prompt": "\xff", "responses": ["a"]}', "body: it is not UTF-8"),
        (b'\xef\xbb\xbf{"prompt": "p", "responses": ["a"]}', "JSON is malformed"),
        (b'{"prompt": "\\ud800", "responses": ["a"]}', "surrogate"),
        (b'{"prompt": "p", "responses": ["\\udc00\\ud800"]}', "surrogate"),
        (b'{"prompt": NaN, "responses": ["a"]}', "JSON is malformed"),
        (b'{"prompt": ' + b"[" * 100_000, "prompt[0]: Expected"),
        (b'{"responses": ' + b"[" * 100_000, "responses[0][0]: Expected"),
        (b"[" * 100_000 + b"]" * 100_000, "body: Expected `object`"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_a_body_that_is_not_json_is_refused(http: HttpServer, body: bytes, message: str) -> None:
    reply = http.post("/v1/rewards", body)
    assert reply.status == 400, reply.body
    assert message in reply.json["error"]["message"]


def test_of_a_field_that_is_given_twice_the_last_value_counts(http: HttpServer) -> None:
    body = b'{"prompt": "other", "prompt": "twice", "responses": ["a"]}'
    once = http.post("/v1/rewards", {"prompt": "twice", "responses": ["a"]}).json
    assert http.post("/v1/rewards", body).json["scored"]["rewards"][0]["cached"]
    assert once["scored"]["rewards"][0]["raw"] == pytest.approx(
        http.post("/v1/rewards", body).json["scored"]["rewards"][0]["raw"]
    )


def test_another_model_and_too_many_responses_are_refused_as_on_the_grpc_port(
    http: HttpServer,
) -> None:
    other = http.post("/v1/rewards", {"model": "other", "prompt": "p", "responses": ["a"]})
    assert other.status == 404
    assert other.json["error"]["code"] == "NOT_FOUND"
    many = http.post("/v1/rewards", {"prompt": "p", "responses": ["a"] * 2049})
    assert many.status == 400
    assert "there are 2049; the limit is 2048" in many.json["error"]["message"]


def test_every_status_has_its_http_status() -> None:
    assert set(HTTP_STATUSES) == set(Status)


# The model


def test_the_model_is_described_as_on_the_grpc_port(http: HttpServer) -> None:
    reply = http.get("/v1/model")
    described = json_format.Parse(reply.body, pb.GetModelResponse())
    assert described == http.stub.GetModel(pb.GetModelRequest())
    (model,) = http.get("/v1/models").json["data"]
    assert (model["id"], model["object"]) == ("tiny", "model")
    info = http.get("/info").json
    assert (info["model_id"], info["model_sha"]) == ("tiny", described.fingerprint)
    assert info["model_type"] == {
        "reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    }


def test_an_error_says_as_data_that_the_conversation_is_too_long(http: HttpServer) -> None:
    reply = http.post("/v1/rewards", {"prompt": [1, 2], "responses": [[3], [3] * 5000]})
    assert reply.status == 200, reply.body
    good, long = reply.json["scored"]["rewards"]
    assert "error" not in good, good
    assert long["error"]["over_limit"] is True
    reply = http.post("/v1/rewards", {"prompt": [1] * 5000, "responses": [[3]]})
    assert reply.json["error"]["over_limit"] is True, reply.body
    reply = http.post("/v1/rewards", {"prompt": [1], "responses": []})
    assert "over_limit" not in reply.json["error"]
