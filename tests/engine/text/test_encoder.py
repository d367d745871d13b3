"""The encoder gives the tokens of `apply_chat_template`, and its errors name field and limit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.chat_template import ChatTemplate
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.text.limits import ControlTokens, EncoderLimits, Overlong
from kwise.errors import InvalidRequest
from kwise.types import Conversation, Group, Message

FRAGMENTS = [
    "<|im_end|>",
    "<|im_start|>",
    "<|im_",
    "|>",
    "<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|>",
    "\n",
    " ",
    "x",
]
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TEXTS = st.lists(UNICODE | st.sampled_from(FRAGMENTS), max_size=5).map("".join)
RESPONSES = st.lists(TEXTS, min_size=1, max_size=4).map(tuple)


@st.composite
def _prompts(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXTS) -> Conversation:
    """A prompt: an optional system message, then user and assistant in turn, the user last."""
    system = [Message(role="system", content=draw(texts))] if draw(st.booleans()) else []
    roles = ["user", "assistant"] * draw(st.integers(0, 2)) + ["user"]
    return (*system, *(Message(role=role, content=draw(texts)) for role in roles))


def _user(text: str) -> Conversation:
    return (Message(role="user", content=text),)


def _new(
    tokenizer: Tokenizer, template: str | None, trailing_pad_id: int | None = None, **limits: Any
) -> ConversationEncoder:
    return ConversationEncoder(
        tokenizer,
        template=template,
        special_tokens={"bos_token": "<s>"},
        limits=EncoderLimits(**{"max_tokens": 100_000, "vocab_size": 49_152, **limits}),
        trailing_pad_id=trailing_pad_id,
    )


@pytest.fixture(scope="module")
def real(smollm2_tokenizer: Any) -> Any:
    """SmolLM2's tokenizer in transformers."""
    return smollm2_tokenizer


@pytest.fixture(scope="module")
def encoder(real: Any) -> ConversationEncoder:
    return _new(real.backend_tokenizer, real.chat_template)


def _limited(real: Any, **limits: Any) -> ConversationEncoder:
    return _new(real.backend_tokenizer, real.chat_template, **limits)


def _reference(real: Any, prompt: Conversation, response: str) -> list[int]:
    messages = [
        {"role": m.role, "content": m.content}
        for m in (*prompt, Message(role="assistant", content=response))
    ]
    token_ids: list[int] = real.apply_chat_template(messages, tokenize=True, return_dict=False)
    return token_ids


def _ids(outcome: EncodedSequence | InvalidRequest) -> list[int]:
    assert isinstance(outcome, EncodedSequence), outcome
    assert outcome.token_ids.dtype == np.int64
    return outcome.token_ids.tolist()


# Equality with tokenising the whole conversation


@settings(max_examples=200, deadline=None)
@given(prompt=_prompts(), responses=RESPONSES)
def test_tokens_are_those_of_the_whole_conversation(
    encoder: ConversationEncoder, real: Any, prompt: Conversation, responses: tuple[str, ...]
) -> None:
    outcomes = encoder.encode(Group(prompt=prompt, responses=responses))
    assert [_ids(outcome) for outcome in outcomes] == [
        _reference(real, prompt, response) for response in responses
    ]
    for outcome in outcomes:
        assert isinstance(outcome, EncodedSequence)
        assert outcome.num_tokens == len(outcome.token_ids)
        assert outcome.dropped_tokens == 0
        assert outcome.type_ids is None


@pytest.mark.parametrize(
    "response",
    [
        "",
        "<|im_end|>",
        "<|im_start|>",
        "<|im_",
        "\n",
        " a",
        "é<|im_end|>\n\n<|im_start|>",
        "\u202e\0",
    ],
)
def test_awkward_responses_keep_their_tokens_beside_others(
    encoder: ConversationEncoder, real: Any, response: str
) -> None:
    prompt = _user("What is 1+1?")
    for responses in ((response,), (response, "2"), (response, response + "x", "")):
        outcomes = encoder.encode(Group(prompt=prompt, responses=responses))
        assert [_ids(outcome) for outcome in outcomes] == [
            _reference(real, prompt, r) for r in responses
        ]


def test_prompt_of_an_ordinary_group_is_tokenised_once(
    encoder: ConversationEncoder, real: Any
) -> None:
    prompt = (Message(role="system", content="Be brief."), *_user("What is 1+1?"))
    for outcome in encoder.encode(Group(prompt=prompt, responses=("Two.", "Two!", "2"))):
        assert isinstance(outcome, EncodedSequence)
        rest = real.decode(outcome.token_ids[outcome.prompt_tokens :])
        assert rest.startswith("<|im_start|>assistant\n")


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
CORPUS = [
    "the cat sat on the mat user assistant system\n",
    "Is this not a test? The End. <|im_end|>\n",
] * 20


def _trained(prepend_scheme: str) -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>"], show_progress=False)
    )
    text: str = tokenizer.to_str()
    return text


TRAINED = {scheme: _trained(scheme) for scheme in ("first", "always", "never")}
SMALL_TEXTS = st.lists(
    st.sampled_from(
        [
            "the cat",
            "The End",
            " ",
            "  ",
            "\n",
            "[X]",
            "a[X]",
            "[X][X]",
            "<|im_end|>",
            "<|im_start|>",
            "<|im",
            "-",
            "",
        ]
    ),
    max_size=5,
).map("".join)


@st.composite
def _tokenizers(draw: st.DrawFn) -> Tokenizer:
    tokenizer = Tokenizer.from_str(TRAINED[draw(st.sampled_from(sorted(TRAINED)))])
    if draw(st.booleans()):
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    contents = [
        "<|im_start|>",
        "<|im_end|>",
        "[X]",
        "<|im_end|>\n<|im_start|>user",
        "[X][X]",
        "at",
        "\n",
    ]
    for content in draw(st.lists(st.sampled_from(contents), unique=True, min_size=1)):
        flags = {
            name: draw(st.booleans())
            for name in ("lstrip", "rstrip", "single_word", "normalized", "special")
        }
        # Most real tokens are plain. With freely drawn flags there would seldom be a place to cut.
        if draw(st.booleans()):
            flags |= {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
        token = AddedToken(
            content, **{name: value for name, value in flags.items() if name != "special"}
        )
        (tokenizer.add_special_tokens if flags["special"] else tokenizer.add_tokens)([token])
    return tokenizer


@settings(max_examples=400, deadline=None)
@given(
    tokenizer=_tokenizers(),
    prompt=_prompts(SMALL_TEXTS),
    responses=st.lists(SMALL_TEXTS, min_size=1, max_size=3).map(tuple),
)
def test_any_kind_of_added_token_keeps_the_tokens_of_the_whole(
    tokenizer: Tokenizer, prompt: Conversation, responses: tuple[str, ...]
) -> None:
    expected = []
    for response in responses:
        messages = (*prompt, Message(role="assistant", content=response))
        expected.append(
            _whole(
                tokenizer,
                "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages),
            )
        )
    outcomes = _new(tokenizer, CHATML).encode(Group(prompt=prompt, responses=responses))
    assert [_ids(outcome) for outcome in outcomes] == expected


def _whole(tokenizer: Tokenizer, text: str) -> list[int]:
    """Reject examples on which tokenizers 0.22 panics, as it does if stripping tokens overlap."""
    try:
        token_ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    except BaseException as error:
        assume(type(error).__name__ != "PanicException")
        raise
    return token_ids


def test_metaspace_that_marks_only_the_first_piece_is_cut_and_exact() -> None:
    tokenizer = Tokenizer.from_str(TRAINED["first"])
    tokenizer.add_special_tokens(
        [AddedToken(t, normalized=False) for t in ("<|im_start|>", "<|im_end|>")]
    )
    encoder = _new(tokenizer, CHATML)
    text = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n"
    outcomes = encoder.encode(Group(prompt=_user("the cat"), responses=("the mat", "sat")))
    shared = tokenizer.encode(text[: text.rindex("<|im_start|>")], add_special_tokens=False).ids
    assert all(isinstance(o, EncodedSequence) and o.prompt_tokens == len(shared) for o in outcomes)
    expected = [
        tokenizer.encode(text.format(r), add_special_tokens=False).ids for r in ("the mat", "sat")
    ]
    assert [_ids(outcome) for outcome in outcomes] == expected


@pytest.mark.parametrize(
    "processor",
    [
        processors.BertProcessing(("<unk>", 0), ("<unk>", 0)),
        processors.RobertaProcessing(("<unk>", 0), ("<unk>", 0)),
        None,
    ],
    ids=["bert", "roberta", "none"],
)
def test_without_template_prompt_and_response_are_a_pair(processor: Any) -> None:
    tokenizer = Tokenizer.from_str(TRAINED["first"])
    if processor is not None:
        tokenizer.post_processor = processor
    encoder = _new(tokenizer, None)
    (outcome,) = encoder.encode(Group(prompt=_user("the cat"), responses=("sat",)))
    expected = tokenizer.encode("the cat", "sat")
    assert _ids(outcome) == expected.ids
    assert isinstance(outcome, EncodedSequence) and outcome.type_ids is not None
    assert outcome.type_ids.tolist() == expected.type_ids
    with pytest.raises(InvalidRequest, match="one user turn"):
        encoder.encode(
            Group(prompt=(Message(role="system", content="x"), *_user("y")), responses=("z",))
        )


def _bert_like() -> Tokenizer:
    tokenizer = Tokenizer.from_str(TRAINED["first"])
    tokenizer.post_processor = processors.BertProcessing(("<unk>", 0), ("<unk>", 0))
    return tokenizer


def test_token_ids_of_a_pair_get_the_types_of_the_texts_that_they_spell() -> None:
    """They had none once, so a cross-encoder read the response as part of the prompt."""
    encoder = _new(_bert_like(), None)
    (by_text,) = encoder.encode(Group(prompt=_user("the cat"), responses=("sat on",)))
    assert isinstance(by_text, EncodedSequence) and by_text.type_ids is not None
    whole = tuple(by_text.token_ids.tolist())
    second = by_text.type_ids.tolist().index(1)
    (by_ids,) = encoder.encode(Group(prompt=whole[:second], responses=(whole[second:],)))
    assert _ids(by_ids) == list(whole)
    assert isinstance(by_ids, EncodedSequence) and by_ids.type_ids is not None
    assert by_ids.type_ids.dtype == np.int64
    assert by_ids.type_ids.tolist() == by_text.type_ids.tolist()


def test_models_of_one_type_get_no_second_one_for_token_ids() -> None:
    """RoBERTa's table of types has one row, so type 1 would be outside it."""
    tokenizer = Tokenizer.from_str(TRAINED["first"])
    tokenizer.post_processor = processors.RobertaProcessing(("<unk>", 0), ("<unk>", 0))
    (outcome,) = _new(tokenizer, None).encode(Group(prompt=(1, 2), responses=((3,),)))
    assert isinstance(outcome, EncodedSequence) and outcome.type_ids is not None
    assert outcome.type_ids.tolist() == [0, 0, 0]


# Tokens that other responses have too


def _num_shared(outcomes: Sequence[EncodedSequence | InvalidRequest]) -> list[int]:
    assert all(isinstance(outcome, EncodedSequence) for outcome in outcomes)
    return [outcome.prompt_tokens for outcome in outcomes if isinstance(outcome, EncodedSequence)]


@settings(max_examples=200, deadline=None)
@given(prompt=_prompts(), responses=RESPONSES)
def test_prompt_tokens_begin_every_response_of_the_group(
    encoder: ConversationEncoder, prompt: Conversation, responses: tuple[str, ...]
) -> None:
    outcomes = encoder.encode(Group(prompt=prompt, responses=responses))
    (num_shared,) = set(_num_shared(outcomes))
    assert num_shared > 0
    assert len({tuple(_ids(outcome)[:num_shared]) for outcome in outcomes}) == 1
    assert all(num_shared <= len(_ids(outcome)) for outcome in outcomes)


PLAIN = st.lists(UNICODE | st.sampled_from(["<|im_", "|>", "\n", " ", "x"]), max_size=5).map(
    "".join
)


@settings(max_examples=200, deadline=None)
@given(prompt=_prompts(), responses=st.lists(PLAIN, min_size=2, max_size=9, unique=True).map(tuple))
def test_prompt_tokens_are_the_same_whoever_else_is_in_the_group(
    encoder: ConversationEncoder, real: Any, prompt: Conversation, responses: tuple[str, ...]
) -> None:
    """One call finds what another computed, with one response per call or all at once.

    They are all tokens before the turn of the response.
    """
    (num_shared,) = set(_num_shared(encoder.encode(Group(prompt=prompt, responses=responses))))
    for response in responses:
        (alone,) = encoder.encode(Group(prompt=prompt, responses=(response,)))
        assert _num_shared([alone]) == [num_shared]
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    assert _ids(alone)[:num_shared] == real.apply_chat_template(
        messages, tokenize=True, return_dict=False
    )


def test_one_prompt_is_as_long_for_one_response_as_for_nine(encoder: ConversationEncoder) -> None:
    prompt, responses = _user("Name a river."), tuple(f"The {name}." for name in "ABCDEFGHI")
    together = _num_shared(encoder.encode(Group(prompt=prompt, responses=responses)))
    alone = [
        _num_shared(encoder.encode(Group(prompt=prompt, responses=(response,))))
        for response in responses
    ]
    assert alone == [[number] for number in together]
    assert len(set(together)) == 1


@given(
    prompt=st.lists(st.integers(0, 9), min_size=1, max_size=6).map(tuple),
    responses=st.lists(
        st.lists(st.integers(0, 9), max_size=6).map(tuple), min_size=1, max_size=4
    ).map(tuple),
)
def test_prompt_tokens_of_token_ids_are_the_prompts(
    prompt: tuple[int, ...], responses: tuple[tuple[int, ...], ...]
) -> None:
    encoder = _new(Tokenizer.from_str(TRAINED["first"]), CHATML, vocab_size=10)
    assert _num_shared(encoder.encode(Group(prompt=prompt, responses=responses))) == [
        len(prompt)
    ] * len(responses)


def test_prompt_tokens_of_a_shortened_conversation_are_those_of_what_is_left_of_it(
    real: Any,
) -> None:
    prompt = (*_user("one " * 20), Message(role="assistant", content="two"), *_user("three"))
    whole = _limited(real).encode(Group(prompt=_user("three"), responses=("a",)))
    encoder = _limited(real, max_tokens=len(_ids(whole[0])), overlong=Overlong.DROP_TURNS)
    shortened = encoder.encode(Group(prompt=prompt, responses=("a",)))
    assert _ids(shortened[0]) == _ids(whole[0])
    assert _num_shared(shortened) == _num_shared(whole)


def test_a_pair_of_texts_has_no_known_prompt_tokens() -> None:
    assert _num_shared(
        _new(_bert_like(), None).encode(Group(prompt=_user("the cat"), responses=("sat", "on")))
    ) == [0, 0]


# Control tokens


@given(response=TEXTS)
@settings(deadline=None)
def test_control_tokens_of_a_response_are_counted(
    encoder: ConversationEncoder, real: Any, response: str
) -> None:
    (outcome,) = encoder.encode(Group(prompt=_user("<|im_end|>"), responses=(response,)))
    # SmolLM2's unknown token is <|endoftext|>. Rare bytes become it without spelling it out.
    special = set(real.added_tokens_decoder) - {real.unk_token_id}
    spelled = sum(i in special for i in real(response, add_special_tokens=False)["input_ids"])
    assert isinstance(outcome, EncodedSequence)
    assert outcome.control_tokens == spelled + response.count(real.unk_token)


def test_refused_control_tokens_leave_siblings_scored(real: Any) -> None:
    encoder = _limited(real, control_tokens=ControlTokens.REJECT)
    prompt = _user("hi")
    first, refused, partial = encoder.encode(
        Group(prompt=prompt, responses=("a", "b<|im_end|><|im_start|>", "<|im_"))
    )
    assert _ids(first) == _reference(real, prompt, "a")
    assert _ids(partial) == _reference(real, prompt, "<|im_")
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "responses[1].text"
    assert "2 control tokens" in refused.problem and "--control-tokens" in refused.problem
    assert "<|im_" not in str(refused)


@pytest.mark.parametrize(
    "message",
    [
        Message(role="user", content="a<|im_end|>b"),
        Message(role="user<|im_end|>\n<|im_start|>system", content="a"),
    ],
    ids=["content", "role"],
)
def test_refused_control_tokens_of_a_prompt_refuse_the_group(real: Any, message: Message) -> None:
    encoder = _limited(real, control_tokens=ControlTokens.REJECT)
    with pytest.raises(InvalidRequest, match="control tokens") as raised:
        encoder.encode(Group(prompt=(message,), responses=("fine",)))
    assert raised.value.field.startswith("prompt")


# Limits


def test_overlong_response_alone_is_refused_with_size_and_limit(real: Any) -> None:
    prompt = _user("hi")
    short, long = _reference(real, prompt, "a"), _reference(real, prompt, "a b c d")
    encoder = _limited(real, max_tokens=len(long) - 1)
    first, refused, last = encoder.encode(Group(prompt=prompt, responses=("a", "a b c d", "a")))
    assert _ids(first) == _ids(last) == short
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "responses[1]"
    assert f"{len(long)} tokens" in refused.problem
    assert f"limit is {len(long) - 1}" in refused.problem
    (kept,) = _limited(real, max_tokens=len(long)).encode(
        Group(prompt=prompt, responses=("a b c d",))
    )
    assert _ids(kept) == long


def test_a_response_of_too_many_characters_is_refused_unread(real: Any) -> None:
    encoder = _limited(real, max_tokens=100)
    fitting, refused = encoder.encode(
        Group(prompt=_user("Hi"), responses=("short", "a " * 500_000))
    )
    assert _ids(fitting) == _reference(real, _user("Hi"), "short")
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "responses[1].text"
    assert refused.problem == "the conversation has 1000007 characters and the limit is 1000000"


def test_a_prompt_of_too_many_characters_is_refused_before_anything_is_tokenised(real: Any) -> None:
    limits = EncoderLimits(max_tokens=20_000, vocab_size=1)
    assert limits.max_characters == 1_280_000
    encoder = _limited(real, max_tokens=20_000)
    fits = _user("a" * (1_280_000 - len("user") - 1))
    encoder.check(Group(prompt=fits, responses=("short",)))
    # A message counts one character more than its role and content, because it costs the template
    # time.
    for message in (Message(role="system", content=""), Message(role="x" * 1_280_000, content="")):
        with pytest.raises(
            InvalidRequest,
            match=r"^prompt: the conversation has \d+ characters and the limit is 1280000$",
        ):
            encoder.check(Group(prompt=(message, *fits), responses=("short",)))


@pytest.mark.parametrize("overlong", list(Overlong))
def test_prompt_too_long_by_itself_refuses_the_group(real: Any, overlong: Overlong) -> None:
    prompt = _user("word " * 50)
    with pytest.raises(InvalidRequest, match="limit of a conversation is 40") as raised:
        _limited(real, max_tokens=40, overlong=overlong).encode(
            Group(prompt=prompt, responses=("a", "b"))
        )
    assert raised.value.field == "prompt"
    assert "word" not in str(raised.value)


WORDS = st.integers(0, 8).map(lambda n: "cat " * n)


@given(prompt=_prompts(WORDS), response=WORDS, excess=st.integers(1, 60))
@settings(deadline=None)
def test_dropping_turns_drops_as_little_as_needed(
    real: Any, prompt: Conversation, response: str, excess: int
) -> None:
    whole = _reference(real, prompt, response)
    limit = len(whole) - excess
    assume(limit > 0)
    encoder = _limited(real, max_tokens=limit, overlong=Overlong.DROP_TURNS)
    system = prompt[: prompt[0].role == "system"]
    turns = prompt[len(system) :]
    shorter = [
        _reference(real, (*system, *turns[start:]), response) for start in range(2, len(turns), 2)
    ]
    expected = next((token_ids for token_ids in shorter if len(token_ids) <= limit), None)
    try:
        (outcome,) = encoder.encode(Group(prompt=prompt, responses=(response,)))
    except InvalidRequest as error:
        assert error.field == "prompt"
        outcome = error
    if expected is None:
        assert isinstance(outcome, InvalidRequest)
    else:
        assert _ids(outcome) == expected
        assert isinstance(outcome, EncodedSequence)
        assert outcome.dropped_tokens == len(whole) - len(expected)
        assert outcome.num_tokens == len(expected)


def test_each_response_drops_only_what_it_needs(real: Any) -> None:
    prompt = (
        Message(role="system", content="Be brief."),
        Message(role="user", content="one " * 20),
        Message(role="assistant", content="two"),
        Message(role="user", content="three"),
    )
    limit = len(_reference(real, prompt, "a"))
    encoder = _limited(real, max_tokens=limit, overlong=Overlong.DROP_TURNS)
    whole, shortened = encoder.encode(Group(prompt=prompt, responses=("a", "a b c")))
    assert _ids(whole) == _reference(real, prompt, "a")
    assert _ids(shortened) == _reference(real, (prompt[0], prompt[3]), "a b c")


# Errors of one response


@pytest.mark.parametrize("overlong", list(Overlong))
def test_a_response_that_fits_is_scored_however_long_its_prompt_looks(
    real: Any, overlong: Overlong
) -> None:
    """The prompt's length once included the opening of the next turn.

    It exceeds the whole conversation if a template opens turns with more text than it closes them
    with.
    """
    template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}"
        + "<|im_start|>" * 9
        + "{% endif %}"
    )
    encoder = _new(real.backend_tokenizer, template, max_tokens=6, overlong=overlong)
    fits, refused = encoder.encode(Group(prompt=_user("a b c"), responses=(" d", " d e f g h i j")))
    assert isinstance(fits, EncodedSequence)
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "responses[1]"
    (alone,) = encoder.encode(Group(prompt=_user("a b c"), responses=(" d e f g h i j",)))
    assert isinstance(alone, InvalidRequest)
    assert alone.field == "responses[0]"


def test_a_prompt_that_fills_the_limit_leaves_room_for_an_empty_response() -> None:
    encoder = _new(Tokenizer.from_str(TRAINED["first"]), CHATML, vocab_size=VOCAB, max_tokens=3)
    empty, refused = encoder.encode(Group(prompt=(1, 2, 3), responses=((), (4,))))
    assert _ids(empty) == [1, 2, 3]
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "responses[1]"


@pytest.mark.parametrize(
    "template",
    ["{{ messages[-1].content if messages[-1].content != 'none' }}", None],
    ids=["template", "pair"],
)
def test_a_conversation_without_tokens_is_refused_and_its_siblings_are_scored(
    template: str | None,
) -> None:
    """An empty sequence could not be packed, and the whole batch failed."""
    tokenizer = Tokenizer.from_str(TRAINED["never"])
    prompt = _user("the" if template else "")
    empty, scored = _new(tokenizer, template).encode(
        Group(prompt=prompt, responses=("none" if template else "", "the cat"))
    )
    assert isinstance(empty, InvalidRequest)
    assert empty.field == "responses[0]"
    assert "no tokens" in empty.problem
    assert _ids(scored)


def test_a_response_that_the_template_refuses_leaves_its_siblings_scored(real: Any) -> None:
    template = (
        "{% if messages[-1].content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
        "{{ messages[-1].content }}"
    )
    good, bad, last = _new(real.backend_tokenizer, template).encode(
        Group(prompt=_user("a"), responses=("b", "bad", "c d"))
    )
    assert _ids(good) == real("b", add_special_tokens=False)["input_ids"]
    assert _ids(last) == real("c d", add_special_tokens=False)["input_ids"]
    assert isinstance(bad, InvalidRequest)
    assert bad.field == "prompt.messages"


# Token ids

VOCAB = 10


@given(
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6).map(tuple),
    responses=st.lists(
        st.lists(st.integers(0, VOCAB - 1), max_size=6).map(tuple), min_size=1, max_size=4
    ).map(tuple),
    pad=st.none() | st.integers(0, VOCAB - 1),
)
def test_trailing_padding_is_cut_where_transformers_reads_the_reward(
    prompt: tuple[int, ...], responses: tuple[tuple[int, ...], ...], pad: int | None
) -> None:
    encoder = _new(
        Tokenizer.from_str(TRAINED["first"]), CHATML, trailing_pad_id=pad, vocab_size=VOCAB
    )
    for outcome, response in zip(
        encoder.encode(Group(prompt=prompt, responses=responses)), responses, strict=True
    ):
        whole = prompt + response
        # transformers: (arange(length) * (input_ids != pad)).argmax()
        last = (
            len(whole) - 1
            if pad is None
            else int((np.arange(len(whole)) * (np.array(whole) != pad)).argmax())
        )
        assert tuple(_ids(outcome)) == whole[: last + 1]
        assert isinstance(outcome, EncodedSequence)
        assert outcome.num_tokens == len(whole)


@pytest.mark.parametrize(
    ("prompt", "responses", "field"),
    [
        ((1, VOCAB), ((1,),), "prompt.token_ids[1]"),
        ((-1,), ((1,),), "prompt.token_ids[0]"),
        ((1,), ((1,), (1, 2, VOCAB + 5)), "responses[1].token_ids[2]"),
        ((1,), ((2**63,),), "responses[0].token_ids[0]"),
    ],
)
def test_token_id_outside_the_vocabulary_is_named(prompt: Any, responses: Any, field: str) -> None:
    encoder = _new(Tokenizer.from_str(TRAINED["first"]), CHATML, vocab_size=VOCAB)
    group = Group(prompt=prompt, responses=responses)
    if field.startswith("prompt"):
        with pytest.raises(InvalidRequest) as raised:
            encoder.check(group)
        error = raised.value
    else:
        encoder.check(group)
        *siblings, last = encoder.encode(group)
        assert all(isinstance(sibling, EncodedSequence) for sibling in siblings)
        assert isinstance(last, InvalidRequest)
        error = last
    assert error.field == field
    assert f"outside the vocabulary of {VOCAB}" in error.problem


def test_overlong_token_ids_leave_siblings_scored() -> None:
    encoder = _new(Tokenizer.from_str(TRAINED["first"]), CHATML, vocab_size=VOCAB, max_tokens=4)
    first, refused = encoder.encode(Group(prompt=(1, 2), responses=((3, 4), (3, 4, 5))))
    assert _ids(first) == [1, 2, 3, 4]
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "responses[1]"
    assert "5 tokens and the limit is 4" in refused.problem
    with pytest.raises(InvalidRequest, match="it has 5 tokens with an empty response"):
        encoder.encode(Group(prompt=(1, 2, 3, 4, 5), responses=((3,),)))


class Counted(tuple[int, ...]):
    """Token ids that record whether they were read one by one."""

    __slots__ = ()

    def __iter__(self) -> Any:
        raise AssertionError("looked at before its length was checked")


def test_the_number_of_ids_is_checked_before_the_ids() -> None:
    encoder = _new(Tokenizer.from_str(TRAINED["first"]), CHATML, vocab_size=VOCAB, max_tokens=4)
    with pytest.raises(InvalidRequest, match="limit of a conversation is 4"):
        encoder.check(Group(prompt=Counted((1,) * 5), responses=((1,),)))
    group = Group(prompt=(1, 2), responses=((3,), Counted((3, 4, 5))))
    encoder.check(group)
    assert isinstance(encoder.encode(group)[1], InvalidRequest)


@pytest.mark.parametrize(
    ("group", "field"),
    [
        (Group(prompt=(1,), responses=()), "responses"),
        (Group(prompt=(), responses=("a",)), "prompt"),
    ],
)
def test_empty_group_is_refused(group: Group, field: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        _new(Tokenizer.from_str(TRAINED["first"]), CHATML).encode(group)
    assert raised.value.field == field


# Templates


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ strftime_now('%Y') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].missing.deeper }}",
        "{{ messages.append(1) }}",
        "{{ 12 // (messages[-1].content | length - 1) }}",
        "{{ {}['a'].b }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ],
)
def test_template_that_refuses_is_the_requests_fault(template: str) -> None:
    with pytest.raises(InvalidRequest, match="chat template refuses") as raised:
        _new(Tokenizer.from_str(TRAINED["first"]), template).encode(
            Group(prompt=_user("a"), responses=("b",))
        )
    assert raised.value.field == "prompt.messages"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %};{% endfor %}",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ m.content }}{% break %}{% endfor %}",
        "{{ messages | tojson }}",
        "{{ messages | tojson(indent=2) }}{{ messages[0].content | tojson(ensure_ascii=true) }}",
        "{% for m in messages %}\n    {% if true %}\n  {{ m.content }}\n    {% endif %}\n"
        "{% endfor %}\n",
        "{{ bos_token }}{% if not tools and not add_generation_prompt %}"
        "{{ messages[-1].content | trim }}{% endif %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
        "{{ ns.n }}",
    ],
)
def test_templates_render_as_in_transformers(real: Any, template: str) -> None:
    messages = [
        {"role": "system", "content": "<é & 'x'>"},
        {"role": "user", "content": "a\n"},
        {"role": "assistant", "content": " b"},
    ]
    expected = real.apply_chat_template(
        messages, chat_template=template, tokenize=False, bos_token="<s>"
    )
    special = {
        name: value for name, value in real.special_tokens_map.items() if isinstance(value, str)
    }
    rendered = ChatTemplate(template).render(
        messages=messages,
        add_generation_prompt=False,
        tools=None,
        documents=None,
        **{**special, "bos_token": "<s>"},
    )
    assert rendered == expected


@pytest.mark.parametrize(
    ("role", "standard"), [("human", "user"), ("User", "user"), ("gpt", "assistant")]
)
def test_another_name_of_a_role_is_refused_as_in_training(
    encoder: ConversationEncoder, role: str, standard: str
) -> None:
    """The template would write a turn of a role that no model is trained on."""
    prompt = (Message(role="system", content="one"), Message(role=role, content="two"))
    with pytest.raises(
        InvalidRequest, match=rf"prompt\.messages\[1\]\.role: is '{role}'; write '{standard}'"
    ):
        encoder.check(Group(prompt=prompt, responses=("three",)))


def test_a_prompt_that_ends_with_an_assistants_turn_is_refused_as_in_training(
    encoder: ConversationEncoder,
) -> None:
    """It was scored although no model is trained on such conversations."""
    prompt = (Message(role="user", content="one"), Message(role="assistant", content="two"))
    with pytest.raises(
        InvalidRequest,
        match=r"prompt\.messages\[1\]\.role: the prompt ends with an assistant's turn",
    ):
        encoder.encode(Group(prompt=prompt, responses=("three",)))
