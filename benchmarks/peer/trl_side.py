"""TRL's side of the comparison: one job played by its `GRPOTrainer`, where TRL is installed.

    python -m peer.trl_side JOB.json OUTCOME.json        # from benchmarks/

Generation is transformers' own, as without a GPU. Of TRL's settings that change no result the faster ones are
taken: no gradient checkpointing, one forward pass for all 64 completions, no logging. The auxiliary loss of
the router is off, as it is in Dorado by default. Imports nothing of Dorado.
"""

# pyright: reportArgumentType=false
# TRL types rewards and data sets otherwise than it takes them.

import asyncio
import json
import random
import resource
import sys
import time
from collections import Counter
from pathlib import Path
from typing import cast

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

from .work import Data, Job, Outcome, digit_share, expected, opening, slow_seconds

# How the small policies write a call (`trainer/small/tokenizer.py`), as transformers reads responses.
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open_pattern": r"<longcat_tool_call>(?P<name>[^<]+)",
            "close_pattern": r"</longcat_tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {
                "tag_pattern": r"<longcat_arg_key>(?P<key>[^<]+)</longcat_arg_key>\s*"
                r"<longcat_arg_value>(?P<value>.*?)</longcat_arg_value>",
                "value_parser": {"name": "text"},
            },
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": "{content}"},
            },
        },
        "content": {"close_pattern": r"<\|end\|>|$", "content": "text"},
    },
}
_PLAYED: Counter[str] = Counter()


class Chain:
    """`peer.arithmetic.Chain` as TRL wants an environment: made once, reset for each trajectory."""

    def reset(self, **columns: object) -> None:
        """Take up a task."""
        self.expected = expected(json.loads(str(columns["task"])))
        self.calls = 0

    def add(self, a: int, b: int) -> int:
        """a plus b

        Args:
            a: a
            b: b
        """
        self.calls += 1
        return int(a) + int(b)

    def multiply(self, a: int, b: int) -> int:
        """a times b

        Args:
            a: a
            b: b
        """
        self.calls += 1
        return int(a) * int(b)

    def subtract(self, a: int, b: int) -> int:
        """a minus b

        Args:
            a: a
            b: b
        """
        self.calls += 1
        return int(a) - int(b)


class SlowChain:
    """`Chain` with asynchronous tools that wait as long as those of `peer.arithmetic.SlowChain`."""

    def reset(self, **columns: object) -> None:
        """Take up a task."""
        task = str(columns["task"])
        self._rng = random.Random(f"{task}/{_PLAYED[task]}")
        _PLAYED[task] += 1
        self.expected = expected(json.loads(task))
        self.calls = 0

    async def add(self, a: int, b: int) -> int:
        """a plus b

        Args:
            a: a
            b: b
        """
        await asyncio.sleep(slow_seconds(self._rng))
        self.calls += 1
        return int(a) + int(b)

    async def multiply(self, a: int, b: int) -> int:
        """a times b

        Args:
            a: a
            b: b
        """
        await asyncio.sleep(slow_seconds(self._rng))
        self.calls += 1
        return int(a) * int(b)

    async def subtract(self, a: int, b: int) -> int:
        """a minus b

        Args:
            a: a
            b: b
        """
        await asyncio.sleep(slow_seconds(self._rng))
        self.calls += 1
        return int(a) - int(b)


ENVIRONMENTS = {"single": None, "instant": Chain, "slow": SlowChain}
Completions = list[list[dict[str, str]]]


def digits(completion_ids: list[list[int]], **_: object) -> list[float]:
    """`peer.arithmetic.digits` as TRL wants a reward."""
    return [digit_share(ids) for ids in completion_ids]


def solved(
    completions: Completions, environments: list[Chain | SlowChain], **_: object
) -> list[float]:
    """Reward of `peer.arithmetic.Chain`."""
    answers = ["" if m[-1]["role"] == "tool" else m[-1]["content"].strip() for m in completions]
    return [
        float(answer == str(world.expected) and world.calls > 0)
        for answer, world in zip(answers, environments, strict=True)
    ]


class Clock(TrainerCallback):
    """Seconds of wall clock and of CPU from the first step's beginning to the last one's end."""

    def __init__(self) -> None:
        self.begun = self.ended = 0.0
        self.cpu_begun = self.cpu_ended = 0.0

    def on_step_begin(self, *_: object, **__: object) -> None:
        """Begin at the first one."""
        if not self.begun:
            self.begun, self.cpu_begun = time.perf_counter(), cpu_seconds()

    def on_step_end(self, *_: object, **__: object) -> None:
        """Go on to this one's end."""
        self.ended, self.cpu_ended = time.perf_counter(), cpu_seconds()


def cpu_seconds() -> float:
    """CPU seconds of this process so far, in all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def rows(tasks: list[Data]) -> Dataset:
    """Tasks as TRL reads them: the prompt, and the task as text, for `datasets` changes what is nested."""
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": opening(task)}], "task": json.dumps(task)}
            for task in tasks
        ]
    )


def settings(job: Job, folder: str) -> GRPOConfig:
    """TRL's settings of a job."""
    batch = job["groups"] * job["group_size"]
    return GRPOConfig(
        output_dir=folder,
        seed=job["seed"],
        max_steps=job["updates"],
        use_cpu=True,
        bf16=job["dtype"] == "bfloat16",
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        num_generations=job["group_size"],
        num_generations_eval=1,
        shuffle_dataset=False,
        max_completion_length=job["completion_tokens"],
        max_tool_calling_iterations=job["turns"] - 1,
        temperature=1.0,
        loss_type="grpo",
        beta=0.0,
        epsilon=0.2,
        scale_rewards="group",
        router_aux_loss_coef=0.0,
        learning_rate=job["lr"],
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def play(job: Job, folder: str) -> Outcome:
    """Train for the job's updates, then play its held-out tasks once each."""
    tokenizer = cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(job["policy"]))
    world = ENVIRONMENTS[job["kind"]]
    if world is not None:
        tokenizer.response_template = RESPONSE
    clock = Clock()
    trainer = GRPOTrainer(
        model=job["policy"],
        reward_funcs=[digits if world is None else solved],
        args=settings(job, folder),
        train_dataset=rows(job["train"]),
        processing_class=tokenizer,
        environment_factory=world,
        callbacks=[clock],
    )
    trainer.train()
    logged = [line for line in trainer.state.log_history if "completions/mean_length" in line]
    batch = job["groups"] * job["group_size"]
    calls = [line.get("tools/call_frequency", 0.0) for line in logged]
    reward = trainer.evaluate(rows(job["heldout"]))["eval_reward"]
    return {
        "seconds": clock.ended - clock.begun,
        "trajectories": batch * len(logged),
        "policy_tokens": batch * sum(line["completions/mean_length"] for line in logged),
        "turns": 1.0 + sum(calls) / len(calls),
        "reward_after": reward,
        "cpu_seconds": clock.cpu_ended - clock.cpu_begun,
    }


def main() -> None:
    """Play the job, and write what was measured."""
    source, target = map(Path, sys.argv[1:])
    outcome = play(json.loads(source.read_text(encoding="utf-8")), str(target.parent / "trl"))
    target.write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
