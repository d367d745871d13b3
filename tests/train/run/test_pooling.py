"""Training with mean pooling: what is read, what is saved, and what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from kwise.errors import ConfigError
from kwise.train.model.batch.layout import TrieLayout, rewards_of
from kwise.train.model.response_header import response_header
from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import Pooling, TrainConfig
from kwise.train.rankings.errors import RankingsError
from kwise.train.run.training import train
from kwise.train.step.losses import kwise_loss
from kwise.types import Message
from tests.edited_checkpoints import copy_checkpoint
from tests.tiny_models import PADDED, byte_tokenizer, tiny_model
from tests.training_runs import IGNORED_WARNINGS, interrupted_at, options

pytestmark = IGNORED_WARNINGS
HEADER = [1, 520, 9531]  # <|im_start|>assistant in SmolLM2's tokenizer
MEAN = {"pooling": Pooling.MEAN, "log_every": 1}
SEQUENCES = [
    [1, 4093, 198, 5, 6, *HEADER, 198, 7, 8, 9, 2],
    [1, 4093, 198, 5, 6, *HEADER, 198, 7, 8, 4],
    [1, 4093, 198, 5, 6, *HEADER, 198, 10],
    [1, 4093, 198, 5, *HEADER, 6, *HEADER],
]


@pytest.fixture(scope="module")
def run(data: Path, headless: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(report, output) of a run with mean pooling."""
    output = tmp_path_factory.mktemp("pooled") / "checkpoint"
    return train(TrainConfig(**options(data, headless, output, **MEAN))), output


def _mean_rewards(model: Any) -> torch.Tensor:
    """Return the rewards of SEQUENCES by the definition, with transformers' own attention."""
    rewards = []
    for ids, start in zip(SEQUENCES, (8, 8, 8, 11), strict=True):
        states = model.base_model(torch.tensor([ids])).last_hidden_state[0]
        rewards.append(model.score(states[min(start, len(ids) - 1) :]).mean())
    return torch.stack(rewards)


def test_rewards_and_gradients_are_those_of_the_definition(tiny_checkpoint: Path) -> None:
    loaded = load_reward_model(str(tiny_checkpoint), mean_pooling=True)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint).eval()
    model, ranks = loaded.model.eval(), torch.tensor([1, 2, 3, 4])
    assert loaded.layout == TrieLayout(response_header=tuple(HEADER))
    rewards, expected = rewards_of(model, loaded.layout.lay_out(SEQUENCES)), _mean_rewards(plain)
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-5)
    kwise_loss(rewards, ranks).backward()
    kwise_loss(expected, ranks).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_a_run_learns_and_says_how_its_rewards_are_read(run: Any) -> None:
    report, output = run
    assert report.after.accuracy > 0.8 and report.response_header == tuple(HEADER)
    assert json.loads((output / "config.json").read_text())["kwise_response_header"] == HEADER
    assert "mean of the head's outputs over the response's tokens" in (
        output / "README.md"
    ).read_text().replace("\n", " ")
    loaded = load_reward_model(str(output), num_heads=None, to_train=False)
    assert loaded.notes[-1].endswith("the response's tokens, those after '<|im_start|>assistant'")
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(output).eval()
    rewards = loaded.rewards_of_tokens(SEQUENCES)[:, 0]
    with torch.no_grad():
        torch.testing.assert_close(rewards, _mean_rewards(plain), rtol=0, atol=1e-5)
    together = loaded.rewards_of_tokens(SEQUENCES[1:2])[0, 0]
    torch.testing.assert_close(together, rewards[1], rtol=0, atol=1e-5)


def test_training_from_a_pooled_model_keeps_pooling_unless_told_otherwise(
    run: Any, data: Path, tmp_path: Path
) -> None:
    _, output = run
    short = {"epochs": 0.1, "validation_fraction": 0.0}
    for pooling, header in ((None, HEADER), (Pooling.MEAN, HEADER), (Pooling.LAST, None)):
        path = tmp_path / str(pooling)
        train(TrainConfig(**options(data, output, path, pooling=pooling, **short)))
        stated = json.loads((path / "config.json").read_text()).get("kwise_response_header")
        assert stated == header


def test_an_adapter_of_a_pooled_model_is_read_as_its_base_model(
    run: Any, data: Path, tmp_path: Path
) -> None:
    _, output = run
    settings = options(data, output, tmp_path / "out", lora_rank=2, epochs=0.3)
    train(TrainConfig(**settings))
    merged, adapter = (
        load_reward_model(str(path), to_train=False).rewards_of_tokens(SEQUENCES)
        for path in (tmp_path / "out", tmp_path / "out" / "adapter")
    )
    torch.testing.assert_close(merged, adapter, rtol=0, atol=1e-4)
    card = (tmp_path / "out" / "adapter" / "README.md").read_text()
    assert "mean of the head's outputs over the response's tokens" in card


def test_an_adapter_needs_a_template_with_the_header_of_its_base_model(
    run: Any, data: Path, tmp_path: Path
) -> None:
    """adapter_config.json does not say how the reward is read, so the base model must."""
    _, output = run
    template = tmp_path / "other.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + '<|im_end|>' + m['content'] + '<|endoftext|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant<|im_end|>' }}{% endif %}"
    )
    settings = options(data, output, tmp_path / "out", chat_template=template, epochs=0.1)
    with pytest.raises(ConfigError, match=r"does not write '<\|im_start\|>assistant', after which"):
        train(TrainConfig(**settings, lora_rank=2))
    with pytest.raises(ConfigError, match=r"does not write '<\|im_start\|>assistant', after which"):
        load_reward_model(str(output), chat_template=template, to_train=False)
    loaded = load_reward_model(str(output), chat_template=template)
    assert loaded.layout == TrieLayout(response_header=(2,))  # <|im_end|>


def test_a_resumed_run_is_pooled(run: Any, data: Path, headless: Path, tmp_path: Path) -> None:
    _, uninterrupted = run
    settings = options(data, headless, tmp_path / "resumed", **MEAN)
    interrupted_at("step 6/", TrainConfig(**settings))
    with pytest.raises(ConfigError, match="--pooling was mean when the run began and is not given"):
        train(TrainConfig(**{**settings, "pooling": None}, resume=True))
    train(TrainConfig(**settings, resume=True))
    ours, theirs = (
        load_reward_model(str(path), to_train=False).rewards_of_tokens(SEQUENCES)
        for path in (tmp_path / "resumed", uninterrupted)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


# ---- the header


def test_the_header_ends_before_what_depends_on_the_response(smollm2_tokenizer: Any) -> None:
    """SmolLM2 joins the line feed after "assistant" with one at the start of a response."""
    assert response_header(smollm2_tokenizer) == tuple(HEADER)


@pytest.mark.parametrize(("before", "after"), [("", ":"), ("[", "]"), ("<", ">"), ("**", "**")])
def test_the_header_precedes_responses_that_begin_with_punctuation(
    smollm2_tokenizer: Any, before: str, after: str
) -> None:
    """SmolLM2 joins a colon with a quotation mark after it, for instance."""
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = (
        (
            "{% for m in messages %}{{ '<|im_start|>BEFORE' + m['role'] + 'AFTER' + m['content'] + "
            "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}"
            "{{ '<|im_start|>BEFOREassistantAFTER' }}{% endif %}"
        )
        .replace("BEFORE", before)
        .replace("AFTER", after)
    )
    header = response_header(tokenizer)
    begin = [Message(role="user", content="Well?"), Message(role="assistant", content="Yes.")]
    for response in ('"q"', "**b**", "<b>", ") x", "://", "'s", "=>", "`c`", "-1", "[]", ""):
        conversation = [*begin, begin[0], Message(role="assistant", content=response)]
        ids = tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in conversation], return_dict=False
        )
        places = [i for i in range(len(ids)) if ids[i : i + len(header)] == list(header)]
        assert len(places) == 2


def test_the_header_may_follow_the_users_message(smollm2_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% elif m['role'] == 'user' %}{{ m['content'] + '<|im_start|>assistant:\n' }}"
        "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    )
    assert response_header(tokenizer)[0] == HEADER[0]


@pytest.mark.parametrize(
    "template",
    [
        # No special token before a response.
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}",
        # The last special token comes before the prompt (Llama 2).
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
        "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ m['content'] }}{% endif %}"
        "{% endfor %}",
        # The token that ends a prompt ends a response, too.
        "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}",
        # Later answers begin otherwise than the first.
        "{% for m in messages %}{{ m['content'] + '<|im_end|>' if loop.index0 > 1 else "
        "'<|im_start|>' + m['role'] + ': ' + m['content'] }}{% endfor %}",
        # The response comes first.
        "{% for m in messages | reverse %}{{ '<|im_start|>' + m['content'] }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
)
def test_a_template_that_does_not_show_where_a_response_begins_is_refused(template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match="--pooling mean: the chat template"):
        response_header(tokenizer)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        # Llama 3: the token before a response precedes every message.
        (
            "{% for m in messages %}{{ '<s>' + m['role'] + '</s>\n' + m['content'] | trim + "
            "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant</s>\n' }}"
            "{% endif %}",
            "</s>\n",
        ),
        # Zephyr: the token that ends the prompt, and the name of the role as text.
        (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
            "</s>assistant: ",
        ),
        # Qwen 3: the generation prompt ends before an empty block of thoughts.
        (
            "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
            "{% if m['role'] == 'assistant' %}{{ '<think>\n' }}{% endif %}"
            "{{ m['content'] + '<|im_end|>' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
            "<|im_start|>assistant\n",
        ),
    ],
)
def test_the_header_of_a_template(template: str, expected: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    assert tokenizer.decode(response_header(tokenizer)) == expected


def test_a_response_that_contains_the_header_is_refused(headless: Path, tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    spelled = "no<|im_end|>\n<|im_start|>assistant\nyes"
    items = [{"text": "yes", "rank": 1}, {"text": spelled, "rank": 2}]
    path.write_text(json.dumps({"prompt": "Well?", "responses": items}))
    short = {"epochs": 0.1, "validation_fraction": 0.0}
    with pytest.raises(
        RankingsError, match=r"responses\[1\]: it contains '<\|im_start\|>assistant'"
    ):
        train(TrainConfig(**options(path, headless, tmp_path / "out", **MEAN, **short)))
    train(TrainConfig(**options(path, headless, tmp_path / "last", **short)))


def test_a_turn_without_the_header_is_refused(headless: Path, tmp_path: Path) -> None:
    """An answer to a tool may begin otherwise; then the last header is that of the call."""
    path, template = tmp_path / "rankings.jsonl", tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] if not loop.previtem or "
        "loop.previtem['role'] != 'tool' }}{{ '\n' + m['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    )
    turns = (("user", "Sum?"), ("assistant", "add(1, 2)"), ("tool", "3"))
    prompt = [{"role": role, "content": text} for role, text in turns]
    items = [{"text": "three", "rank": 1}, {"text": "two", "rank": 2}]
    settings = {"chat_template": template, "epochs": 0.1, "validation_fraction": 0.0, **MEAN}
    path.write_text(json.dumps({"prompt": prompt, "responses": items}))
    with pytest.raises(RankingsError, match=r"does not write '<\|im_start\|>assistant'.*between"):
        train(TrainConfig(**options(path, headless, tmp_path / "out", **settings)))
    path.write_text(json.dumps({"prompt": prompt[:1], "responses": items}))
    train(TrainConfig(**options(path, headless, tmp_path / "out", **settings)))


def test_earlier_turns_of_the_assistant_are_not_read(run: Any) -> None:
    """Only the last response of a conversation is read."""
    _, output = run
    loaded = load_reward_model(str(output), to_train=False)
    turns = [
        Message(role=role, content=text)
        for role, text in (("user", "A?"), ("assistant", "yes"), ("user", "B?"))
    ]
    answer = Message(role="assistant", content="no no")
    (reward,) = loaded.rewards([(*turns, answer)])
    ids = loaded.tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in (*turns, answer)], return_dict=False
    )
    start = max(i for i in range(len(ids)) if ids[i - 3 : i] == HEADER)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(output).eval()
    with torch.no_grad():
        states = plain.base_model(torch.tensor([ids])).last_hidden_state[0, start:]
        assert reward == pytest.approx(plain.score(states).mean().item(), abs=1e-5)


# ---- what is refused


def test_pooling_needs_the_trie(data: Path, tmp_path: Path) -> None:
    family, small = PADDED["bert"]
    encoder = tiny_model(family, small, byte_tokenizer(), tmp_path / "bert")
    with pytest.raises(ConfigError, match="mean pooling needs the layout of a trie"):
        train(TrainConfig(**options(data, encoder, tmp_path / "out", **MEAN)))


def test_an_adapter_cannot_say_how_it_is_read(data: Path, headless: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--pooling and --lora-rank exclude each other"):
        TrainConfig(**options(data, headless, tmp_path / "out", lora_rank=2, **MEAN))


def test_a_header_that_is_not_token_ids_is_refused(
    data: Path, headless: Path, tmp_path: Path
) -> None:
    wrong = copy_checkpoint(headless, tmp_path / "wrong", kwise_response_header="assistant")
    with pytest.raises(ConfigError, match="it must be a list of token ids"):
        train(TrainConfig(**options(data, wrong, tmp_path / "out")))
