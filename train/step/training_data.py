"""The data of a run: read, checked against the options, tokenised and split."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from transformers import PreTrainedTokenizerBase

from kwise.train.checkpoint.ids import num_rows
from kwise.train.checkpoint.pooling import header_of
from kwise.train.data.read import read_rankings
from kwise.train.model.reward_model import RewardModel
from kwise.train.model.tokenizer import text_token_ids
from kwise.train.options.config import Overlong, TrainConfig
from kwise.train.options.objectives import learns_from_ties, option_that_needs_scores
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.leaks import check_no_leaks
from kwise.train.rankings.open_file import display_name
from kwise.train.rankings.problems import Problems
from kwise.train.rankings.schema import Ranking
from kwise.train.rankings.split import split_by_prompt
from kwise.train.step.batch import TokenizedRanking, tokenize_rankings
from kwise.train.step.head_masks import head_mask
from kwise.train.template.changes import TemplateChanges
from kwise.types import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The rankings to train on, and those to evaluate on.

    Attributes:
        num_read: rankings in the file, and in that of --validation; those with a conversation over
            the token limit are in neither part.
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
        """The rankings of both parts."""
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
        problems.raise_if_any(display_name(config.data), len(rankings), "rankings")
    return rankings


def read_validation(config: TrainConfig, progress: Callable[[str], None]) -> list[Ranking] | None:
    """Return the rankings of `config.validation`, read as `config.data`; None without that file.

    They need no scores, because an evaluation compares the order of the responses alone.

    Raises: as `read_data`.
    """
    if config.validation is None:
        return None
    allow_tied = learns_from_ties(config)
    return read_rankings(config.validation, allow_tied=allow_tied, progress=progress)


def token_limit(reward_model: RewardModel, config: TrainConfig) -> int | None:
    """Return the longest conversation in tokens: the smaller one of the option and the model."""
    limits = [limit for limit in (config.max_tokens, reward_model.max_tokens) if limit is not None]
    return min(limits, default=None)


def prepare(
    rankings: Sequence[Ranking],
    reward_model: RewardModel,
    config: TrainConfig,
    validation_rankings: Sequence[Ranking] | None = None,
) -> TrainingData:
    """Tokenise the rankings, split them by prompt, and draw the heads that learn from each.

    Args:
        validation_rankings: those of --validation; None to split `rankings`.

    Raises:
        RankingsError: a conversation is over the token limit, no ranking is left, or a prompt is
            in both files; see `tokenize_rankings`, `split_by_prompt` and `check_no_leaks`.
    """
    max_tokens = token_limit(reward_model, config)
    changes = TemplateChanges()
    key = partial(_content_tokens, reward_model.tokenizer)

    def tokenize(rankings: Sequence[Ranking], path: str) -> list[TokenizedRanking]:
        tokenized = tokenize_rankings(
            rankings,
            reward_model.tokenizer,
            max_tokens=max_tokens,
            skip_overlong=config.overlong is Overlong.SKIP,
            with_text=config.text_regulariser > 0,
            template_name=reward_model.template.origin,
            num_rows=num_rows(reward_model.model),
            response_header=header_of(reward_model.model.config),
            changes=changes,
        )
        if not tokenized:
            raise RankingsError(
                [
                    f"{display_name(path)}: all {len(rankings)} rankings have a conversation of "
                    f"more than {max_tokens} tokens, the limit of "
                    + ("--max-tokens" if max_tokens == config.max_tokens else "the model")
                ]
            )
        return tokenized

    tokenized = tokenize(rankings, config.data)
    num_read = len(rankings)
    given = [item.ranking for item in tokenized]
    if config.validation is None or validation_rankings is None:
        training, validation = split_by_prompt(given, config.held_out_fraction, config.seed, key)
    else:
        num_read += len(validation_rankings)
        training = given
        validation = [item.ranking for item in tokenize(validation_rankings, config.validation)]
        check_no_leaks(training, validation, key, display_name(config.validation))
    training_set = set(training)
    return TrainingData(
        num_read=num_read,
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
