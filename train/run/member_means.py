"""The mean reward of each member of an ensemble, which is subtracted so that members compare.

Losses that depend on differences alone leave each member's zero open: two members may agree on
every pair and give one response 3 and 7. The means are taken after training over the same
responses for all members, so the members' standard deviation shows how far they disagree about a
response, and not where their zeros are.
"""

import numpy as np
import torch

from kwise.train.checkpoint.members import state_members
from kwise.train.model.reward_model import RewardModel
from kwise.train.options.objectives import ObjectiveConfig, objective_of
from kwise.train.run.processes import Processes
from kwise.train.step.training_data import TrainingData

# 64 rankings of 9 are 576 responses. All members see the same ones, so what they share cancels.
_MAX_RANKINGS = 64


def state_member_means(
    reward_model: RewardModel,
    data: TrainingData,
    objective: ObjectiveConfig,
    seed: int,
    processes: Processes,
) -> None:
    """Write the members' means over responses of the training data into the model's config.

    They are 0 if the objective fixes the zero of rewards. An ordinary reward model stays as it is.
    """
    heads = reward_model.num_heads
    if heads == 1:
        return
    means = [0.0] * heads
    if not objective_of(objective).fixes_zero:
        order = np.random.default_rng([seed, len(data.training)]).permutation(len(data.training))
        chosen = [data.training[index].ranking for index in order[:_MAX_RANKINGS]]
        rewards = processes.map(
            lambda ranking: reward_model.rewards_of_heads(ranking.conversations()), chosen
        )
        means = torch.cat(rewards).double().mean(0).tolist()
    state_members(reward_model.model.config, heads, means)
