"""Reward functions for TRL's GRPOTrainer, RLOOTrainer and trainers with the same interface.

    trainer = GRPOTrainer(reward_funcs=RewardFunction("localhost:50051"), …)
    $ KWISE_ADDRESS=localhost:50051 trl grpo --reward_funcs kwise.rl.trl.reward …

TRL calls a reward function once per step and process with all completions of that process. It
awaits all asynchronous reward functions together on an event loop of its own. This module does not
import TRL.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from kwise.client.messages import PromptLike
from kwise.client.several.targets import TargetLike
from kwise.meanings import Meaning, row_meaning, says_nothing
from kwise.rl.result import ScoredResponses
from kwise.rl.scoring import Scoring
from kwise.types import TemplatedText

PlainPrompts: TypeAlias = Literal["templated", "user"]


class _Base:
    """The state of both reward functions, and the conversion of TRL's columns."""

    def __init__(
        self,
        address: TargetLike | None = None,
        *,
        plain_prompts: PlainPrompts = "templated",
        name: str = "kwise",
        **options: Any,
    ) -> None:
        if plain_prompts not in ("templated", "user"):
            raise ValueError(f'plain_prompts must be "templated" or "user", not {plain_prompts!r}')
        self.__name__ = name  # TRL uses it in the names of its metrics
        self._plain_prompts = plain_prompts
        self._may_miss_rewards = options.get("on_error") == "none"
        self._has_members = False  # of the model, as far as is known
        self._scoring = Scoring(address, **options)

    def _pairs(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
    ) -> tuple[list[PromptLike], list[str]]:
        """Return the prompts and responses in the form that the client takes.

        Raises:
            ValueError: the numbers of prompts and completions differ, or a column or a completion
                has content that the reward model cannot read.
            TypeError: `prompts` or `completions` is one string, a prompt is not a string or a list
                of messages, or a completion is not.
        """
        if isinstance(prompts, str) or isinstance(completions, str):
            raise TypeError("prompts and completions must be lists, with one prompt per completion")
        if len(prompts) != len(completions):
            raise ValueError(
                f"there are {len(prompts)} prompts and {len(completions)} completions; give each "
                "completion its prompt"
            )
        for column, values in columns.items():
            if row_meaning(column) is Meaning.MEDIA and not says_nothing(values):
                raise ValueError(
                    f"the column {column!r} has images, audio or video; kwise scores text only, so "
                    "the rewards would be those of another conversation"
                )
        pairs = [
            self._pair(index, prompt, completion)
            for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        return [prompt for prompt, _ in pairs], [response for _, response in pairs]

    def _pair(self, index: int, prompt: Any, completion: Any) -> tuple[PromptLike, str]:
        if isinstance(completion, str):
            is_templated = isinstance(prompt, str) and self._plain_prompts == "templated"
            return (TemplatedText(text=prompt) if is_templated else prompt), completion
        if isinstance(completion, bytes) or not isinstance(completion, Sequence):
            raise TypeError(
                f"completions[{index}] must be a string or a list of messages, not "
                f"{type(completion).__name__}"
            )
        if isinstance(prompt, str):
            raise ValueError(
                f"prompts[{index}] is a string and completions[{index}] is a list of messages; "
                "give both as strings or both as lists of messages"
            )
        if isinstance(prompt, bytes | Mapping) or not isinstance(prompt, Iterable):
            raise TypeError(
                f"prompts[{index}] must be a string or a list of messages, not "
                f"{type(prompt).__name__}"
            )
        last = completion[-1] if completion else {}
        if not isinstance(last, Mapping):
            raise TypeError(
                f"completions[{index}] must be a string or a list of messages; its last item is "
                f"of type {type(last).__name__}"
            )
        others = [key for key in last if key not in ("role", "content") and last[key]]
        if last.get("role") != "assistant" or others:
            problem = f"has {others[0]!r}" if others else "is not the assistant's"
            raise ValueError(
                f"the last message of completions[{index}] {problem}; kwise scores the text of the "
                "assistant's last message"
            )
        if not isinstance(last.get("content"), str):
            raise TypeError(
                f"the last message of completions[{index}] has no text as its content; kwise "
                "scores text only"
            )
        # After tool calls, the completion has several messages. All but the last are context.
        return [*prompt, *completion[:-1]], last["content"]

    def _log(
        self,
        scored: ScoredResponses,
        log_extra: Callable[[str, list[Any]], None] | None,
        log_metric: Callable[[str, float], None] | None,
    ) -> list[float | None]:
        if log_metric is not None:
            for key, value in scored.statistics.metrics.items():
                log_metric(key.replace("kwise", self.__name__, 1), value)
        # This is logged at every call, because TRL stores each column separately: the rows of a
        # shorter column would be aligned with the wrong completions.
        if log_extra is not None and self._may_miss_rewards:
            errors = [str(scored.errors.get(index, "")) for index in range(len(scored.rewards))]
            log_extra(f"{self.__name__}_error", errors)
        if any(std is not None for std in scored.stds):
            self._has_members = True
        if log_extra is not None and self._has_members:
            log_extra(f"{self.__name__}_std", list(scored.stds))
        return scored.rewards


class RewardFunction(_Base):
    """A reward function for `reward_funcs`. It connects at the first call, and can be pickled.

    Conversational prompts are scored as messages: the reward is that of the assistant's last
    message, after all earlier ones. Messages with tool calls are refused by name.

    Args:
        address: the server or servers; None for the environment variable KWISE_ADDRESS.
        plain_prompts: the meaning of prompts that are strings. "templated": the completion follows
            the text directly, as TRL's policy and TRL's own reward models read it; the text has the
            chat template applied if the model needs one. "user": the text is one turn of the user
            and the completion is the assistant's answer, as cross-encoders need it.
        name: the name in TRL's metrics, for runs with several servers.
        options: `on_error`, `allow_model_change` and the other arguments of `Scoring`. With
            on_error="none" a response that cannot be scored has no influence on the run.

    Raises:
        InvalidRequest: `address` is not a valid address.
        TypeError, ValueError: another argument has a wrong type or value.
    """

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return one reward per completion, in order."""
        scored = self._scoring.score(*self._pairs(prompts, completions, columns))
        return self._log(scored, log_extra, log_metric)


class AsyncRewardFunction(_Base):
    """`RewardFunction` as a coroutine, which TRL awaits together with other asynchronous ones."""

    async def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        log_extra: Callable[[str, list[Any]], None] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return one reward per completion, in order."""
        scored = await self._scoring.score_async(*self._pairs(prompts, completions, columns))
        return self._log(scored, log_extra, log_metric)


# For `trl grpo --reward_funcs`, which takes no arguments.
reward = RewardFunction()
reward_or_none = RewardFunction(on_error="none")
