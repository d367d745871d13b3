"""Keeping a reward model's hidden states those of a language model: a text loss on the best response, over the same pass.

Yang et al. 2024, "Regularizing Hidden States Enables Learning Generalizable Reward Model for LLMs" (GRM), the SFT variant, by which
rewards of unseen kinds of prompts get more accurate: (1 − α) L_reward + α · −log σ(β log π(y_best | x)), with β = 0.1 as in the
authors' `GRMRewardTrainer`. The trie has the hidden states of all tokens, so this costs the LM head on the best response's, and no
further pass. π's head is the embedding where the model ties the two, and else the source checkpoint's, frozen; it is not saved.

Dimensions: B rankings of a batch; M tokens of their best responses, one ranking after another; V of the vocabulary.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from kwise.engine.trie import Trie
from kwise.errors import ConfigError
from kwise.train.model.layout import TrainLayout
from kwise.train.model.pretrained import reading, source_of
from kwise.train.model.reward_model import RewardModel
from kwise.types import Conversation, TokenIds

_BETA = 0.1
TextHead = Callable[[Tensor], Tensor]
"""Hidden states [M, hidden size] → logits [M, V]."""


@torch.no_grad()
def text_head(name: str, reward_model: RewardModel) -> TextHead:
    """The LM head of the model that `reward_model` was made from.

    Raises:
        ConfigError: passes do not go over the trie; or the source has no LM head; or its logits are not its head's products
            with the hidden states (soft caps, scales), which is measured.
    """
    if reward_model.layout is not TrainLayout.TRIE:
        raise ConfigError(
            f"--text-regulariser: {type(reward_model.model).__name__} is no causal model that is computed over the trie"
        )
    with reading("--text-regulariser: --model", name):
        source, loading = AutoModelForCausalLM.from_pretrained(
            **source_of(name), dtype=torch.float32, output_loading_info=True
        )
    if loading["missing_keys"]:
        raise ConfigError(
            f"--text-regulariser: {name} has no LM head: it lacks {sorted(loading['missing_keys'])[0]}"
        )
    model = reward_model.model
    weight: Tensor = source.to(model.device).eval().get_output_embeddings().weight.detach()
    tied = source.get_output_embeddings().weight is source.get_input_embeddings().weight
    input_ids = torch.arange(3, 11, device=model.device)[None]
    expected = source(input_ids).logits
    states = model.eval().base_model(input_ids).last_hidden_state
    if not torch.allclose(
        states @ weight.T, expected, rtol=0, atol=1e-4 * float(expected.abs().max())
    ):
        raise ConfigError(
            f"--text-regulariser: the logits of {type(source).__name__} are more than its head's products"
        )
    return _tied_head(model) if tied else _FrozenHead(weight)


def _tied_head(model: PreTrainedModel) -> TextHead:
    """Reads the embeddings as they are trained, and keeps nothing: a module with them in it would be saved a second time."""
    embeddings = model.get_input_embeddings()
    return lambda states: F.linear(states.float(), embeddings.weight)


class _FrozenHead(nn.Module):
    """Goes to the device with the model that has it, and is neither trained nor saved."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states.float(), self.weight)


def prompt_length(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, input_ids: TokenIds
) -> int:
    """How many of a conversation's tokens stand before the response: those of the prompt as the template opens an answer to it."""
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    opened = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    differ = [
        index
        for index, (ours, theirs) in enumerate(zip(opened, input_ids, strict=False))
        if ours != theirs
    ]
    return differ[0] if differ else min(len(opened), len(input_ids))


def text_tensors(
    trie: Trie, best: Sequence[int], prompt_lengths: Sequence[int]
) -> dict[str, Tensor]:
    """What the model's forward reads beside the trie, of which sequence best[b] is the best response of ranking b:
    text_nodes: int64[M], whose hidden state predicts text_targets: int64[M]; text_sizes: int64[B] with the sum M."""
    nodes, targets = [], []
    for index, start in zip(best, prompt_lengths, strict=True):
        path = trie.path(int(trie.last_nodes[index]))
        nodes.append(path[start - 1 : -1])
        targets.append(trie.token_ids[path[start:]])
    return {
        "text_nodes": torch.from_numpy(np.concatenate(nodes)),
        "text_targets": torch.from_numpy(np.concatenate(targets)),
        "text_sizes": torch.tensor([len(part) for part in nodes]),
    }


def text_losses(log_probs_M: Tensor, sizes: list[int]) -> Tensor:
    """[B]: −log σ(β Σ log π(token))."""
    return torch.stack([-F.logsigmoid(_BETA * part.sum()) for part in log_probs_M.split(sizes)])


def install_text_head(model: PreTrainedModel, head: TextHead) -> None:
    """For `layout.read_tries`, whose forward then returns log-probabilities as well."""
    model.kwise_text_head = head
