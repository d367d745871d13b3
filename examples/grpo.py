"""Train SmolLM2-135M-Instruct with TRL's GRPO; the rewards come from a kwise server.

`make demo` makes the reward model first. Then, from the root of the clone:

    python -m examples.grpo

It starts a server of build/demo/artifact, or uses the one at --address. At each step the policy
answers some questions eight times each. The server scores each group of eight, and GRPO makes
answers with a reward above their group's mean more likely. The questions are in questions.jsonl.

Answers to the held-out ones are scored before, during and after training, with the KL divergence
to the start and with measures that show whether the reward was exploited.

It runs in fp32 on a CPU; docs/rl.md has the result. In --output it writes, as it goes:

    curve.jsonl         a line per step: reward, KL, length, entropy, seconds of each part
    evaluations.jsonl   a line per evaluation of the held-out questions
    samples-….jsonl     the answers of each evaluation
    result.json         the rise of the reward, with its standard error, and the options
    policy/             the trained model
"""

import argparse
import json
import resource
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from examples import grpo_evaluation as evaluation
from examples.demo import ROOT, server, weights
from examples.grpo_evaluation import Messages, Sample
from kwise.rl.trl import RewardFunction
from kwise.train.model.tokenizer import read_fast_tokenizer

GROUP_SIZE = 8  # answers to each question of a step


class Rewards:
    """The reward function of the run. It records the start and end of TRL's calls."""

    def __init__(self, address: str) -> None:
        self.function = RewardFunction(address)
        self.__name__ = self.function.__name__
        self.started = self.ended = 0.0

    def __call__(self, **columns: Any) -> list[float | None]:
        """Return the rewards, as TRL asks for them."""
        self.started = time.monotonic()
        rewards = self.function(**columns)
        self.ended = time.monotonic()
        return rewards

    def scores(self, prompts: list[Messages], answers: list[str]) -> list[float]:
        """Return the rewards for an evaluation. A response without a reward raises an error."""
        completions = [[{"role": "assistant", "content": answer}] for answer in answers]
        rewards = self.function(prompts=prompts, completions=completions)
        return [reward for reward in rewards if reward is not None]


class Log(TrainerCallback):
    """Writes the curve, and evaluates the policy after each `every` steps."""

    def __init__(self, rewards: Rewards, path: Path, every: int, evaluate: Any) -> None:
        self.rewards, self.path, self.every, self.evaluate = rewards, path, every, evaluate
        self.began = self.update_s = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = time.monotonic()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.update_s = time.monotonic() - self.rewards.ended

    def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, Any], **___: Any) -> None:
        if "reward" not in logs:
            return
        line: dict[str, Any] = {
            "step": state.global_step,
            "reward": logs["reward"],
            "reward_std": logs["reward_std"],
            "entropy": logs["entropy"],
            "tokens": logs["completions/mean_length"],
            "cut": logs["completions/clipped_ratio"],
            "grad_norm": logs["grad_norm"],
            "learning_rate": logs["learning_rate"],
            "generation_s": self.rewards.started - self.began,
            "reward_s": self.rewards.ended - self.rewards.started,
            "update_s": self.update_s,
        }
        if "kl" in logs:  # TRL measures it if it is in the loss
            line["kl_per_token"] = logs["kl"]
        append(self.path, line)
        if state.global_step % self.every == 0:
            self.evaluate(state.global_step)


def main() -> None:
    """Parse the options, train and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--artifact", type=Path, default=ROOT / "build" / "demo" / "artifact")
    add("--address", help="a running server (default: start one of --artifact)")
    add("--policy", type=Path, help="a Hugging Face directory (default: SmolLM2-135M-Instruct)")
    add("--output", type=Path, default=ROOT / "build" / "grpo")
    add("--steps", type=int, default=20)
    add("--groups", type=int, default=2, help="questions in a step")
    add("--learning-rate", type=float, default=4e-5)
    add("--beta", type=float, default=0.0, help="weight of the KL divergence in the loss")
    add("--temperature", type=float, default=0.8)
    add("--max-tokens", type=int, default=48, help="answers are cut at this length")
    add("--every", type=int, default=10, help="steps between evaluations")
    add("--held-out", type=int, default=48, help="number of held-out questions that are used")
    add("--samples", type=int, default=2, help="answers to each held-out question")
    args = parser.parse_args()
    if args.address is None and not args.artifact.is_dir():
        parser.error(f"--artifact {args.artifact} does not exist: run `make demo` first")
    args.output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with ExitStack() as stack:
        result = train(args, args.address or stack.enter_context(server(args.artifact)))
    # The server has ended, so its CPU time is part of the children's.
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    result["cpu_s"] = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    result["wall_s"] = time.monotonic() - started
    result["options"] = {name: str(value) for name, value in vars(args).items()}
    text = json.dumps(result, indent=1)
    (args.output / "result.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def train(args: argparse.Namespace, address: str) -> dict[str, Any]:
    """Train the policy, and return the change of the reward on the held-out questions."""
    policy = args.policy or save_smollm2(args.output / "start")
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # the model takes no others
    start = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32).eval()
    rewards = Rewards(address)
    held_out = evaluation.questions("held-out")[: args.held_out]
    evaluations: dict[tuple[int, float], list[Sample]] = {}
    for name in ("curve", "evaluations"):
        (args.output / f"{name}.jsonl").unlink(missing_ok=True)

    def evaluate(step: int, temperature: float = args.temperature) -> list[Sample]:
        began = time.monotonic()
        samples: list[Sample] = evaluation.sample(
            trainer.model,
            start,
            tokenizer,
            rewards.scores,
            held_out,
            per_prompt=args.samples if temperature else 1,
            temperature=temperature,
            max_tokens=args.max_tokens,
        )
        evaluations[step, temperature] = samples
        line = {"step": step, "temperature": temperature} | evaluation.summary(samples)
        append(args.output / "evaluations.jsonl", line | {"seconds": time.monotonic() - began})
        evaluation.write_samples(args.output / f"samples-{step}-{temperature}.jsonl", samples)
        return samples

    trainer = GRPOTrainer(
        model=str(policy),
        processing_class=tokenizer,
        reward_funcs=rewards,
        train_dataset=Dataset.from_list(
            [{"prompt": prompt} for prompt in evaluation.questions("train")]
        ),
        callbacks=[Log(rewards, args.output / "curve.jsonl", args.every, evaluate)],
        args=GRPOConfig(
            output_dir=str(args.output / "trainer"),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            num_generations=GROUP_SIZE,
            per_device_train_batch_size=GROUP_SIZE,
            gradient_accumulation_steps=args.groups,
            max_steps=args.steps,
            max_completion_length=args.max_tokens,
            temperature=args.temperature,
            learning_rate=args.learning_rate,
            lr_scheduler_type="constant",
            beta=args.beta,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        ),
    )
    evaluate(0)
    trainer.train()
    if (args.steps, args.temperature) not in evaluations:
        evaluate(args.steps)
    trainer.save_model(str(args.output / "policy"))
    evaluate(args.steps, 0.0)
    trainer.model = start  # the start's likeliest answers: are they as good as the policy's?
    evaluate(0, 0.0)
    before = evaluations[0, args.temperature]
    rises: dict[str, Any] = {
        f"step {step}": {
            reward: evaluation.paired(before, samples, reward)
            for reward in ("reward", "trimmed_reward")
        }
        for (step, temperature), samples in evaluations.items()
        if step and temperature
    }
    likeliest = evaluation.paired(evaluations[0, 0.0], evaluations[args.steps, 0.0])
    return rises | {f"step {args.steps}, likeliest answers": likeliest}


def save_smollm2(path: Path) -> Path:
    """Save SmolLM2 with its tokenizer as a directory, which TRL can load, and return its path."""
    file = weights()
    tokenizer = read_fast_tokenizer("--model", str(file))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def append(path: Path, line: dict[str, Any]) -> None:
    """Append a line to a JSON Lines file, and print it."""
    text = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()})
    with path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")
    print(text, flush=True)


if __name__ == "__main__":
    main()
