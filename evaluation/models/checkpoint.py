"""A scorer that runs a checkpoint with torch, in float32.

It computes what training and the parity check of the export compute, so a result of a checkpoint is
the reference for those of its artifacts and servers. Each ranking is one pass of the model.
"""

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from kwise.bulk.scorers.protocol import GroupResult, ModelIdentity
from kwise.engine.config import check_max_tokens
from kwise.errors import InvalidRequest, KwiseError, ModelFailed
from kwise.libraries.errors import library_errors
from kwise.train.checkpoint.ids import id_without_row, num_rows
from kwise.train.model.reward_model import RewardModel, load_reward_model
from kwise.train.model.threads import use_available_cpus
from kwise.train.model.tokenizer import token_ids
from kwise.train.report.provenance import model_sha256
from kwise.train.template.render import TemplateRefusal
from kwise.types import Conversation, Group, Message, Reward, ScoredGroup

_MODEL = "MODEL"  # what the command line calls the checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointOptions:
    """The options with which a checkpoint is loaded.

    Attributes:
        chat_template: a Jinja file or the name of one of the checkpoint's templates; "" for its
            own.
        template_date: the date that the template prints; "" if it prints none.
        max_tokens: the longest conversation that is scored; None for the limit of the model.
        device: "cpu" or "cuda:N".
        threads: of torch; 0 for one per CPU that this process may use.
    """

    chat_template: str
    template_date: str
    max_tokens: int | None
    device: str
    threads: int


class CheckpointScorer:
    """Scores windows with a checkpoint."""

    max_windows = 2

    def __init__(self, model: RewardModel, identity: ModelIdentity, max_tokens: int | None) -> None:
        self.identity = identity
        self._model, self._max_tokens = model, max_tokens
        self._num_rows = num_rows(model.model)
        self._thread = ThreadPoolExecutor(1, "kwise-checkpoint")

    @classmethod
    def load(cls, name: str, options: CheckpointOptions) -> "CheckpointScorer":
        """Load a checkpoint that has a head for rewards.

        Raises:
            ConfigError: see `load_reward_model`; or `max_tokens` exceeds the limit of the model.
        """
        use_available_cpus()
        if options.threads:
            torch.set_num_threads(options.threads)
        model = load_reward_model(
            name,
            chat_template=Path(options.chat_template) if options.chat_template else None,
            template_date=options.template_date,
            num_heads=None,
            max_tokens=options.max_tokens,
            option=_MODEL,
            to_train=False,
        )
        with library_errors(f"--device {options.device}: torch cannot use it"):
            model.model.to(options.device)
        check_max_tokens(options.max_tokens, model.max_tokens)
        max_tokens = options.max_tokens or model.max_tokens
        identity = ModelIdentity(
            model=Path(name).name,
            fingerprint=model_sha256(name),
            precision="fp32",
            runtime=f"torch {torch.__version__} {options.device}",
            server_options={"max_tokens": max_tokens, "chat_template": model.template.sha256},
        )
        return cls(model, identity, max_tokens)

    async def score(self, groups: Sequence[Group]) -> Sequence[GroupResult]:
        """Return one result per group, in order."""
        loop = asyncio.get_running_loop()
        return [await loop.run_in_executor(self._thread, self._score, group) for group in groups]

    async def close(self) -> None:
        """Release the thread. A pass of the model that runs cannot be interrupted."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _score(self, group: Group) -> GroupResult:
        sequences: list[list[int]] = []
        errors: dict[int, KwiseError] = {}
        for number, response in enumerate(group.responses):
            answer = Message(role="assistant", content=str(response))
            try:
                sequences.append(self._tokens((*_messages(group), answer), number))
            except InvalidRequest as error:
                errors[number] = error
        computed = self._model.rewards_of_tokens(sequences).mean(1).tolist() if sequences else []
        rewards = iter(zip(computed, map(len, sequences), strict=True))
        outcomes = [
            errors[number] if number in errors else _reward(number, *next(rewards))
            for number in range(len(group.responses))
        ]
        return ScoredGroup(
            rewards=tuple(outcomes),
            model=self.identity.model,
            fingerprint=self.identity.fingerprint,
            precision=self.identity.precision,
            runtime=self.identity.runtime,
        )

    def _tokens(self, conversation: Conversation, number: int) -> list[int]:
        """Return the tokens of the conversation with response `number`.

        Raises:
            InvalidRequest: it cannot be scored.
        """
        tokenizer = self._model.tokenizer
        try:
            tokens = token_ids(tokenizer, conversation)
        except TemplateRefusal as refusal:
            problem = f"the chat template refuses it: {refusal}"
            raise InvalidRequest("", problem, response=number, is_quoting=True) from None
        if self._max_tokens is not None and len(tokens) > self._max_tokens:
            raise InvalidRequest(
                "",
                f"the conversation has {len(tokens)} tokens; the limit is {self._max_tokens}",
                response=number,
                over_limit=True,
            )
        problem = "the conversation has no tokens" if not tokens else ""
        if problem := problem or id_without_row(tokens, tokenizer, self._num_rows) or "":
            raise InvalidRequest("", problem, response=number)
        if tokens[-1] == tokenizer.pad_token_id:
            problem = f"the conversation ends with the padding token {tokenizer.pad_token!r}"
            raise InvalidRequest("", problem, response=number)
        return tokens


def _messages(group: Group) -> Conversation:
    prompt = group.prompt
    assert isinstance(prompt, tuple), "rankings have messages"
    return tuple(message for message in prompt if isinstance(message, Message))


def _reward(number: int, value: float, tokens: int) -> Reward | KwiseError:
    if not math.isfinite(value):
        return ModelFailed(number)
    return Reward(value=value, raw=value, tokens=tokens)
