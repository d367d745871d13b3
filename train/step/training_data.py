"""The data of a run: read, checked against the options, tokenised and split."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from kwise.train.checkpoint.ids import num_rows
from kwise.train.data.read import read_rankings
from kwise.train.model.reward_model import RewardModel
from kwise.train.model.tokenizer import text_token_ids
from kwise.train.options.config import Overlong, TrainConfig
from kwise.train.options.objectives import learns_from_ties, option_that_needs_scores
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.problems import Problems
from kwise.train.rankings.schema import Ranking
from kwise.train.rankings.split import split_by_prompt
from kwise.train.step.batch import TokenizedRanking, tokenize_rankings
from kwise.train.step.head_masks import head_mask
from kwise.train.template.changes import TemplateChanges
from kwise.types import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The training split and the validation split.

    Attributes:
        num_read: rankings in the file; those with a conversation over the token limit are in
            neither split.
        max_tokens: the token limit; None if there is none.
        notes: lines that the user should know: what the chat template leaves out.
    """

    num_read: int
    max_tokens: int | None
    training: tuple[TokenizedRanking, ...]
    validation: tuple[Ranking, ...]
    notes: tuple[str, ...] = ()

    @property
    def rankings(self) -> list[Ranking]:
        """The rankings of both splits."""
        return [*(item.ranking for item in self.training), *self.validation]


def read_data(config: TrainConfig, progress: Callable[[str], None]) -> list[Ranking]:
    """Return the rankings of `config.data`, converted if the file has another format.

    Args:
        progress: gets the lines that say what was converted and left out.

    Raises:
        RankingsError: the file cannot be used, or lacks the scores that the objective needs.
        ConfigError: the file is missing.
        OSError: the file cannot be read.
    """
    rankings = read_rankings(config.data, allow_tied=learns_from_ties(config), progress=progress)
    if option := option_that_needs_scores(config):
        problems = Problems()
        for ranking in rankings:
            if ranking.scores is None:
                problems.add(
                    f"{ranking.origin}: responses: {option} needs scores; these have ranks",
                    origin=ranking.origin,
                )
        problems.raise_if_any(config.data, len(rankings), "rankings")
    return rankings


def token_limit(reward_model: RewardModel, config: TrainConfig) -> int | None:
    """Return the longest conversation in tokens: the smaller one of the option and the model."""
    limits = [limit for limit in (config.max_tokens, reward_model.max_tokens) if limit is not None]
    return min(limits, default=None)


def prepare(
    rankings: Sequence[Ranking], reward_model: RewardModel, config: TrainConfig
) -> TrainingData:
    """Tokenise the rankings, split them by prompt, and draw the heads that learn from each.

    Raises:
        RankingsError: a conversation is over the token limit, or no ranking is left; see
            `tokenize_rankings` and `split_by_prompt`.
    """
    max_tokens = token_limit(reward_model, config)
    changes = TemplateChanges()
    tokenized = tokenize_rankings(
        rankings,
        reward_model.tokenizer,
        max_tokens=max_tokens,
        skip_overlong=config.overlong is Overlong.SKIP,
        with_text=config.text_regulariser > 0,
        template_name=reward_model.template.origin,
        num_rows=num_rows(reward_model.model),
        changes=changes,
    )
    if not tokenized:
        raise RankingsError(
            [
                f"{config.data}: all {len(rankings)} rankings have a conversation of more than "
                f"{max_tokens} tokens, the limit of "
                + ("--max-tokens" if max_tokens == config.max_tokens else "the model")
            ]
        )
    training, validation = split_by_prompt(
        [item.ranking for item in tokenized],
        config.validation_fraction,
        config.seed,
        key=partial(_content_tokens, reward_model.tokenizer),
    )
    training_set = set(training)
    return TrainingData(
        num_read=len(rankings),
        max_tokens=max_tokens,
        training=tuple(
            replace(
                item,
                learning_heads=head_mask(
                    item.ranking.prompt, config.heads, config.head_share, config.seed
                ),
            )
            for item in tokenized
            if item.ranking in training_set
        ),
        validation=tuple(validation),
        notes=tuple(changes.notes()),
    )


def _content_tokens(tokenizer: PreTrainedTokenizerBase, prompt: Conversation) -> Hashable:
    """Return the roles of a prompt and the tokens of its contents.

    Prompts that differ in case, for instance, are one prompt for a model that ignores case.
    """
    return tuple(
        (message.role, *text_token_ids(tokenizer, message.content.strip())) for message in prompt
    )
