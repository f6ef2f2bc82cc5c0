"""Learning curves of the objectives on one small task, in one process: who needs how many steps.

    python benchmarks/objectives.py [--part losses] [--only longcat --only grpo] [--seeds 3] [--json FILE]
        [--svg docs/images/objectives.svg]

A tiny Qwen3-MoE is asked with two tokens of sixteen and answers with four; the reward is the share of these
that are of the same kind (the id modulo 4) as the last one of the prompt. It begins with a short imitation of
answers that are right at 0.55 of their tokens, after which it gets 0.38 (a policy that knows the alphabet
alone: 0.25). 16 prompts with eight answers each make a step, at a learning rate of 5e-4 for all.

Parts: `losses` on answers of the present version, `stale` on those of the version before (as a run in mode
`in_flight` does), `advantages`, `updates`, `penalties`, and `corrections`, whose engine is another policy
than the learner's: each of its hidden states is off at random, and it samples and reports what it computes.

Prints a table of each part, and draws `losses` and `stale`. What FILE holds already is not measured again.
The figures say what an objective does with the same samples and the same learning rate; they are no ranking
for large policies.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from trainer.advantage import group_advantage
from trainer.batch import pack
from trainer.config import LearnerConfig
from trainer.correction import CORRECTIONS
from trainer.learner import Learner
from trainer.loss import LOSSES
from trainer.sample import TrainSample
from trainer.small.init_model import init_checkpoint

ALPHABET, KINDS, PROMPT, ANSWER = 16, 4, 2, 4
GROUPS, MEMBERS = 16, 8
RATE = 5e-4
TARGET = 0.8
MARKS = (1, 10, 20, 30, 40, 50)
Setup = dict[str, Any]
COLOURS = ("#1f6feb", "#d1570c")
PARTS = ("losses", "stale", "advantages", "updates", "penalties", "corrections")


@dataclass(frozen=True)
class Curve:
    """One run. rewards, entropies: the mean of each step's answers, before its updates. seconds: CPU seconds
    of the learner's part of a step. gap: mean difference of a token's log-prob between engine and learner."""

    rewards: list[float]
    entropies: list[float]
    seconds: float
    gap: float


def setups(part: str) -> dict[str, Setup]:
    """Settings of the learner that a part compares, by name."""
    losses = {name: {"loss": {"kind": name}} for name in LOSSES}
    if part == "losses":
        quick = {"kind": "ppo", "ppo": {"critic_lr": 1e-3}}
        return losses | {"ppo, critic_lr 1e-3": {"loss": quick}}
    if part == "stale":
        several = {"updates": {"mini_batches": 4, "epochs": 2}}
        one = {"decoupled_ppo, 4 mini-batches, 2 epochs": losses["decoupled_ppo"] | several}
        return {name: setup for name, setup in losses.items() if LOSSES[name].ratio} | one
    if part == "advantages":
        names = ("grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline")
        found: dict[str, Setup] = {
            name: {"loss": {"kind": "dapo"}, "advantage": name} for name in names
        }
        scaled = {"loss": {"kind": "dapo"}, "advantage": "dr_grpo", "normalise": "batch"}
        return found | {'dr_grpo, normalise = "batch"': scaled}
    if part == "updates":
        return {
            name: {"loss": {"kind": "grpo"}, "updates": updates}
            for name, updates in UPDATES.items()
        }
    if part == "penalties":
        return {name: {"loss": {"kind": "grpo", **loss}} for name, loss in PENALTIES.items()}
    return {name: {"loss": {"kind": "longcat", "correction": name}} for name in CORRECTIONS}


UPDATES: dict[str, dict[str, Any]] = {
    "1 update": {},
    "4 mini-batches": {"mini_batches": 4},
    "4 mini-batches, 2 epochs": {"mini_batches": 4, "epochs": 2},
    "the same, max_kl 0.05": {"mini_batches": 4, "epochs": 2, "max_kl": 0.05},
    "4 epochs": {"epochs": 4},
}
PENALTIES: dict[str, dict[str, Any]] = {
    "none": {},
    "kl k3 0.05": {"kl": {"weight": 0.05, "estimator": "k3"}},
    "kl k2 0.05": {"kl": {"weight": 0.05, "estimator": "k2"}},
    "kl k1 0.05 in the reward": {"kl": {"weight": 0.05, "estimator": "k1", "place": "reward"}},
    "kl k3 0.05, every = 10": {"kl": {"weight": 0.05, "estimator": "k3", "every": 10}},
    "entropy 0.01": {"entropy_weight": 0.01},
    "entropy 0.05": {"entropy_weight": 0.05},
}


@torch.no_grad()
def written(
    learner: Learner, prompts: Sequence[tuple[int, ...]], gap: float = 0.0
) -> list[tuple[list[int], list[float]]]:
    """An answer to each prompt with the log-probs of its tokens. gap: by how much hidden states are off."""
    found: list[tuple[list[int], list[float]]] = [([], []) for _ in prompts]
    for _ in range(ANSWER):
        rows = [(*p, *ids, 0) for p, (ids, _) in zip(prompts, found, strict=True)]
        samples = [_sample("", row, len(row) - 1, (0.0,), 0) for row in rows]
        batch = pack(samples, range(len(rows)), learner.device)
        learner.scorer(batch)
        model: Any = learner.model
        hidden_ND = model.model.norm(learner.scorer.before_norm[0])[0][batch.source_N]
        if gap:
            hidden_ND = hidden_ND * (1 + gap * torch.randn_like(hidden_ND))
        logprobs_NV = model.lm_head(hidden_ND).float().log_softmax(-1)
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


def played(
    learner: Learner, advantage: str, rng: random.Random, gap: float = 0.0
) -> tuple[list[TrainSample], float]:
    """A batch of the present version, and its mean reward."""
    prompts = [tuple(rng.randrange(ALPHABET) for _ in range(PROMPT)) for _ in range(GROUPS)]
    answers = written(learner, [p for p in prompts for _ in range(MEMBERS)], gap)
    of_group = group_advantage(advantage)
    samples: list[TrainSample] = []
    for number, prompt in enumerate(prompts):
        group = answers[number * MEMBERS : (number + 1) * MEMBERS]
        rewards = [sum(t % KINDS == prompt[-1] % KINDS for t in ids) / ANSWER for ids, _ in group]
        advantages = of_group(rewards) if of_group else [0.0] * MEMBERS
        for member, ((ids, logprobs), reward, a) in enumerate(
            zip(group, rewards, advantages, strict=True)
        ):
            id = f"{number}/{member}"
            sample = _sample(id, (*prompt, *ids), PROMPT, logprobs, learner.version)
            own = tuple(a if m else 0.0 for m in sample.loss_mask)
            samples.append(replace(sample, advantages=own, reward=reward))
    return samples, fmean(s.reward for s in samples)


def made_learner(folder: Path, setup: Setup, *, rate: float, keep_versions: int = 0) -> Learner:
    values = {"threads": 1, "record_tokens": False, "optim": {"lr": rate}, **setup}
    values["loss"] = {"max_completion_tokens": ANSWER, **setup.get("loss", {})}
    config = LearnerConfig.model_validate(values)
    return Learner(folder, config, temperature=1.0, keep_versions=keep_versions)


def cold_start(folder: Path) -> Path:
    """The policy that all curves begin with."""
    torch.manual_seed(0)
    rng = random.Random("cold start")
    text = [" ".join(str(n) for n in range(900))] * 20
    init_checkpoint(folder / "random", family="qwen3_moe", preset="tiny", corpus=text, seed=1)
    learner = made_learner(folder / "random", {}, rate=2e-3)
    for _ in range(100):
        samples: list[TrainSample] = []
        for _ in range(64):
            prompt = [rng.randrange(ALPHABET) for _ in range(PROMPT)]
            kind = range(prompt[-1] % KINDS, ALPHABET, KINDS)
            ids = [
                rng.choice(kind if rng.random() < 0.4 else range(ALPHABET)) for _ in range(ANSWER)
            ]
            samples.append(_sample("", (*prompt, *ids), PROMPT, (0.0,) * ANSWER, 0))
        learner.sft_step(samples)
    learner.save(folder / "policy")
    return folder / "policy"


def curve(policy: Path, setup: Setup, *, seed: int, stale: int, gap: float) -> Curve:
    """Train for as many steps as the table shows."""
    rng = random.Random(seed)
    learner = made_learner(policy, setup, rate=RATE, keep_versions=stale)
    torch.manual_seed(seed)  # after it: the first one of a process draws numbers of its own
    waiting: list[list[TrainSample]] = []
    rewards: list[float] = []
    entropies: list[float] = []
    gaps: list[float] = []
    seconds = 0.0
    for _ in range(MARKS[-1]):
        batch, mean = played(learner, learner.config.advantage, rng, gap)
        rewards.append(round(mean, 4))
        waiting.append(batch)
        if len(waiting) > stale:
            begun = time.process_time()
            metrics = learner.step(waiting.pop(0)).metrics
            seconds += time.process_time() - begun
            entropies.append(round(metrics["loss/entropy"], 4))
            gaps.append(metrics.get("parity/mean_abs_dlogp", 0.0))
    return Curve(rewards, entropies, seconds / len(entropies), fmean(gaps))


def smooth(values: Sequence[float], step: int) -> float:
    """The mean of the five steps up to this one, of fewer at the beginning."""
    return fmean(values[max(0, step - 5) : step])


def row(name: str, curves: Sequence[Curve]) -> str:
    """A line of the table: means over the seeds."""
    shown = [f"{fmean(smooth(c.rewards, mark) for c in curves):.2f}" for mark in MARKS]
    needed = [
        next((s for s in range(5, MARKS[-1] + 1) if smooth(c.rewards, s) >= TARGET), None)
        for c in curves
    ]
    steps = " ".join("-" if n is None else str(n) for n in needed)
    entropy = fmean(smooth(c.entropies, len(c.entropies)) for c in curves)
    seconds, gap = fmean(c.seconds for c in curves), fmean(c.gap for c in curves)
    return f"| {name} | {' | '.join(shown)} | {steps} | {entropy:.2f} | {seconds:.2f} | {gap:.1e} |"


def drawing(curves: dict[str, tuple[list[Curve], list[Curve]]]) -> str:
    """A panel for each loss: its curves on fresh batches, and on stale ones, as means over the seeds."""
    across, wide, high = 4, 190, 120
    panels: list[str] = []
    for number, (name, kinds) in enumerate(curves.items()):
        left, top = number % across * wide + 10, number // across * high + 30
        panels.append(f'<text x="{left}" y="{top - 6}">{name}</text>')
        for level in (0.0, TARGET, 1.0):
            y = top + 80 * (1 - level)
            panels.append(f'<path d="M{left} {y:.1f}h160" stroke="#ccc" stroke-dasharray="3"/>')
        for one, colour in zip(kinds, COLOURS, strict=True):
            points = [
                f"{left + 160 * step / MARKS[-1]:.1f},"
                f"{top + 80 * (1 - fmean(smooth(c.rewards, step) for c in one)):.1f}"
                for step in range(1, MARKS[-1] + 1)
                if one
            ]
            panels.append(f'<polyline points="{" ".join(points)}" stroke="{colour}" fill="none"/>')
    height = -(-len(curves) // across) * high + 30
    legend = "".join(
        f'<text x="{10 + 250 * n}" y="{height - 12}" fill="{colour}">{words}</text>'
        for n, (colour, words) in enumerate(
            zip(COLOURS, ("fresh batches", "a version old"), strict=True)
        )
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across * wide} {height}" font-size="13"'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'{head} font-family="sans-serif">{ground}{"".join(panels)}{legend}</svg>\n'


def measure(wanted: dict[str, Setup], found: dict[str, Curve], file: Path | None) -> None:
    """Add the curves that are wanted to those that were found."""
    with tempfile.TemporaryDirectory() as name:
        policy = cold_start(Path(name))
        for key, setup in wanted.items():
            part, label, seed = key.split(": ")
            stale, gap = int(part == "stale"), 0.2 * (part == "corrections")
            found[key] = curve(policy, setup, seed=int(seed), stale=stale, gap=gap)
            print(f"seed {seed}", row(f"{part}: {label}", [found[key]]), flush=True)
            if file:
                told = {key: asdict(one) for key, one in found.items()}
                file.write_text(json.dumps(told) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Learning curves of the objectives.")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--only", action="append", help="of these names alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="keep the curves in this file")
    parser.add_argument("--svg", type=Path, help="draw the losses' curves into this file")
    given = parser.parse_args()
    kept: dict[str, Any] = {}
    if given.json and given.json.exists():
        kept = json.loads(given.json.read_text(encoding="utf-8"))
    found = {key: Curve(**one) for key, one in kept.items()}

    def of(part: str, label: str) -> list[Curve]:
        keys = [f"{part}: {label}: {seed}" for seed in range(given.seeds)]
        return [found[key] for key in keys if key in found]

    compared = {part: setups(part) for part in given.part or PARTS}
    wanted = {
        f"{part}: {label}: {seed}": setup
        for seed in range(given.seeds)
        for part, named in compared.items()
        for label, setup in named.items()
        if not given.only or label in given.only
    }
    if missing := {key: setup for key, setup in wanted.items() if key not in found}:
        measure(missing, found, given.json)
    steps = " | ".join(f"step {n}" for n in MARKS)
    for part, named in compared.items():
        print(f"\n| {part} | {steps} | steps to {TARGET} | entropy | CPU s | gap |")
        print("|---" * (5 + len(MARKS)) + "|")
        for label in named:
            if curves := of(part, label):
                print(row(label, curves))
    if given.svg:
        shown = {name: (of("losses", name), of("stale", name)) for name in LOSSES}
        given.svg.write_text(drawing(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
