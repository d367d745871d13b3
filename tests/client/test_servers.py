"""The choice of a server: balance, little movement, one model at a time, names."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kwise.client import InvalidRequest, RewardServiceError
from kwise.client.several.servers import Servers
from kwise.client.several.targets import check_targets, dns_name
from kwise.protos.kwise.v1 import reward_pb2 as pb

AWAY = RewardServiceError("UNAVAILABLE", "gone")
ADDRESSES = st.lists(
    st.from_regex(r"[a-z]{1,8}\.(svc|net):[1-9][0-9]{0,3}", fullmatch=True),
    min_size=2,
    max_size=8,
    unique=True,
)


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def up(addresses: list[str], clock: Clock | None = None) -> Servers:
    """Return servers that are all up and serve one model."""
    servers = Servers(addresses, clock or Clock())
    answer_all(servers)
    servers.settle()
    return servers


def answer_all(servers: Servers, model: str = "old") -> None:
    for address in servers.to_ask():
        servers.asked(address, None, model)


def keys_of(servers: Servers, num_keys: int) -> list[bytes]:
    return [servers.key(pb.Prompt(text=f"prompt {number}")) for number in range(num_keys)]


# Hashing


@given(addresses=ADDRESSES)
def test_every_server_gets_its_share_of_the_prompts(addresses: list[str]) -> None:
    """Within five standard deviations of a fair draw."""
    servers = up(addresses)
    counts = Counter(servers.pick(key) for key in keys_of(servers, 2000))
    share = 1 / len(addresses)
    deviation = (2000 * share * (1 - share)) ** 0.5
    assert all(abs(counts[address] - 2000 * share) < 5 * deviation for address in addresses)


@given(addresses=ADDRESSES, choices=st.randoms(use_true_random=False))
def test_a_server_that_leaves_moves_its_own_prompts_only_and_gets_them_back(
    addresses: list[str], choices: Any
) -> None:
    clock = Clock()
    servers = up(addresses, clock)
    keys = keys_of(servers, 200)
    before = [servers.pick(key) for key in keys]
    gone = choices.choice(addresses)
    assert servers.failed(gone, AWAY)
    meanwhile = [servers.pick(key) for key in keys]
    assert gone not in meanwhile
    assert all(was in (now, gone) for was, now in zip(before, meanwhile, strict=True))
    assert not servers.to_ask(), "it is asked again after a pause"
    clock.now_s += 0.2
    answer_all(servers)
    assert [servers.pick(key) for key in keys] == before


@given(addresses=ADDRESSES, choices=st.randoms(use_true_random=False))
def test_clients_choose_alike_whatever_the_order_of_their_addresses(
    addresses: list[str], choices: Any
) -> None:
    servers, other = up(addresses), up(choices.sample(addresses, len(addresses)))
    keys = keys_of(servers, 50)
    assert [servers.pick(key) for key in keys] == [other.pick(key) for key in keys]
    assert [servers.copy().pick(key) for key in keys] == [servers.pick(key) for key in keys]


def test_a_prompt_is_hashed_as_it_is_sent_and_without_its_responses() -> None:
    servers = up(["a:1", "b:1"])
    text, ids = pb.Prompt(text="p"), pb.Prompt(token_ids=pb.TokenIds(ids=[1]))
    keys = [servers.key(prompt) for prompt in (text, pb.Prompt(templated_text="p"), ids)]
    assert len(set(keys)) == 3
    assert servers.key(pb.Prompt(text="p")) == keys[0]


def test_a_single_address_is_never_left_out() -> None:
    servers = Servers(["a:1"])
    assert not servers.failed("a:1", AWAY)
    assert servers.answered("a:1", "old")
    assert servers.answered("a:1", "new")
    assert (servers.pick(b""), servers.next_s, servers.to_ask()) == ("a:1", None, [])


# Servers that are away


def test_only_an_absence_leaves_a_server_out() -> None:
    """A full queue says when to come back. Another server would compute the prompt again."""
    servers = up(["a:1", "b:1"])
    for code in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "INTERNAL", "DEADLINE_EXCEEDED"):
        assert not servers.failed("a:1", RewardServiceError(code, "x", retry_after_s=0.1))
    assert list(servers.usable) == ["a:1", "b:1"]
    assert servers.failed("a:1", RewardServiceError("CANCELLED", "the grace is over"))
    assert list(servers.usable) == ["b:1"]


def test_pauses_grow_until_a_server_has_answered_a_request() -> None:
    """A server that answers questions and no requests is not tried again and again."""
    clock = Clock()
    servers = up(["a:1", "b:1"], clock)
    pauses = []
    for _ in range(8):
        servers.failed("a:1", AWAY)
        assert servers.next_s is not None
        pauses.append(servers.next_s)
        clock.now_s += servers.next_s
        answer_all(servers)
        assert "a:1" in servers.usable
    assert pauses[0] <= 0.2
    assert 2.5 <= pauses[-1] <= 5.0
    servers.answered("a:1", "old")
    servers.failed("a:1", AWAY)
    assert servers.next_s is not None
    assert servers.next_s <= 0.2


def test_a_server_that_was_asked_and_never_answers_is_asked_again() -> None:
    clock = Clock()
    servers = Servers(["a:1", "b:1"], clock)
    assert servers.to_ask() == ["a:1", "b:1"]
    assert servers.to_ask() == []
    clock.now_s += 10.0
    assert servers.to_ask() == ["a:1", "b:1"]


def test_the_error_names_every_server_with_its_cause() -> None:
    servers = Servers(["a:1", "b:1", "c:1"])
    servers.asked("a:1", AWAY)
    servers.asked("b:1", RewardServiceError("DEADLINE_EXCEEDED", "x"))
    assert servers.pick(b"") is None
    assert str(servers.none_up(3.0)) == (
        "UNAVAILABLE at a:1, b:1, c:1: no server was ready within 3 s: a:1: UNAVAILABLE: gone; "
        "b:1: DEADLINE_EXCEEDED: it did not answer within 5 s; c:1: no answer yet"
    )


# Models


def test_servers_of_different_models_are_refused_at_the_start() -> None:
    servers = Servers(["a:1", "b:1"])
    servers.asked("a:1", None, "old")
    servers.asked("b:1", None, "new")
    with pytest.raises(RewardServiceError, match="a:1: old; b:1: new") as raised:
        servers.settle()
    assert raised.value.code == "FAILED_PRECONDITION"
    answer_all(servers)
    servers.settle()  # they were asked again


def test_a_rolling_update_changes_the_model_once() -> None:
    clock = Clock()
    servers = up(["a:1", "b:1", "c:1"], clock)
    for number, address in enumerate(("a:1", "b:1", "c:1")):
        servers.failed(address, AWAY)
        clock.now_s += 60.0
        answer_all(servers, "new")
        if number < 2:
            assert address not in servers.usable
            assert "it serves the model new" in servers.causes
    clock.now_s += 60.0
    answer_all(servers, "new")
    assert len(servers.usable) == 3


@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(["a:1", "b:1", "c:1"]),
            st.sampled_from(["reload", "reply", "fail", "ask"]),
        ),
        max_size=60,
    )
)
def test_replies_that_count_change_their_model_only_when_no_server_of_the_old_one_is_left(
    events: list[tuple[str, str]],
) -> None:
    clock = Clock()
    models = dict.fromkeys(["a:1", "b:1", "c:1"], "0")
    servers = up(list(models), clock)
    told = dict.fromkeys(models, "")  # what the client has heard last
    current = ""
    for address, event in events:
        clock.now_s += 30.0
        if event == "reload":
            models[address] = str(int(models[address]) + 1)
        elif event == "fail":
            servers.failed(address, AWAY)
        elif event == "ask":
            for due in servers.to_ask():
                servers.asked(due, None, models[due])
                told[due] = models[due]
        elif address in servers.usable:
            others = set(servers.usable) - {address}
            counts = servers.answered(address, models[address])
            told[address] = models[address]
            if counts and current not in ("", models[address]):
                assert current not in {told[other] for other in others}
            assert counts or others, "the last server's reply counts, whatever its model"
            current = models[address] if counts else current
    for _ in range(4):  # at rest, all servers of the model in use are used
        clock.now_s += 30.0
        for due in servers.to_ask():
            servers.asked(due, None, models[due])
        for address in servers.usable:
            servers.answered(address, models[address])
    in_use = {models[address] for address in servers.usable}
    assert len(in_use) == 1
    assert {address for address in models if models[address] in in_use} == set(servers.usable)


# Names


def test_a_name_is_looked_up_again_and_its_new_address_is_noticed() -> None:
    clock = Clock()
    servers = Servers(["dns:///kwise.svc:5", "b:1"], clock)
    assert servers.alone is None
    assert servers.to_look_up() == [("dns:///kwise.svc:5", "kwise.svc", "5")]
    answer_all(servers)
    known_before = servers.is_known
    assert not known_before, "the name's servers are not known yet"
    servers.found("dns:///kwise.svc:5", ("ipv4:10.0.0.1:5",))
    answer_all(servers)
    servers.settle()
    assert servers.is_known
    assert servers.to_look_up() == []
    clock.now_s += 30.0
    (again,) = servers.to_look_up()
    assert servers.found(again[0], ("ipv4:10.0.0.1:5", "ipv4:10.0.0.2:5")) == ()
    answer_all(servers)
    assert servers.usable == ("ipv4:10.0.0.1:5", "ipv4:10.0.0.2:5", "b:1")
    clock.now_s += 30.0
    servers.to_look_up()
    assert servers.found(again[0], ("ipv4:10.0.0.2:5",)) == ("ipv4:10.0.0.1:5",)
    assert servers.addresses == ("ipv4:10.0.0.2:5", "b:1")


def test_a_failed_server_has_its_name_looked_up_and_a_failed_look_up_changes_nothing() -> None:
    clock = Clock()
    servers = Servers(["dns:///kwise.svc:5"], clock)
    ((target, _, _),) = servers.to_look_up()
    servers.found(target, (), "Name or service not known")
    assert "dns:///kwise.svc:5: Name or service not known" in str(servers.none_up(1.0))
    clock.now_s += 5.0
    servers.to_look_up()
    servers.found(target, ("ipv4:10.0.0.1:5",))
    answer_all(servers)
    servers.settle()
    servers.failed("ipv4:10.0.0.1:5", AWAY)
    assert servers.to_look_up() == []
    clock.now_s += 5.0
    assert len(servers.to_look_up()) == 1
    servers.found(target, (), "Temporary failure in name resolution")
    assert servers.addresses == ("ipv4:10.0.0.1:5",)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("dns:///kwise.svc:50051", ("kwise.svc", "50051")),
        ("dns:kwise:50051", ("kwise", "50051")),
        ("dns:///10.0.0.1:50051", None),
        ("dns:///[::1]:50051", None),
        ("dns://8.8.8.8/kwise:50051", None),
        ("dns:kwise", None),
        ("kwise:50051", None),
        ("unix:/run/kwise.sock", None),
    ],
)
def test_names_that_kwise_looks_up(target: str, name: tuple[str, str] | None) -> None:
    assert dns_name(target) == name


# Addresses


def test_addresses_come_as_a_list_or_with_commas() -> None:
    assert check_targets("target", "a:1,b:2") == ("a:1", "b:2")
    assert check_targets("target", "a:1, b:2") == ("a:1", "b:2")
    assert check_targets("target", ["a:1", "unix:/a,b"]) == ("a:1", "unix:/a,b")
    assert check_targets("target", "ipv4:1.2.3.4:5,1.2.3.5:5") == ("ipv4:1.2.3.4:5", "1.2.3.5:5")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("a:1,", r"^target\[1\]: must be HOST:PORT"),
        (["a:1", "b"], r"^target\[1\]: must be HOST:PORT"),
        ([], "^target: has no address"),
        ("a:1,b:2,a:1", "^target: names a:1 twice"),
        ("a:1,b:70000", r"^target\[1\]: the port is 70000"),
    ],
)
def test_a_list_of_addresses_that_is_wrong_names_the_item(target: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        check_targets("target", target)


def test_a_list_of_addresses_of_another_type_is_named() -> None:
    with pytest.raises(TypeError, match=r"^target must be a str or a sequence of str, not int"):
        check_targets("target", 50051)
    with pytest.raises(TypeError, match=r"^target\[1\] must be a str, not int"):
        check_targets("target", ["a:1", 50051])
