"""The parts of the client that need no server.

Messages keep the meaning of arguments and results, wrong arguments are named, `score_many` loses no
group.
"""

from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.client import AsyncRewardClient, ModelInfo, RewardClient, RewardServiceError, messages
from kwise.client.retry import Attempts
from kwise.protos.kwise.v1 import reward_pb2 as pb
from kwise.types import Group, Message, Priority, Reward, Timing

texts = st.text(st.characters(exclude_categories=["Cs"]))
token_ids = st.lists(st.integers(0, 2**32 - 1))
finite = st.floats(allow_nan=False)


def through_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


class TestRequests:
    @given(prompt=texts, responses=st.lists(texts))
    def test_texts_arrive_as_they_are(self, prompt: str, responses: list[str]) -> None:
        request = through_the_wire(messages.to_group("m", prompt, responses, "bulk"))
        assert (request.model, request.prompt.text, request.priority) == (
            "m",
            prompt,
            pb.PRIORITY_BULK,
        )
        assert [response.text for response in request.responses] == responses

    @given(prompt=token_ids.filter(bool), responses=st.lists(token_ids))
    def test_token_ids_arrive_as_they_are(
        self, prompt: list[int], responses: list[list[int]]
    ) -> None:
        request = through_the_wire(messages.to_group("", prompt, responses, Priority.INTERACTIVE))
        assert list(request.prompt.token_ids.ids) == prompt
        assert [list(response.token_ids.ids) for response in request.responses] == responses

    @given(turns=st.lists(st.tuples(texts, texts), min_size=1))
    def test_messages_may_be_dicts_or_dataclasses(self, turns: list[tuple[str, str]]) -> None:
        dicts = [{"role": role, "content": content} for role, content in turns]
        typed = [Message(role=role, content=content) for role, content in turns]
        request = through_the_wire(messages.to_group("", dicts, ["a"], "interactive"))
        assert [(m.role, m.content) for m in request.prompt.messages.messages] == turns
        assert request == messages.to_group("", typed, ["a"], "interactive")

    def test_keys_of_a_message_without_a_value_are_passed_over(self) -> None:
        message: Any = {
            "role": "user",
            "content": "p",
            "name": None,
            "tool_calls": [],
            "refusal": "",
        }
        request = messages.to_group("", [message], ["a"], "interactive")
        assert request == messages.to_group(
            "", [Message(role="user", content="p")], ["a"], "interactive"
        )

    def test_pairs_are_kept_in_order_and_none_means_all(self) -> None:
        request = messages.to_pairs([(1, 0), (0, 1)])
        assert [(pair.first, pair.second) for pair in request] == [(1, 0), (0, 1)]
        assert not messages.to_pairs(None)

    def test_a_group_keeps_its_own_priority_and_a_pair_takes_the_given_one(self) -> None:
        group = Group(
            prompt=(Message(role="user", content="p"),), responses=("a",), priority=Priority.BULK
        )
        assert messages.to_stream_group("", group, "interactive").priority == pb.PRIORITY_BULK
        assert (
            messages.to_stream_group("", ("p", ["a"]), "interactive").priority
            == pb.PRIORITY_INTERACTIVE
        )

    def test_anything_with_an_index_is_a_token_id(self) -> None:
        np = pytest.importorskip("numpy")
        request = messages.to_group("", np.arange(3), [np.array([7, 8])], "interactive")
        assert list(request.prompt.token_ids.ids) == [0, 1, 2]
        assert list(request.responses[0].token_ids.ids) == [7, 8]

    @pytest.mark.parametrize(
        ("prompt", "responses", "error", "says"),
        [
            (None, ["a"], TypeError, "prompt must be a str"),
            (b"p", ["a"], TypeError, "not bytes"),
            ({"role": "user"}, ["a"], TypeError, "not dict"),
            ([], ["a"], ValueError, "it is empty"),
            (["p"], ["a"], TypeError, "not of str"),
            ([{"role": "user"}], ["a"], ValueError, "prompt[0] has no content"),
            (
                [{"role": "user", "content": None}],
                ["a"],
                TypeError,
                "prompt[0]['content'] must be a str",
            ),
            (
                [{"role": "user", "content": "p"}, 3],
                ["a"],
                TypeError,
                "prompt[1] must be a Message",
            ),
            (
                [{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}],
                ["a"],
                ValueError,
                "prompt[0] has 'tool_calls'; a message has role and content only",
            ),
            ([{"role": "user", "content": "p", "name": "Ada"}], ["a"], ValueError, "has 'name'"),
            ([1, 2.0], [[3]], TypeError, "prompt[1] must be an int, not float"),
            ([1, True], [[3]], TypeError, "prompt[1] must be an int, not bool"),
            ([1, -1], [[3]], ValueError, "prompt[1] is -1"),
            ([2**32], [[3]], ValueError, "prompt[0] is 4294967296"),
            ("p\ud800", ["a"], ValueError, "lone surrogate at character 1"),
            ("p", "a", TypeError, "not one str"),
            ("p", None, TypeError, "responses must be a sequence"),
            ("p", [None], TypeError, "responses[0] must be a str"),
            ("p", ["a", ["b"]], TypeError, "responses[1][0] must be an int, not str"),
        ],
    )
    def test_a_wrong_argument_is_named(
        self, prompt: Any, responses: Any, error: type[Exception], says: str
    ) -> None:
        with pytest.raises(error) as raised:
            messages.to_group("", prompt, responses, "interactive")
        assert says in str(raised.value)

    def test_wrong_priorities_pairs_and_groups_are_named(self) -> None:
        with pytest.raises(ValueError, match="'interactive', 'bulk', not 'urgent'"):
            messages.to_group("", "p", ["a"], "urgent")
        for pairs in ([(0, 1, 2)], [(0, -1)], []):
            with pytest.raises(ValueError, match="pairs"):
                messages.to_pairs(pairs)  # type: ignore[arg-type]
        for group in ("ab", 3, ("p",)):
            with pytest.raises((TypeError, ValueError), match="pair"):
                messages.to_stream_group("", group, "interactive")  # type: ignore[arg-type]


class TestResults:
    @given(
        value=finite,
        raw=finite,
        tokens=st.integers(0, 2**32 - 1),
        cached=st.booleans(),
        message=texts,
    )
    def test_rewards_and_errors_keep_their_places(
        self, value: float, raw: float, tokens: int, cached: bool, message: str
    ) -> None:
        reward = pb.Reward(
            value=value, raw=raw, tokens=tokens, dropped_tokens=1, control_tokens=2, cached=cached
        )
        failed = pb.Reward(error=pb.Error(code="INVALID_ARGUMENT", message=message))
        timing = pb.Timing(tokenizer_ms=1, queue_ms=2, model_ms=3)
        reply = pb.ScoredGroup(rewards=[reward, failed], model="m", fingerprint="f", timing=timing)
        group = messages.from_scored_group(through_the_wire(reply))
        first, second = group.rewards
        assert first == Reward(
            value=value, raw=raw, tokens=tokens, dropped_tokens=1, control_tokens=2, cached=cached
        )
        assert isinstance(second, RewardServiceError)
        assert (second.code, second.message) == ("INVALID_ARGUMENT", message)
        assert (group.model, group.fingerprint) == ("m", "f")
        assert group.timing == Timing(tokenizer_ms=1, queue_ms=2, model_ms=3)

    @given(members=st.lists(finite, min_size=1, max_size=5), std=finite, min_value=finite)
    def test_members_arrive_as_they_are(
        self, members: list[float], std: float, min_value: float
    ) -> None:
        reward = pb.Reward(value=1, members=members, std=std, min=min_value)
        reply = through_the_wire(pb.ScoredGroup(rewards=[reward, pb.Reward(value=1)]))
        first, plain = messages.from_scored_group(reply).rewards
        assert isinstance(first, Reward) and isinstance(plain, Reward)
        assert (first.members, first.std, first.min) == (tuple(members), std, min_value)
        assert (plain.members, plain.std, plain.min) == ((), None, None)

    def test_an_absent_rank_is_none(self) -> None:
        failed = pb.Reward(error=pb.Error(code="INTERNAL", message="x"))
        reply = pb.RankResponse(
            scored=pb.ScoredGroup(rewards=[pb.Reward(raw=2), failed]),
            ranks=[pb.Rank(rank=1), pb.Rank()],
        )
        group = messages.from_rank_response(through_the_wire(reply))
        assert group.ranks == (1, None)
        assert isinstance(group.rewards[1], RewardServiceError)

    def test_comparisons_keep_pairs_numbers_and_errors(self) -> None:
        good = pb.Comparison(pair=pb.Pair(first=1, second=0), margin=-2, win_probability=0.25)
        bad = pb.Comparison(
            pair=pb.Pair(first=0, second=2), error=pb.Error(code="INTERNAL", message="x")
        )
        reply = pb.CompareResponse(comparisons=[good, bad])
        first, second = messages.from_compare_response(through_the_wire(reply)).comparisons
        assert (first.first, first.second, first.margin, first.win_probability, first.error) == (
            1,
            0,
            -2,
            0.25,
            None,
        )
        assert isinstance(second.error, RewardServiceError)

    def test_every_field_of_the_model_and_its_counters_is_told(self) -> None:
        reply = pb.GetModelResponse(model="m", max_tokens=9, counters=pb.Counters(cache_hits=7))
        info = messages.from_model_response(through_the_wire(reply))
        assert (info.model, info.max_tokens, info.counters.cache_hits) == ("m", 9, 7)
        assert set(ModelInfo.__dataclass_fields__) == set(
            pb.GetModelResponse.DESCRIPTOR.fields_by_name
        )
        assert set(type(info.counters).__dataclass_fields__) == set(
            pb.Counters.DESCRIPTOR.fields_by_name
        )

    def test_a_failed_call_has_its_code_and_the_servers_advice(self) -> None:
        trailers = (("grpc-retry-pushback-ms", "250"),)
        failed = SimpleNamespace(
            code=lambda: grpc.StatusCode.RESOURCE_EXHAUSTED,
            details=lambda: "full",
            trailing_metadata=lambda: trailers,
        )
        error = messages.from_rpc_error(failed, "host:7")
        assert (error.code, error.message, error.retry_after_s) == (
            "RESOURCE_EXHAUSTED",
            "full",
            0.25,
        )
        assert str(error) == "RESOURCE_EXHAUSTED at host:7: full"

    def test_both_clients_have_the_same_methods(self) -> None:
        methods = [
            {n for n in vars(client) if not n.startswith("_")}
            for client in (RewardClient, AsyncRewardClient)
        ]
        assert methods[0] == methods[1]


class TestAttempts:
    def test_only_what_may_succeed_later_is_tried_again(self) -> None:
        """A message over gRPC's limit has the status of a full queue, without its advice."""
        for failure in (
            RewardServiceError("UNAVAILABLE", "restarting"),
            RewardServiceError("CANCELLED", "the grace is over"),
            RewardServiceError("RESOURCE_EXHAUSTED", "full", retry_after_s=0.05),
        ):
            assert Attempts(10.0).pause_s(failure) > 0
        for failure in (
            RewardServiceError("RESOURCE_EXHAUSTED", "the message is too large"),
            RewardServiceError("INTERNAL", "the model failed"),
            RewardServiceError("DEADLINE_EXCEEDED", "too late"),
        ):
            with pytest.raises(RewardServiceError) as raised:
                Attempts(10.0).pause_s(failure)
            assert raised.value is failure

    def test_the_servers_last_refusal_is_raised_if_the_time_ends_during_an_attempt(self) -> None:
        """An expired deadline says nothing about the cause."""
        attempts = Attempts(10.0)
        draining = RewardServiceError("UNAVAILABLE", "draining")
        attempts.pause_s(RewardServiceError("UNAVAILABLE", "restarting"))
        attempts.pause_s(draining)
        with pytest.raises(RewardServiceError) as raised:
            attempts.pause_s(RewardServiceError("DEADLINE_EXCEEDED", "too late"))
        assert raised.value is draining

    def test_the_servers_advice_comes_before_growing_pauses_and_the_deadline_before_both(
        self,
    ) -> None:
        clock = [0.0]
        attempts = Attempts(10.0, now=lambda: clock[0])
        gone, full = (
            RewardServiceError("UNAVAILABLE", "x"),
            RewardServiceError("RESOURCE_EXHAUSTED", "x", retry_after_s=1.0),
        )
        assert 0.1 <= attempts.pause_s(gone) <= 0.2 <= attempts.pause_s(gone) <= 0.4
        assert 1.0 <= attempts.pause_s(full) <= 1.25
        clock[0] = 9.5
        assert attempts.left_s == 0.5
        with pytest.raises(RewardServiceError):
            attempts.pause_s(full)
