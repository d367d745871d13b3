"""A text with the chat template applied gets the tokens of its messages, however it was decoded."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from kwise.engine.cache.reward_cache import reward_keys
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.text.limits import ControlTokens, EncoderLimits, Overlong
from kwise.errors import InvalidRequest
from kwise.types import Group, Message, TemplatedText
from tests.tiny_models import byte_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "llama 3": (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n{{ m['content'] }}"
        "<|im_end|>{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    ),
    "plain": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}",
}
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    tokenizer: Tokenizer = byte_tokenizer().backend_tokenizer
    return tokenizer


def _new(tokenizer: Tokenizer, template: str | None, **limits: Any) -> ConversationEncoder:
    return ConversationEncoder(
        tokenizer,
        template=template,
        special_tokens={"bos_token": "<s>"},
        limits=EncoderLimits(**{"max_tokens": 4096, "vocab_size": 100_000, **limits}),
        trailing_pad_id=None,
    )


@pytest.fixture(scope="module", params=TEMPLATES)
def encoder(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> ConversationEncoder:
    return _new(tokenizer, TEMPLATES[request.param])


def _ids(outcome: EncodedSequence | InvalidRequest) -> list[int]:
    assert isinstance(outcome, EncodedSequence), outcome
    return outcome.token_ids.tolist()


def _messages(encoder: ConversationEncoder, prompt: str, *responses: str) -> list[list[int]]:
    conversation = (Message(role="user", content=prompt),)
    return list(map(_ids, encoder.encode(Group(prompt=conversation, responses=responses))))


def _templated(encoder: ConversationEncoder, prompt: str, *responses: str) -> list[list[int]]:
    group = Group(prompt=TemplatedText(text=prompt), responses=responses)
    return list(map(_ids, encoder.encode(group)))


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


@settings(max_examples=60, deadline=None)
@given(prompt=TEXTS, responses=st.lists(TEXTS, min_size=1, max_size=3), data=st.data())
def test_it_is_scored_like_its_messages_wherever_it_is_cut_in_two(
    encoder: ConversationEncoder,
    tokenizer: Tokenizer,
    prompt: str,
    responses: list[str],
    data: st.DataObject,
) -> None:
    expected = _messages(encoder, prompt, *responses)
    texts = [_text(tokenizer, ids) for ids in expected]
    assert _templated(encoder, "", *texts) == expected
    for text, ids in zip(texts, expected, strict=True):
        cut = data.draw(st.integers(0, len(text)))
        assert _templated(encoder, text[:cut], text[cut:]) == [ids]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_first_token_that_is_missing_or_doubled_is_put_right(
    tokenizer: Tokenizer, name: str
) -> None:
    encoder = _new(tokenizer, TEMPLATES[name])
    (expected,) = _messages(encoder, "Why?", "Because.")
    text = _text(tokenizer, expected).removeprefix("<s>")
    # Decoded padding at the left, too.
    for start in ("", "<s>", "<s><s>", "<|pad|><|pad|>", "<|endoftext|><s>"):
        assert _templated(encoder, "", start + text) == [expected]
        assert _templated(encoder, start, text) == [expected]


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("chatml", ["", "<|im_end|>", "<|im_end|>\n", "<|im_end|>\n\n", "<|im_end|><|im_end|>"]),
        # The end token of the policy's base model, and padding in place of the end or after it.
        ("chatml", ["<|endoftext|>", "<|im_end|>\n<|endoftext|>", "<|pad|>" * 3]),
        ("chatml", ["<|im_end|>" + "<|pad|>" * 3, "<|im_end|><|endoftext|><|pad|>"]),
        ("llama 3", ["", "<|im_end|>", "<|im_end|>\n", "<|im_end|><|im_end|>"]),
        ("mistral", ["", "</s>", "</s></s></s>"]),
        ("plain", ["", "\n\n"]),
    ],
)
def test_the_end_of_the_turn_is_completed_and_written_once(
    tokenizer: Tokenizer, name: str, ends: list[str]
) -> None:
    encoder = _new(tokenizer, TEMPLATES[name])
    (expected,) = _messages(encoder, "Why?", "Because.")
    text = _text(tokenizer, expected)
    text = text[: text.rindex("Because.") + len("Because.")]
    assert _templated(encoder, "", *(text + end for end in ends)) == [expected] * len(ends)


def test_a_single_text_tells_which_tokens_other_responses_to_its_prompt_share(
    tokenizer: Tokenizer,
) -> None:
    encoder = _new(tokenizer, CHATML)

    def shared(prompt: str, response: str) -> str:
        group = Group(prompt=TemplatedText(text=prompt), responses=(response,))
        (sequence,) = encoder.encode(group)
        assert isinstance(sequence, EncodedSequence)
        return _text(tokenizer, sequence.token_ids[: sequence.prompt_tokens].tolist())

    turn = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
    assert shared("", turn + "<|im_start|>assistant\nAir.") == turn
    # The template does not write this header, but the caller says where the response begins.
    assert shared(turn + "<|im_start|>tutor\n", "Air.") == turn


# What Qwen3's template does: an empty think block before the last answer, none before a rollout.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_the_prompt_of_a_thinking_policy_is_told_from_its_thoughts(tokenizer: Tokenizer) -> None:
    encoder = _new(tokenizer, THINKING)
    turn = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
    for thoughts in ("<think>\nHm.\n</think>\n\n", "<think>\n\n</think>\n\n", ""):
        text = f"{turn}<|im_start|>assistant\n{thoughts}Air.<|im_end|>\n"
        (sequence,) = encoder.encode(Group(prompt=TemplatedText(text=""), responses=(text,)))
        assert isinstance(sequence, EncodedSequence)
        # The tokens are those of the text itself, whatever is known of its prompt.
        assert _text(tokenizer, sequence.token_ids.tolist()) == text
        shared = sequence.token_ids[: sequence.prompt_tokens].tolist()
        assert _text(tokenizer, shared) == turn


def test_the_prompt_is_told_although_its_first_token_is_put_right(tokenizer: Tokenizer) -> None:
    encoder = _new(tokenizer, "{{ bos_token }}" + CHATML)
    turn = "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
    # The template does not write this header, so only the caller's prompt tells where it ends.
    for start in ("", "<s>", "<s><s>"):
        prompt = TemplatedText(text=f"{start}{turn}<|im_start|>tutor\n")
        (sequence,) = encoder.encode(Group(prompt=prompt, responses=("Air.",)))
        assert isinstance(sequence, EncodedSequence)
        shared = sequence.token_ids[: sequence.prompt_tokens].tolist()
        assert _text(tokenizer, shared) == "<s>" + turn


def test_a_special_token_at_the_end_of_an_answer_is_a_part_of_it(tokenizer: Tokenizer) -> None:
    encoder = _new(tokenizer, CHATML)
    for answer in ("Because.<|im_start|>", "Because.<|im_start|> "):
        (expected,) = _messages(encoder, "Why?", answer)
        text = _text(tokenizer, expected)
        for end in ("<|im_end|>\n", "<|im_end|>", "<|im_end|><|endoftext|>"):
            assert _templated(encoder, "", text.removesuffix("<|im_end|>\n") + end) == [expected]


def test_whitespace_before_padding_is_a_part_of_the_answer(tokenizer: Tokenizer) -> None:
    """A rollout that reached its limit has no end-of-turn token before its padding."""
    encoder = _new(tokenizer, CHATML)
    for answer in ("", "Because. \n", " "):
        (expected,) = _messages(encoder, "Why?", answer)
        text = _text(tokenizer, expected).removesuffix("<|im_end|>\n")
        for end in ("<|endoftext|>", "<|pad|>" * 2, "<|endoftext|>\n<|pad|>"):
            assert _templated(encoder, "", text + end) == [expected]


NEEDS_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
)


def test_a_template_that_needs_a_system_message_or_repeats_the_prompt_is_completed(
    tokenizer: Tokenizer,
) -> None:
    repeats = "{{ messages[0]['content'] }}\n" + CHATML
    for template, system in ((NEEDS_SYSTEM, "Be brief."), (repeats, "")):
        encoder = _new(tokenizer, template)
        turns = (Message(role="user", content="Why?"),)
        prompt = (Message(role="system", content=system), *turns) if system else turns
        expected = _ids(encoder.encode(Group(prompt=prompt, responses=("Because.",)))[0])
        text = _text(tokenizer, expected).removesuffix("<|im_end|>\n")
        assert _templated(encoder, "", text) == [expected]


def test_a_template_that_does_not_show_the_response_is_refused(tokenizer: Tokenizer) -> None:
    encoder = _new(tokenizer, "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}")
    with pytest.raises(InvalidRequest, match="does not show where a response begins and ends"):
        encoder.check(Group(prompt=TemplatedText(text="A"), responses=("B",)))


def test_a_key_does_not_depend_on_where_the_text_is_cut_and_differs_from_other_kinds() -> None:
    def key(prompt: Any, response: str) -> bytes:
        return reward_keys(b"", Group(prompt=prompt, responses=(response,)))[0]

    whole = key(TemplatedText(text=""), "abc")
    assert key(TemplatedText(text="ab"), "c") == key(TemplatedText(text="abc"), "") == whole
    others = {
        key((Message(role="user", content="ab"),), "c"),
        key((Message(role="user", content=""),), "abc"),
        key(TemplatedText(text="ab"), "d"),
    }
    assert whole not in others
    assert len(others) == 3


def test_a_text_that_is_too_long_says_that_its_turns_are_not_dropped(
    tokenizer: Tokenizer,
) -> None:
    encoder = _new(tokenizer, CHATML, max_tokens=4, overlong=Overlong.DROP_TURNS)
    (error,) = encoder.encode(Group(prompt=TemplatedText(text=""), responses=("a b c d e",)))
    assert str(error).endswith("limit is 4; --overlong drop-turns drops turns of messages only")


@pytest.mark.parametrize(
    ("template", "limits", "prompt", "response", "message"),
    [
        (None, {}, "a", "b", "prompt.templated_text: this model has no chat template; give"),
        (
            CHATML,
            {"control_tokens": ControlTokens.REJECT},
            "a",
            "b",
            "prompt.templated_text: this server refuses texts that spell out control tokens",
        ),
        (
            CHATML,
            {"max_tokens": 16},
            "x" * 1_000_001,
            "",
            "prompt.templated_text: the conversation has 1000001 characters and the limit is",
        ),
    ],
)
def test_a_prompt_that_cannot_be_scored_is_refused(
    tokenizer: Tokenizer,
    template: str | None,
    limits: dict[str, Any],
    prompt: str,
    response: str,
    message: str,
) -> None:
    encoder = _new(tokenizer, template, **limits)
    with pytest.raises(InvalidRequest) as caught:
        encoder.check(Group(prompt=TemplatedText(text=prompt), responses=(response,)))
    assert str(caught.value).startswith(message)


def test_an_empty_or_overlong_text_is_refused_alone(tokenizer: Tokenizer) -> None:
    encoder = _new(tokenizer, CHATML, max_tokens=64)
    responses = ("", "x" * 200, "fine", "x" * 1_000_001)
    group = Group(prompt=TemplatedText(text=""), responses=responses)
    empty, overlong, fine, characters = encoder.encode(group)
    assert str(empty) == "responses[0].text: it is empty"
    assert str(overlong).startswith("responses[1]: the conversation has 20")
    assert isinstance(fine, EncodedSequence)
    assert str(characters).startswith("responses[3].text: the conversation has 1000001 characters")
