"""The text loss over the trie equals that of the language model, in value and gradient."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from kwise.errors import ConfigError
from kwise.train.data.read import read_rankings
from kwise.train.model.batch.layout import TrieLayout, rewards_and_text_of
from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import TrainConfig
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.schema import Ranking
from kwise.train.run.training import train
from kwise.train.step.batch import collate, tokenize_rankings
from kwise.train.step.losses import kwise_loss
from kwise.train.step.text_regulariser import install_text_head, text_head, text_losses
from kwise.types import Message
from tests.tiny_models import GROUPED, SMALL, tiny_model
from tests.training_runs import IGNORED_WARNINGS, options

pytestmark = IGNORED_WARNINGS
RANKINGS = [
    Ranking(
        prompt=(Message(role="user", content="Why?"),),
        responses=("No.", "Because it is.", "Because."),
        ranks=(3, 1, 2),
    ),
    Ranking(
        prompt=(Message(role="user", content="Who are you?"),),
        responses=("I am Ann.", "I"),
        ranks=(1, 2),
    ),
]
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {**GROUPED, "tie_word_embeddings": False},
    "GPT2": {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
    },  # which ties its head to its embeddings
}


def language_model(family: str, tokenizer: Any, path: Path) -> Path:
    torch.manual_seed(1)
    ids = {"pad_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer), **ids, **FAMILIES[family]
    )
    name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    getattr(transformers, name)(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_value_and_gradient_are_those_of_the_language_model_on_whole_conversations(
    family: str, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    path = language_model(family, smollm2_tokenizer, tmp_path)
    ours = load_reward_model(str(path))
    install_text_head(ours.model, text_head(str(path), ours))
    tokenized = tokenize_rankings(
        RANKINGS, ours.tokenizer, max_tokens=None, skip_overlong=False, with_text=True
    )
    batch = collate(tokenized, TrieLayout())
    ours.model.zero_grad()
    rewards_SH, log_probs_M = rewards_and_text_of(ours.model, batch)
    assert log_probs_M is not None
    texts_B = text_losses(log_probs_M, batch["text_sizes"].tolist())
    losses = [
        kwise_loss(rewards_SH[:3, 0], torch.tensor([3, 1, 2])),
        kwise_loss(rewards_SH[3:, 0], torch.tensor([1, 2])),
    ]
    (0.3 * texts_B + 0.7 * torch.stack(losses)).sum().backward()

    lm = AutoModelForCausalLM.from_pretrained(path)
    reward = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    reward.load_state_dict(
        {name: value.detach() for name, value in ours.model.state_dict().items()}
    )
    setattr(lm, lm.base_model_prefix, reward.base_model)  # one backbone below both heads
    if family == "GPT2":
        lm.lm_head.weight = reward.base_model.wte.weight
    total = torch.zeros(())
    for index, (ranking, best) in enumerate(zip(RANKINGS, (1, 0), strict=True)):
        messages = [{"role": m.role, "content": m.content} for m in ranking.prompt]
        start = len(
            ours.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        )
        ids = torch.tensor([tokenized[index].input_ids[best]])
        log_probs = lm(ids).logits[0].log_softmax(-1)
        log_prob = sum(log_probs[place - 1, ids[0, place]] for place in range(start, ids.shape[1]))
        text = -F.logsigmoid(0.1 * log_prob)
        torch.testing.assert_close(texts_B[index].detach(), text.detach(), rtol=1e-4, atol=1e-5)
        states = [
            reward.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
            for ids in tokenized[index].input_ids
        ]
        rewards = torch.stack([reward.score(state)[0] for state in states])
        total = total + 0.3 * text + 0.7 * kwise_loss(rewards, torch.tensor(ranking.ranks))
    total.backward()
    expected = dict(reward.named_parameters())
    for name, parameter in ours.model.named_parameters():
        scale = float(expected[name].grad.abs().max())
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4 * scale, msg=name
        )


def test_a_run_with_the_regulariser_keeps_the_text_of_the_best_responses_likelier(
    data: Path, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    source = language_model("GPT2", smollm2_tokenizer, tmp_path / "lm")
    likelihoods = {}
    for weight in (0.0, 0.5):
        output = tmp_path / str(weight)
        report = train(
            TrainConfig(
                **options(data, source, output, epochs=1.0, heads=2, text_regulariser=weight)
            )
        )
        assert report.after is not None and report.after.accuracy > 0.9
        trained = load_reward_model(str(output), num_heads=2)
        embeddings = trained.model.get_input_embeddings().weight
        install_text_head(trained.model, partial(F.linear, weight=embeddings))
        rankings = tokenize_rankings(
            read_rankings(data)[:3],
            trained.tokenizer,
            max_tokens=None,
            skip_overlong=False,
            with_text=True,
        )
        with torch.inference_mode():
            log_probs = rewards_and_text_of(trained.model.eval(), collate(rankings, TrieLayout()))[
                1
            ]
        assert log_probs is not None
        likelihoods[weight] = float(log_probs.mean())
    assert likelihoods[0.5] > likelihoods[0.0] + 1


def test_an_untied_head_goes_with_the_model_and_is_not_saved_and_a_tied_one_is_kept_once(
    smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    """It stayed on the CPU when the model moved, and tied models kept a copy that nothing read."""
    for family in FAMILIES:
        path = language_model(family, smollm2_tokenizer, tmp_path / family)
        ours = load_reward_model(str(path))
        names = set(ours.model.state_dict())
        install_text_head(ours.model, text_head(str(path), ours))
        kept = {name for name, _ in ours.model.named_buffers() if "text_head" in name}
        assert kept == ({"kwise_text_head.weight"} if family == "Llama" else set())
        assert set(ours.model.state_dict()) == names
        ours.save(tmp_path / "saved" / family)
        assert not [
            name
            for name in load_file(tmp_path / "saved" / family / "model.safetensors")
            if "text_head" in name
        ]
        assert not [name for name, _ in ours.model.named_parameters() if "text_head" in name]
        ours.model.to("meta")
        hidden_size = ours.model.config.hidden_size
        assert ours.model.kwise_text_head(torch.zeros(2, hidden_size, device="meta")).shape == (
            2,
            len(smollm2_tokenizer),
        )


def test_the_prompts_end_is_looked_for_in_the_best_response(smollm2_tokenizer: Any) -> None:
    """It was looked for in the first one, but a tokenizer may join prompt and response."""
    smollm2_tokenizer = copy.deepcopy(smollm2_tokenizer)
    smollm2_tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    prompt = (Message(role="user", content="I am un"),)
    ranking = Ranking(prompt=prompt, responses=(" x", "der"), ranks=(2, 1))
    [tokenized] = tokenize_rankings(
        [ranking], smollm2_tokenizer, max_tokens=None, skip_overlong=False, with_text=True
    )
    opened = smollm2_tokenizer("I am un", add_special_tokens=False)["input_ids"]
    first, best = tokenized.input_ids
    assert list(first[: len(opened)]) == opened and list(best[: len(opened)]) != opened, (
        "the case at hand"
    )
    assert tokenized.prompt_length == len(opened) - 1
    smollm2_tokenizer.chat_template = "{% for m in messages|reverse %}{{ m.content }}{% endfor %}"
    with pytest.raises(
        RankingsError, match="--text-regulariser needs a token before the best response"
    ):
        tokenize_rankings(
            [ranking], smollm2_tokenizer, max_tokens=None, skip_overlong=False, with_text=True
        )


def test_models_without_a_language_models_head_are_refused(
    tiny_checkpoint: Path, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"has no LM head: it lacks lm_head\.weight"):
        text_head(str(tiny_checkpoint), load_reward_model(str(tiny_checkpoint)))
    path = tiny_model(
        "Bert", {**SMALL, "max_position_embeddings": 512}, smollm2_tokenizer, tmp_path
    )
    with pytest.raises(
        ConfigError,
        match="needs the trie layout; BertForSequenceClassification is trained padded, because",
    ):
        text_head(str(path), load_reward_model(str(path)))
