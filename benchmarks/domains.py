"""Three domains for the benchmarks of fusion and distillation: one small task each, in one process.

A tiny Qwen3-MoE is asked with three tokens and answers with four. The first token names the domain, the other
two are of sixteen; the reward is the share of the answer's tokens whose kind (the id modulo 4) is that of the
prompt's last token plus the domain's number, 0 to 2. A policy that knows nothing but the sixteen gets a
quarter. The cold start is a short imitation of answers of all domains that are right at 0.55 of their tokens.
No engine: the learner writes as well.
"""

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from objectives import ALPHABET, ANSWER, KINDS, RATE, written

from trainer.advantage import grpo
from trainer.config import LearnerConfig
from trainer.learner import Learner
from trainer.sample import TrainSample
from trainer.small.init_model import init_checkpoint

DOMAINS = ("one", "two", "three")
PROMPT = 3
GROUPS, MEMBERS = 15, 8
HELDOUT = 384
SETTINGS: dict[str, Any] = {
    "threads": 1,
    "record_tokens": False,
    "loss": {"kind": "dapo"},
    "optim": {"lr": RATE},
}


def prompt_of(domain: str, draw: random.Random) -> tuple[int, ...]:
    """A new task of a domain."""
    return (
        ALPHABET + DOMAINS.index(domain),
        *(draw.randrange(ALPHABET) for _ in range(PROMPT - 1)),
    )


def sample_of(
    id: str, tokens: Sequence[int], logprobs: Sequence[float], version: int
) -> TrainSample:
    """A prompt and its answer, without any advantage."""
    mask = (False,) * PROMPT + (True,) * ANSWER
    versions = tuple(version if m else -1 for m in mask)
    rollout = ((0.0,) * PROMPT) + tuple(logprobs)
    return TrainSample(id, "", tuple(tokens), mask, rollout, (0.0,) * len(mask), versions)


def reward_of(prompt: Sequence[int], ids: Sequence[int]) -> float:
    """The share of right tokens."""
    return sum(t % KINDS == kind_of(prompt) for t in ids) / len(ids)


def kind_of(prompt: Sequence[int]) -> int:
    """The kind of the right tokens."""
    return (prompt[-1] + prompt[0]) % KINDS


def begin(folder: Path, **settings: Any) -> Learner:
    """A learner on a folder's policy."""
    config = LearnerConfig.model_validate(SETTINGS | settings)
    return Learner(folder, config, temperature=1.0, keep_versions=0)


def batch_of(
    learner: Learner, domains: Sequence[str], draw: random.Random
) -> tuple[list[TrainSample], float]:
    """Groups of the domains in turn, of the present version, with advantages of the rewards, and their mean
    reward."""
    named = [domains[number % len(domains)] for number in range(GROUPS)]
    prompts = [prompt_of(domain, draw) for domain in named]
    answers = written(learner, [p for p in prompts for _ in range(MEMBERS)])
    samples: list[TrainSample] = []
    means: list[float] = []
    for number, (domain, prompt) in enumerate(zip(named, prompts, strict=True)):
        group = answers[number * MEMBERS : (number + 1) * MEMBERS]
        rewards = [reward_of(prompt, ids) for ids, _ in group]
        means += rewards
        for member, ((ids, logprobs), a) in enumerate(zip(group, grpo(rewards), strict=True)):
            id = f"{number}/{member}"
            one = sample_of(id, (*prompt, *ids), logprobs, learner.version)
            own = tuple(a if m else 0.0 for m in one.loss_mask)
            samples.append(replace(one, env=domain, advantages=own))
    return samples, statistics.fmean(means)


def heldout(learner: Learner, domain: str) -> float:
    """The mean reward of HELDOUT tasks that are the same each time, one answer each."""
    draw = random.Random(f"heldout/{domain}")
    prompts = [prompt_of(domain, draw) for _ in range(HELDOUT)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        answers = written(learner, prompts)
    rewards = [reward_of(p, ids) for p, (ids, _) in zip(prompts, answers, strict=True)]
    return statistics.fmean(rewards)


def mean_heldout(learner: Learner, domains: Sequence[str] = DOMAINS) -> float:
    """The mean over domains of the held-out reward."""
    return statistics.fmean(heldout(learner, domain) for domain in domains)


def train(learner: Learner, domains: Sequence[str], steps: int, seed: int) -> None:
    """So many learner steps on fresh batches."""
    draw = random.Random(f"train/{seed}")
    torch.manual_seed(seed)
    for _ in range(steps):
        learner.step(batch_of(learner, domains, draw)[0])


def cold_start(folder: Path, scratch: Path, updates: int, seed: int) -> None:
    """Write a new policy that has imitated right answers of all domains for a while."""
    text = [" ".join(str(n) for n in range(900))] * 20
    init_checkpoint(scratch, family="qwen3_moe", preset="tiny", corpus=text, seed=seed)
    learner = begin(scratch, optim={"lr": 2e-3})
    draw = random.Random(f"cold start/{seed}")
    for _ in range(updates):
        rows: list[TrainSample] = []
        for number in range(64):
            prompt = prompt_of(DOMAINS[number % 3], draw)
            right = range(kind_of(prompt), ALPHABET, KINDS)
            ids = [
                draw.choice(right if draw.random() < 0.4 else range(ALPHABET))
                for _ in range(ANSWER)
            ]
            rows.append(sample_of(str(number), (*prompt, *ids), [0.0] * ANSWER, 0))
        learner.sft_step(rows)
    save(learner, folder, scratch)


def save(learner: Learner, folder: Path, tokenizer: Path) -> None:
    """Write a policy's folder, with the tokenizer of another one."""
    learner.save(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer / name).read_bytes())
