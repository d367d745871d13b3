"""The reward function for slime: `--custom-rm-path kwise.rl.slime.reward`.

With `--group-rm`, slime gives the K samples of a prompt together, which become one request.
Without it, and in evaluation, it gives one sample at a time, and the server joins them.
"""

from collections.abc import Sequence
from typing import Any

from kwise.client.messages import PromptLike
from kwise.client.several.targets import TargetLike
from kwise.rl.scoring import Scoring
from kwise.types import TemplatedText


class RewardFunction:
    """A reward function for slime.

    Args:
        address: the server or servers; None for KWISE_ADDRESS in the environment of
            slime's rollout process.
        options: further arguments of `Scoring`, but not `on_error`.
    """

    def __init__(self, address: TargetLike | None = None, **options: Any) -> None:
        self._scoring = Scoring.raising(address, **options)

    async def __call__(self, args: Any, sample: Any, **_: Any) -> float | list[float]:
        """Return the reward of a sample, or the rewards of a list of samples, in order.

        A prompt of messages is a conversation. A prompt of text has the chat template applied if
        slime runs with `--apply-chat-template`, and is one message of the user otherwise.

        Raises:
            TypeError: a sample is itself a list of samples.
            ValueError: responses keep their special tokens, but a prompt does not have the template
                applied.
            NotScored, ModelChanged, RewardServiceError: see `Scoring.score`. slime ends the run.
        """
        samples = sample if isinstance(sample, Sequence) else [sample]
        for index, member in enumerate(samples):
            if isinstance(member, Sequence):
                raise TypeError(
                    f"samples[{index}] is a list of samples, and slime keeps one reward per list "
                    "with --group-rm; leave out --group-rm where a rollout makes several samples"
                )
        prompts = [_prompt(args, member) for member in samples]
        keeps_special = not getattr(args, "rollout_skip_special_tokens", True)
        if keeps_special and not all(isinstance(prompt, TemplatedText) for prompt in prompts):
            raise ValueError(
                "without --rollout-skip-special-tokens a response ends with the policy's end "
                "token, which would be scored as a part of the answer; set that option, or give "
                "prompts as text with --apply-chat-template"
            )
        responses = [member.response for member in samples]
        rewards = (await self._scoring.score_async(prompts, responses)).values
        return rewards if samples is sample else rewards[0]


reward = RewardFunction()


def _prompt(args: Any, sample: Any) -> PromptLike:
    prompt: PromptLike = sample.prompt
    if isinstance(prompt, str) and args.apply_chat_template:
        return TemplatedText(text=prompt)
    return prompt
