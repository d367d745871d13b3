"""A reward in training is the one that transformers gives the conversation alone."""

from typing import Any

import pytest
import torch
import transformers

from kwise.errors import ConfigError
from kwise.train.model.architecture.layout_choice import choose_layout
from kwise.train.model.architecture.probe import Probe
from kwise.train.model.architecture.small_copy import small_copies
from kwise.train.model.batch.layout import (
    Layout,
    PaddedLayout,
    SeparateLayout,
    TrieLayout,
    rewards_of,
)
from tests.tiny_models import GROUPED, SMALL

PAD, END = 5, 2
PROBE = Probe(head=(1,), tail=(END,), special=(0, 1, 2, 3, 4, PAD), vocab_size=99)
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [8.0] * 8}
ENCODER = {**SMALL, "max_position_embeddings": 512}


def random_model(family: str, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=99, num_labels=1, pad_token_id=PAD, eos_token_id=END, **options
    )
    model = getattr(transformers, f"{family}ForSequenceClassification")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.3)
    return model.eval()


def assert_as_alone(model: Any, layout: Layout, lengths: tuple[int, ...]) -> None:
    """Compare a batch of unlike lengths, with special tokens inside, with each sequence alone."""
    sequences = [PROBE.sequence(n, seed=n, num_special=i) for i, n in enumerate(lengths)]
    with torch.no_grad():
        alone = [float(model(torch.tensor([sequence])).logits[0, 0]) for sequence in sequences]
        layout.prepare(model)
        together = rewards_of(model, layout.lay_out(sequences)).tolist()
    assert together == pytest.approx(alone, abs=1e-4 * max(map(abs, alone)))


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence:UserWarning")  # Funnel
@pytest.mark.parametrize(
    ("family", "options"),
    [
        # reads the reward at the last position, which is padding
        ("XLNet", {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96}),
        # convolves over padding
        ("ConvBert", {**ENCODER, "embedding_size": 64}),
        # attends to means over padding
        ("Nystromformer", ENCODER),
        # pools padding
        (
            "Funnel",
            {"d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 96, "block_sizes": [2, 2]},
        ),
        # refuses a batch in which a text spells out its last token
        (
            "Bart",
            {
                "d_model": 64,
                **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
                **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
                **{f"{part}_ffn_dim": 96 for part in ("encoder", "decoder")},
                "max_position_embeddings": 512,
            },
        ),
    ],
)
def test_a_model_whose_padded_batches_depend_on_their_composition_runs_one_by_one(
    family: str, options: dict[str, Any]
) -> None:
    model = random_model(family, options)
    layout = choose_layout(model, PAD, PROBE, 200)
    assert isinstance(layout, SeparateLayout) and layout.short is None
    assert "padded batch" in str(layout)
    assert_as_alone(model, layout, (9, 150, 31))


def test_conversations_beyond_the_threshold_of_rotary_embeddings_leave_the_trie() -> None:
    options = {
        **GROUPED,
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": 64,
        "rope_scaling": LONGROPE,
        "sliding_window": None,
    }
    del options["head_dim"]
    model = random_model("Phi3", options)
    layout = choose_layout(model, PAD, PROBE)
    assert isinstance(layout, SeparateLayout)
    assert (layout.short, layout.max_shared) == (TrieLayout(), 64)
    assert str(layout).startswith("trie up to 64 tokens, then separate, because in a trie batch")
    assert_as_alone(model, layout, (20, 200, 64, 65))
    assert choose_layout(model, PAD, PROBE, 64) == TrieLayout(), "no conversation is longer"


def test_rewards_that_depend_on_earlier_conversations_limit_the_length() -> None:
    """Dynamic rotary embeddings keep the frequencies of the longest conversation so far."""
    rope = {"rope_type": "dynamic", "factor": 8.0}
    options = {**GROUPED, "max_position_embeddings": 64, "rope_scaling": rope}
    layout = choose_layout(random_model("Llama", options), PAD, PROBE, 200)
    assert layout == TrieLayout(max_tokens=64)
    assert str(layout) == (
        "trie, up to 64 tokens, because beyond that its rewards depend on the conversations before "
        "them"
    )


@pytest.mark.parametrize("block_size", [16, 64])
def test_a_model_whose_rewards_are_random_in_training_is_refused(block_size: int) -> None:
    """BigBird draws blocks at random; below 11 blocks it makes layers anew, with their dropout."""
    model = random_model("BigBird", {**ENCODER, "block_size": block_size})
    with pytest.raises(ConfigError, match="BigBirdForSequenceClassification cannot be trained: tr"):
        choose_layout(model, PAD, PROBE)


def test_a_model_that_cannot_score_a_conversation_is_refused() -> None:
    """T5 reads the reward at its last token, which this chat template does not write."""
    options = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_heads": 4}
    model = random_model("T5", {**options, "decoder_start_token_id": PAD})
    with pytest.raises(ConfigError, match="T5ForSequenceClassification cannot score a convers"):
        choose_layout(model, PAD, Probe(vocab_size=99, special=(END,)))


def test_a_small_copy_has_the_layers_and_thresholds_that_decide() -> None:
    config = transformers.Gemma3TextConfig(
        vocab_size=99, num_labels=1, num_hidden_layers=8, hidden_size=128, sliding_window=48
    )
    model = transformers.Gemma3TextForSequenceClassification(config)
    new_copy = small_copies(model)
    assert new_copy is not None
    copied, again = new_copy(), new_copy()
    assert not copied.training
    assert copied.config.layer_types == ["sliding_attention", "full_attention"]
    assert copied.config.sliding_window == 48
    assert sum(p.numel() for p in copied.parameters()) < 100_000
    assert again.config is not copied.config
    assert torch.equal(next(copied.parameters()), next(again.parameters()))


def test_padding_is_read_where_a_model_of_texts_and_images_keeps_it(tmp_path: Any) -> None:
    """Gemma 3 reads the reward at the last token that is not the padding of its `text_config`."""
    from kwise.export.architectures import small_checkpoint
    from kwise.train.model.reward_model import load_reward_model
    from kwise.types import Message

    config = transformers.Gemma3Config()
    config.text_config.pad_token_id = 0
    small_checkpoint(transformers.Gemma3ForSequenceClassification, config, tmp_path / "gemma3")
    loaded = load_reward_model(str(tmp_path / "gemma3"), max_tokens=200)
    assert loaded.layout == PaddedLayout(PAD)
    assert loaded.model.config.get_text_config().pad_token_id == PAD
    talks = [
        (Message(role="user", content="Say sky."), Message(role="assistant", content=text))
        for text in ("sky", "no " * 30, "sky <|pad|> blue")
    ]
    alone = [loaded.rewards([talk])[0] for talk in talks]
    assert loaded.rewards(talks) == pytest.approx(alone, abs=1e-4)


def test_small_copies_are_measured_once_for_models_with_the_same_settings() -> None:
    layouts = [
        choose_layout(random_model("Llama", GROUPED | {"rope_theta": theta}), PAD, PROBE, limit)
        for theta, limit in ((777.0, 200), (777.0, 200), (778.0, 200), (777.0, 199))
    ]
    first, again, other_settings, other_limit = layouts
    assert again is first
    assert other_settings is not first
    assert other_limit is not first
