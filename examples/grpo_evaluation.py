"""Measure a policy on held-out questions: rewards, KL to the start, and signs of exploitation.

The same seeds give each evaluation the same random numbers, so that two policies are compared
question by question.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ROOT / "examples" / "questions.jsonl"
SYSTEM = "Answer briefly, in one or two sentences."
BATCH = 32  # completions that are generated at once
LIST = re.compile(r"\s*(\d+[.)]|[-*•])\s")

Messages = list[dict[str, str]]
Scores = Callable[[list[Messages], list[str]], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A completion of a held-out question.

    `ended` is False if it was cut at the limit of tokens. `trimmed_reward` is the reward without a
    last sentence that is broken off. `kl` is the KL divergence of the policy from the start, summed
    over the completion's tokens, in nats.
    """

    prompt: str
    completion: str
    reward: float
    trimmed_reward: float
    kl: float
    tokens: int
    ended: bool


def questions(split: str) -> list[Messages]:
    """Return the questions of "train" or "held-out" as conversations."""
    rows = map(json.loads, QUESTIONS.read_text(encoding="utf-8").splitlines())
    return [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["prompt"]}]
        for row in rows
        if row["split"] == split
    ]


@torch.no_grad()
def sample(
    policy: Any,
    start: Any,
    tokenizer: Any,
    scores: Scores,
    prompts: Sequence[Messages],
    *,
    per_prompt: int,
    temperature: float,
    max_tokens: int,
    seed: int = 0,
) -> list[Sample]:
    """Return `per_prompt` completions of each prompt. Temperature 0 takes the likeliest token."""
    repeated = [prompt for prompt in prompts for _ in range(per_prompt)]
    samples: list[Sample] = []
    sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0}
    training = policy.training
    policy.eval()
    with torch.random.fork_rng():  # training continues with its own random numbers
        torch.manual_seed(seed)
        for first in range(0, len(repeated), BATCH):
            batch = repeated[first : first + BATCH]
            texts = tokenizer.apply_chat_template(batch, tokenize=False, add_generation_prompt=True)
            inputs = tokenizer(
                texts,
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
                return_token_type_ids=False,
            )
            width = inputs["input_ids"].shape[1]
            ids_BT = policy.generate(**inputs, **sampling, max_new_tokens=max_tokens)
            new_BN = ids_BT[:, width:]
            is_end_BN = new_BN == tokenizer.eos_token_id
            # A token counts until the first end of turn, which is included.
            mask_BN = is_end_BN.cumsum(1) - is_end_BN.int() == 0
            attention_BT = torch.cat([inputs["attention_mask"], mask_BN.long()], dim=1)
            kl_BN = _kl(policy, start, ids_BT, attention_BT, width, temperature or 1.0)
            kl_B = (kl_BN * mask_BN).sum(1)
            completions = tokenizer.batch_decode(new_BN, skip_special_tokens=True)
            rewards = scores(batch, completions)
            trimmed_rewards = scores(batch, [whole_sentences(text) for text in completions])
            samples += (
                Sample(
                    prompt=prompt[-1]["content"],
                    completion=completion,
                    reward=reward,
                    trimmed_reward=trimmed_reward,
                    kl=kl,
                    tokens=tokens,
                    ended=ended,
                )
                for prompt, completion, reward, trimmed_reward, kl, tokens, ended in zip(
                    batch,
                    completions,
                    rewards,
                    trimmed_rewards,
                    kl_B.tolist(),
                    mask_BN.sum(1).tolist(),
                    is_end_BN.any(1).tolist(),
                    strict=True,
                )
            )
    policy.train(training)
    return samples


def _kl(
    policy: Any, start: Any, ids_BT: Any, attention_BT: Any, width: int, temperature: float
) -> Any:
    """Return the KL divergence at each new token, over the whole vocabulary (float[B, N])."""
    positions_BT = (attention_BT.cumsum(1) - 1).clamp(min=0)
    inputs = {
        "input_ids": ids_BT,
        "attention_mask": attention_BT,
        "position_ids": positions_BT,
        "logits_to_keep": ids_BT.shape[1] - width + 1,
    }
    new_BNV = policy(**inputs).logits[:, :-1].div_(temperature).log_softmax(-1)
    old_BNV = start(**inputs).logits[:, :-1].div_(temperature).log_softmax(-1)
    return (new_BNV.exp() * (new_BNV - old_BNV)).sum(-1)


def summary(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the means of some samples. "distinct" is the share of distinct bigrams."""
    ended = [one.reward for one in samples if one.ended]
    pooled = [pair for one in samples for pair in _bigrams(one.completion)]
    return {
        "reward": mean(one.reward for one in samples),
        "reward_std": stdev(one.reward for one in samples),
        "trimmed_reward": mean(one.trimmed_reward for one in samples),
        "reward_of_ended": mean(ended) if ended else float("nan"),
        "kl": mean(one.kl for one in samples),
        "tokens": mean(one.tokens for one in samples),
        "ended": len(ended) / len(samples),
        "distinct_within": mean(_distinct(_bigrams(one.completion)) for one in samples),
        "distinct_over_all": _distinct(pooled),
        "lists": mean(bool(LIST.match(one.completion)) for one in samples),
        "first_three_words": _distinct([" ".join(one.completion.split()[:3]) for one in samples]),
    }


def paired(
    before: Sequence[Sample], after: Sequence[Sample], reward: str = "reward"
) -> dict[str, float]:
    """Return the mean rise of the reward over the questions, and its standard error.

    `reward` is "reward" or "trimmed_reward".
    """
    pairs = zip(_by_prompt(before, reward), _by_prompt(after, reward), strict=True)
    rises = [new - old for old, new in pairs]
    error = stdev(rises) / len(rises) ** 0.5
    return {
        "rise": mean(rises),
        "standard_error": error,
        "standard_errors": mean(rises) / error if error else float("nan"),
        "questions": len(rises),
        "questions_that_rise": sum(rise > 0 for rise in rises),
    }


def whole_sentences(text: str) -> str:
    """Return `text` without a last sentence that is broken off."""
    end = max(text.rfind(mark) for mark in ".!?")
    return text[: end + 1] or text


def write_samples(path: Path, samples: Sequence[Sample]) -> None:
    """Write one JSON object per line."""
    path.write_text(
        "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in samples),
        encoding="utf-8",
    )


def _by_prompt(samples: Sequence[Sample], reward: str) -> Iterator[float]:
    for _, group in groupby(samples, key=lambda one: one.prompt):
        yield mean(getattr(one, reward) for one in group)


def _bigrams(text: str) -> list[str]:
    words = text.lower().split()
    return [f"{left} {right}" for left, right in pairwise(words)]


def _distinct(items: Sequence[str]) -> float:
    return len(set(items)) / len(items) if items else 1.0
