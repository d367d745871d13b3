"""The text regulariser: a language-model loss on the best response, added to the reward's loss.

Yang et al. 2024, "Regularizing Hidden States Enables Learning Generalizable Reward Model for LLMs"
(GRM), the SFT variant: (1 − α) L_reward + α · −log σ(β log π(y_best | x)), with β = 0.1 as in the
authors' `GRMRewardTrainer`. It makes rewards of new kinds of prompts more accurate. The hidden
states of all tokens are rows of the trie, so it costs the LM head on the best response and no
further pass. The LM head is the embedding if the model ties the two, else that of the source
checkpoint, frozen and not saved.

Dimensions: B rankings of a batch; M tokens of their best responses, one ranking after another; V
tokens of the vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from os.path import commonprefix

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from kwise.errors import ConfigError
from kwise.train.checkpoint.transformers_versions import read_config
from kwise.train.model.pretrained import reading, source_of
from kwise.train.model.reward_model import RewardModel
from kwise.train.model.tokenizer import text_token_ids
from kwise.train.template.render import render
from kwise.types import Conversation, TokenIds

_BETA = 0.1
TextHead = Callable[[Tensor], Tensor]
"""Hidden states [M, hidden size] → logits [M, V]."""


@torch.no_grad()
def text_head(name: str, reward_model: RewardModel) -> TextHead:
    """Return the LM head of the model that `reward_model` was made from.

    Args:
        name: the source checkpoint, as --model names it.
        reward_model: the model that was loaded from it.

    Raises:
        ConfigError: the model's layout has no states of inner tokens; the source has no LM head; or
            its logits are not its head's weights times the hidden states (soft caps, scales), which
            is measured.
    """
    if not reward_model.layout.has_token_states:
        raise ConfigError(
            f"--text-regulariser needs the trie layout; {type(reward_model.model).__name__} is "
            f"trained {reward_model.layout}"
        )
    with reading("--text-regulariser: --model", name):
        source, loading = AutoModelForCausalLM.from_pretrained(
            **source_of(name),
            config=read_config(**source_of(name)),
            dtype=torch.float32,
            output_loading_info=True,
        )
    if loading["missing_keys"]:
        raise ConfigError(
            f"--text-regulariser: {name} has no LM head: it lacks "
            f"{sorted(loading['missing_keys'])[0]}"
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
            f"--text-regulariser: the logits of {type(source).__name__} are not its head's "
            "weights times the hidden states"
        )
    return _tied_head(model) if tied else _FrozenHead(weight)


def _tied_head(model: PreTrainedModel) -> TextHead:
    """Return a function of the embeddings as they are being trained.

    A module with them would save them twice.
    """
    embeddings = model.get_input_embeddings()
    return lambda states: F.linear(states.float(), embeddings.weight)


class _FrozenHead(nn.Module):
    """A head that moves to the device with its model, and is neither trained nor saved."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states.float(), self.weight)


def prompt_length(
    tokenizer: PreTrainedTokenizerBase, prompt: Conversation, input_ids: TokenIds
) -> int:
    """Return the number of tokens of a conversation that precede its response.

    They are the tokens that it shares with the prompt as the template opens an answer to it. A
    tokenizer may join the prompt's last characters with those of the response.

    Raises:
        TemplateRefusal: the template cannot render the prompt alone.
    """
    opened = text_token_ids(tokenizer, render(tokenizer, prompt, opens_answer=True))
    return len(commonprefix([opened, [*input_ids]]))


def text_tensors(
    trie: Mapping[str, Tensor], best: Sequence[int], prompt_lengths: Sequence[int]
) -> dict[str, Tensor]:
    """Return the tensors that `forward` reads beside the trie.

    text_nodes, int64[M]: the rows whose hidden states predict the tokens text_targets, int64[M].
    text_sizes, int64[B]: the number of these tokens in each ranking.

    Args:
        trie: the tensors of `TrieLayout.lay_out`.
        best: for each ranking, which sequence of the batch is its best response.
        prompt_lengths: for each ranking, the number of tokens before that response.
    """
    input_ids, ends, last_nodes = trie["input_ids"][0], trie["ends"], trie["last_nodes"]
    nodes, targets = [], []
    for index, start in zip(best, prompt_lengths, strict=True):
        last = int(last_nodes[index])
        path = (ends[: last + 1] > last).nonzero()[:, 0]  # from the root to the last token
        nodes.append(path[start - 1 : -1])
        targets.append(input_ids[path[start:]])
    return {
        "text_nodes": torch.cat(nodes),
        "text_targets": torch.cat(targets),
        "text_sizes": torch.tensor([len(part) for part in nodes]),
    }


def text_losses(log_probs_M: Tensor, sizes: list[int]) -> Tensor:
    """Return −log σ(β Σ log π(token)) of each ranking, float[B]."""
    sums = [part.sum() for part in log_probs_M.split(sizes)]
    return torch.stack([-F.logsigmoid(_BETA * total) for total in sums])


def install_text_head(model: PreTrainedModel, head: TextHead) -> None:
    """Give `model` the head with which its prepared `forward` computes log-probabilities."""
    model.kwise_text_head = head
