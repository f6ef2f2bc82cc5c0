"""Learning curves of the objectives on one small task, in one process: who needs how many steps.

    python benchmarks/objectives.py [--only longcat --only grpo] [--steps 40] [--seeds 3] [--stale 1] [--json
    FILE]

A tiny Qwen3-MoE with random weights answers a prompt of six tokens with four of its own; the reward is the
share of these whose id is of the prompt's kind (its last token modulo 4), which a policy that knows nothing
gets at a quarter of them. 16 prompts, eight answers each per step; the prompts are new in every step.
`--stale 1` trains on answers of the version before, as a run in mode `in_flight` does. The figures say what
an objective does with the same samples and the same learning rate; they are no ranking for large policies.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainer.advantage import group_advantage
from trainer.batch import pack
from trainer.config import LearnerConfig
from trainer.learner import Learner
from trainer.loss import LOSSES
from trainer.sample import TrainSample
from trainer.small.init_model import init_checkpoint

VOCABULARY, PROMPT, ANSWER, KINDS = 400, 6, 4, 4
GROUPS, MEMBERS = 16, 8
# What is measured besides every loss with its usual settings.
VARIANTS: dict[str, dict[str, Any]] = {
    "grpo, 4 mini-batches": {"loss": {"kind": "grpo"}, "updates": {"mini_batches": 4}},
    "grpo, 4 mini-batches, 2 epochs": {
        "loss": {"kind": "grpo"},
        "updates": {"mini_batches": 4, "epochs": 2},
    },
    "grpo, kl k3 0.01": {"loss": {"kind": "grpo", "kl": {"weight": 0.01, "estimator": "k3"}}},
    "grpo, kl k1 0.01 in the reward": {
        "loss": {"kind": "grpo", "kl": {"weight": 0.01, "estimator": "k1", "place": "reward"}}
    },
    "dapo, entropy 0.01": {"loss": {"kind": "dapo", "entropy_weight": 0.01}},
    "dapo, reinforce_pp_baseline": {"loss": {"kind": "dapo"}, "advantage": "reinforce_pp_baseline"},
}


def setups() -> dict[str, dict[str, Any]]:
    """Every loss, and the variants, by name."""
    return {name: {"loss": {"kind": name}} for name in LOSSES} | VARIANTS


@torch.no_grad()
def written(
    learner: Learner, prompts: Sequence[tuple[int, ...]]
) -> list[tuple[list[int], list[float]]]:
    """An answer to each prompt with the log-probs of its tokens."""
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    for _ in range(ANSWER):
        rows = [(*p, *ids, 0) for p, (ids, _) in zip(prompts, found, strict=True)]
        samples = [_sample("", row, len(row) - 1, (0.0,), 0) for row in rows]
        batch = pack(samples, range(len(rows)), learner.device)
        learner.scorer(batch)
        model: Any = learner.model
        hidden_TD = model.model.norm(learner.scorer.before_norm[0])[0]
        logprobs_NV = model.lm_head(hidden_TD[batch.source_N]).float().log_softmax(-1)
        drawn_N = torch.multinomial(logprobs_NV.exp(), 1)[:, 0]
        chosen_N = logprobs_NV.gather(1, drawn_N[:, None])[:, 0]
        told = zip(batch.sample_N.tolist(), drawn_N.tolist(), chosen_N.tolist(), strict=True)
        for index, token, logprob in told:
            found[index][0].append(token)
            found[index][1].append(logprob)
    return found


def _sample(
    id: str, tokens: Sequence[int], prompt: int, logprobs: Sequence[float], version: int
) -> TrainSample:
    mask = (False,) * prompt + (True,) * (len(tokens) - prompt)
    none = (0.0,) * prompt
    versions = tuple(version if m else -1 for m in mask)
    return TrainSample(
        id, "kinds", tuple(tokens), mask, (*none, *logprobs), (0.0,) * len(mask), versions
    )


def played(learner: Learner, advantage: str, rng: random.Random) -> tuple[list[TrainSample], float]:
    """A batch of the present version, and its mean reward."""
    prompts = [tuple(rng.randrange(VOCABULARY) for _ in range(PROMPT)) for _ in range(GROUPS)]
    answers = written(learner, [p for p in prompts for _ in range(MEMBERS)])
    of_group = group_advantage(advantage)
    samples: list[TrainSample] = []
    means: list[float] = []
    for number, prompt in enumerate(prompts):
        group = answers[number * MEMBERS : (number + 1) * MEMBERS]
        rewards = [sum(t % KINDS == prompt[-1] % KINDS for t in ids) / ANSWER for ids, _ in group]
        means += rewards
        advantages = of_group(rewards) if of_group else [0.0] * MEMBERS
        for member, ((ids, logprobs), reward, a) in enumerate(
            zip(group, rewards, advantages, strict=True)
        ):
            id = f"{number}/{member}"
            sample = _sample(id, (*prompt, *ids), PROMPT, logprobs, learner.version)
            own = tuple(a if m else 0.0 for m in sample.loss_mask)
            samples.append(replace(sample, advantages=own, reward=reward))
    return samples, statistics.fmean(means)


def curve(folder: Path, setup: dict[str, Any], *, steps: int, seed: int, stale: int) -> list[float]:
    """Mean reward of each step's answers, before its updates."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    values = {"threads": 1, "record_tokens": False, "optim": {"lr": 1e-3}, **setup}
    values["loss"] = {"max_completion_tokens": ANSWER, **setup["loss"]}
    config = LearnerConfig.model_validate(values)
    learner = Learner(folder, config, temperature=1.0, keep_versions=stale)
    waiting: list[list[TrainSample]] = []
    rewards: list[float] = []
    for _ in range(steps):
        batch, mean = played(learner, config.advantage, rng)
        rewards.append(mean)
        waiting.append(batch)
        if len(waiting) > stale:
            learner.step(waiting.pop(0))
    return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description="Learning curves of the objectives.")
    parser.add_argument("--only", choices=tuple(setups()), action="append")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stale", type=int, default=0, choices=(0, 1))
    parser.add_argument("--json", type=Path, help="write the curves to this file, too")
    given = parser.parse_args()
    text = [" ".join(str(n) for n in range(900))] * 20
    marks = [n for n in (1, 5, 10, 20, 40, 80, 160) if n <= given.steps]
    print(f"| objective | {' | '.join(f'step {n}' for n in marks)} |")
    print("|---" * (1 + len(marks)) + "|")
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        init_checkpoint(folder, family="qwen3_moe", preset="tiny", corpus=text, seed=1)
        for label in given.only or setups():
            setup = setups()[label]
            found[label] = [
                curve(folder, setup, steps=given.steps, seed=seed, stale=given.stale)
                for seed in range(given.seeds)
            ]
            means = [statistics.fmean(one[n - 1] for one in found[label]) for n in marks]
            print(f"| {label} | {' | '.join(f'{m:.2f}' for m in means)} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
