"""The protocol of Text Embeddings Inference with tei-client against a real server."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tei_client.stubs import tei_pb2 as pb  # their messages, which the server must understand
from tei_client.stubs import tei_pb2_grpc

from kwise.client import RewardClient
from kwise.types import ScoredGroup, TemplatedText
from tests.servers import PATIENCE_S, Server, running_server

QUERY = "Why is the sky blue?"
TEXTS = ["No idea.", "Light scatters.", "Die Luft streut Licht: λ⁻⁴.", "No idea."]


class Stubs:
    def __init__(self, channel: grpc.Channel) -> None:
        self.info = tei_pb2_grpc.InfoStub(channel)
        self.predict = tei_pb2_grpc.PredictStub(channel)
        self.rerank = tei_pb2_grpc.RerankStub(channel)
        self.tokenize = tei_pb2_grpc.TokenizeStub(channel)


@pytest.fixture(scope="module")
def stubs(tiny_server: Server) -> Iterator[Stubs]:
    with grpc.insecure_channel(tiny_server.address) as channel:
        yield Stubs(channel)


@pytest.fixture(scope="module")
def own_client(tiny_server: Server) -> Iterator[RewardClient]:
    with RewardClient(tiny_server.address, timeout_s=PATIENCE_S) as client:
        yield client


def values(scored: object) -> list[float]:
    assert isinstance(scored, ScoredGroup)
    return [value for value in scored.values if value is not None]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def refused(call: Any, request: Any) -> tuple[str, str]:
    """Return the status and the message with which a call fails."""
    with pytest.raises(grpc.RpcError) as failed:
        list(reply) if hasattr(reply := call(request), "__next__") else reply
    return failed.value.code().name, str(failed.value.details())


# tei-client's own methods


def with_tei_client(address: str) -> dict[str, Any]:
    """Return what tei-client's own methods receive.

    A process of its own runs them, because the client writes an error of its own to the log when
    it is deleted.
    """
    program = f"""
import json, tei_client
client = tei_client.GrpcClient({address!r})
replies = {{"info": client.info()}}
for raw in (True, False):
    replies[str(raw)] = client.rerank({QUERY!r}, {TEXTS!r}, return_text=True, raw_scores=raw)
print(json.dumps({{name: reply.model_dump(mode="json") for name, reply in replies.items()}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    received: dict[str, Any] = json.loads(done.stdout)
    return received


def test_tei_client_reranks(tiny_server: Server, own_client: RewardClient) -> None:
    received = with_tei_client(tiny_server.address)
    expected = values(own_client.score(QUERY, TEXTS))
    order = sorted(range(4), key=lambda index: -expected[index])
    for raw in (True, False):
        ranks = received[str(raw)]["ranks"]
        assert [rank["index"] for rank in ranks] == order
        assert [rank["text"] for rank in ranks] == [TEXTS[index] for index in order]
        scores = [expected[index] if raw else sigmoid(expected[index]) for index in order]
        assert [rank["score"] for rank in ranks] == pytest.approx(scores, rel=1e-6)
    info = received["info"]
    assert (info["server_model_id"], info["server_model_type"]) == ("tiny", "reranker")
    assert info["server_model_sha"] == own_client.get_model().fingerprint
    assert (info["server_model_dtype"], info["max_client_batch_size"]) == ("float32", 2048)
    assert info["max_input_length"] == 2048


# Every rpc with tei-client's stubs


def test_predict_scores_a_whole_conversation(stubs: Stubs, own_client: RewardClient) -> None:
    text = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nGood day.<|im_end|>\n"
    (expected,) = values(own_client.score(TemplatedText(text=""), [text]))
    request = pb.PredictRequest(inputs=text, raw_scores=True)
    reply = stubs.predict.Predict(request)
    (prediction,) = reply.predictions
    assert (prediction.score, prediction.label) == (pytest.approx(expected, rel=1e-6), "LABEL_0")
    assert reply.metadata.compute_chars == len(text)
    assert reply.metadata.compute_tokens > 0 and reply.metadata.total_time_ns > 0
    pair = pb.PredictPairRequest(inputs=[text], raw_scores=True)
    assert stubs.predict.PredictPair(pair).predictions[0] == prediction


def test_predict_pair_scores_a_prompt_and_a_response(
    stubs: Stubs, own_client: RewardClient
) -> None:
    (expected,) = values(own_client.score(QUERY, TEXTS[:1]))
    request = pb.PredictPairRequest(inputs=[QUERY, TEXTS[0]])
    (prediction,) = stubs.predict.PredictPair(request).predictions
    assert prediction.score == pytest.approx(sigmoid(expected), rel=1e-6)


def test_streams_are_answered_in_order(stubs: Stubs, own_client: RewardClient) -> None:
    """tei-client tells replies apart by their order alone."""
    texts = ["word " * 300, *TEXTS]
    expected = pytest.approx(values(own_client.score(QUERY, texts)), rel=1e-6)
    pairs = [pb.PredictPairRequest(inputs=[QUERY, text], raw_scores=True) for text in texts]
    replies = stubs.predict.PredictPairStream(iter(pairs))
    assert [reply.predictions[0].score for reply in replies] == expected
    wholes = values(own_client.score(TemplatedText(text=""), texts))
    requests = [pb.PredictRequest(inputs=text, raw_scores=True) for text in texts]
    replies = stubs.predict.PredictStream(iter(requests))
    assert [reply.predictions[0].score for reply in replies] == pytest.approx(wholes, rel=1e-6)


def test_a_stream_ends_with_the_first_error_after_all_earlier_replies(stubs: Stubs) -> None:
    pairs = [[QUERY, "a"], [QUERY, "b"], [QUERY, "c", "d"], [QUERY, "e"], [QUERY, "f", "g"]]
    replies = stubs.predict.PredictPairStream(
        iter([pb.PredictPairRequest(inputs=pair) for pair in pairs])
    )
    assert [len(next(replies).predictions) for _ in range(2)] == [1, 1]
    with pytest.raises(grpc.RpcError) as failed:
        next(replies)
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert failed.value.details() == "inputs: there are 3 texts; give one or two"


def test_a_rerank_stream_ranks_the_texts_of_all_queries(
    stubs: Stubs, own_client: RewardClient
) -> None:
    pairs = [(query, text) for text in TEXTS[:3] for query in (QUERY, "Why is grass green?")]
    expected = [values(own_client.score(query, [text]))[0] for query, text in pairs]
    order = sorted(range(6), key=lambda index: -expected[index])
    requests = [
        pb.RerankStreamRequest(query=query, text=text, raw_scores=True, return_text=True)
        for query, text in pairs
    ]
    reply = stubs.rerank.RerankStream(iter(requests))
    assert [rank.index for rank in reply.ranks] == order
    assert [rank.text for rank in reply.ranks] == [pairs[index][1] for index in order]
    assert [rank.score for rank in reply.ranks] == pytest.approx(
        [expected[index] for index in order], rel=1e-6
    )


def test_text_is_returned_only_if_asked_for(stubs: Stubs) -> None:
    (rank,) = stubs.rerank.Rerank(pb.RerankRequest(query=QUERY, texts=["a"])).ranks
    assert not rank.HasField("text")


def test_info_is_read_by_their_messages(stubs: Stubs) -> None:
    info = stubs.info.Info(pb.InfoRequest())
    assert info.model_type == pb.MODEL_TYPE_RERANKER
    assert not info.HasField("max_batch_requests") and info.tokenization_workers == 2


# Errors


@pytest.mark.parametrize(
    ("service", "rpc", "request_", "status", "problem"),
    [
        # An empty list was a panic in TEI's router (issue 91 is one of several).
        ("rerank", "Rerank", pb.RerankRequest(query="q"),
         "INVALID_ARGUMENT", "texts: there are none; give at least one"),
        ("rerank", "Rerank", pb.RerankRequest(query="q", texts=["a"] * 2049),
         "INVALID_ARGUMENT", "texts: there are 2049; the limit is 2048 (--max-responses)"),
        ("rerank", "Rerank", pb.RerankRequest(query="q", texts=["a", "w " * 4000]),
         "INVALID_ARGUMENT", "texts[1]: "),
        ("rerank", "RerankStream", iter([]),
         "INVALID_ARGUMENT", "requests: there are none; send at least one"),
        ("rerank", "RerankStream", [pb.RerankStreamRequest(query="q", text="a"),
                                    pb.RerankStreamRequest(query="r", text="b"),
                                    pb.RerankStreamRequest(query="q", text="w " * 4000)],
         "INVALID_ARGUMENT", "requests[2].text: "),
        ("rerank", "RerankStream", [pb.RerankStreamRequest(query="q", text="a")] * 2049,
         "INVALID_ARGUMENT", "requests: there are 2049; the limit is 2048"),
        ("predict", "Predict", pb.PredictRequest(),
         "INVALID_ARGUMENT", "inputs: the text is empty"),
        ("predict", "Predict", pb.PredictRequest(inputs="w " * 4000, truncate=True),
         "INVALID_ARGUMENT", "inputs: the conversation has "),
        ("predict", "PredictPair", pb.PredictPairRequest(inputs=["a", "w " * 4000]),
         "INVALID_ARGUMENT", "inputs[1]: the conversation has "),
        ("predict", "PredictPair", pb.PredictPairRequest(inputs=["w " * 4000, "a"]),
         "INVALID_ARGUMENT", "inputs[0]: "),
        ("predict", "PredictPair", pb.PredictPairRequest(),
         "INVALID_ARGUMENT", "inputs: there are 0 texts; give one or two"),
        ("predict", "PredictPair", pb.PredictPairRequest(inputs=["a", "b", "c"]),
         "INVALID_ARGUMENT", "inputs: there are 3 texts; give one or two"),
        ("tokenize", "Tokenize", pb.EncodeRequest(inputs="a"),
         "UNIMPLEMENTED", "this server scores"),
        ("tokenize", "TokenizeStream", [pb.EncodeRequest(inputs="a")],
         "UNIMPLEMENTED", "this server scores"),
        ("tokenize", "Decode", pb.DecodeRequest(ids=[1]), "UNIMPLEMENTED", "this server scores"),
        ("tokenize", "DecodeStream", [pb.DecodeRequest(ids=[1])],
         "UNIMPLEMENTED", "this server scores"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_bad_request_is_refused_with_the_status_of_tei(
    stubs: Stubs, service: str, rpc: str, request_: Any, status: str, problem: str
) -> None:
    call = getattr(getattr(stubs, service), rpc)
    found = refused(call, iter(request_) if isinstance(request_, list) else request_)
    assert found[0] == status and found[1].startswith(problem)


def test_embeddings_are_unimplemented(tiny_server: Server) -> None:
    with grpc.insecure_channel(tiny_server.address) as channel:
        embed = tei_pb2_grpc.EmbedStub(channel).Embed
        assert refused(embed, pb.EmbedRequest(inputs="a"))[0] == "UNIMPLEMENTED"


def test_the_requests_of_a_rerank_stream_have_the_limit_of_one_message(
    tiny_artifact: Path,
) -> None:
    """All of them are held until the last one has come."""
    requests = [pb.RerankStreamRequest(query="q", text="w " * 10)] * 100
    with (
        running_server(tiny_artifact, "--max-message-bytes", "2000") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        assert refused(Stubs(channel).rerank.RerankStream, iter(requests)) == (
            "INVALID_ARGUMENT",
            "requests: together they have more than 2000 bytes, the limit of one message "
            "(--max-message-bytes)",
        )


def test_the_queries_of_one_stream_do_not_refuse_each_other(
    tiny_artifact: Path, stubs: Stubs
) -> None:
    """A queue of 64 tokens has room for one or two of these queries at a time."""
    requests = [
        pb.RerankStreamRequest(query=f"{number} {'word ' * 20}", text="a", raw_scores=True)
        for number in range(30)
    ]
    expected = stubs.rerank.RerankStream(iter(requests))
    with (
        running_server(tiny_artifact, "--max-queue-tokens", "64") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        reply = Stubs(channel).rerank.RerankStream(iter(requests))
    assert [rank.index for rank in reply.ranks] == [rank.index for rank in expected.ranks]
