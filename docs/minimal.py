"""The algorithm of a run in one process, one thing after the other: read it before the distributed system.

    python docs/minimal.py 20          # a cold start of about a minute, then a line per step

A small policy plays the calculator, every task several times. The advantage of a trajectory is its reward
relative to the others of its task; the loss raises the log-probs of tokens with a positive advantage; one
optimizer step makes the next policy version. `dorado train` does no more than that, with many engines,
environments and versions at once. Comments name the module that does each part there.

Left out, because nothing is asynchronous here: the version window (`rollout/window.py`), the weights of
past versions (`trainer/learner.py`), weight sync (`rl/fleet/weight_sync.py`), the ledger
(`rl/samples/ledger.py`) and the classes of faults (`rollout/episode.py`): a fault ends this program.
"""

import asyncio
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from envs.builtin.calculator import Calculator, CalculatorConfig
from envs.env import Deadlines, Task
from envs.message import Message, ToolSchema
from envs.session import EnvSession, StepResult
from rl.cold_start import first_checkpoint
from rl.config import RunConfig
from rollout.renderer import Renderer
from trainer.advantage import GROUP_ADVANTAGES
from trainer.loss import objective
from trainer.loss_inputs import LossInputs
from trainer.optimizer import Optimizer
from trainer.sample import TrainSample

SETTINGS: dict[str, Any] = {
    "name": "minimal",
    "model": {"init": {"family": "longcat_flash", "preset": "tiny"}},
    "env": [{"id": "calculator", "config": {"largest": 9}}],
    # Demonstrations by an expert that errs at a quarter of its calls: the first policy is half good.
    "sft": {"demonstrations": 200, "slip": 0.25, "steps": 100, "batch_size": 16}
    | {"optim": {"lr": 2e-3, "warmup_steps": 20, "decay_steps": 120}},
    "batch": {"groups": 12, "group_size": 8},
    "episode": {"max_turns": 3, "max_completion_tokens": 24, "max_tokens": 128},
    "learner": {"loss": {"kind": "longcat"}, "optim": {"lr": 2e-4, "warmup_steps": 2}},
}


def environment(c: RunConfig) -> Calculator:
    """The world to play in. In the run: on a host of its own, `rl/actors/env_host.py`."""
    return Calculator(CalculatorConfig(**c.env[0].config))


@dataclass
class Trajectory:
    """One episode's tokens, one entry per token in each list. In the run: `rollout/trajectory.py`."""

    session: EnvSession
    tools: tuple[ToolSchema, ...] = ()
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)  # True where the policy wrote the token
    logprobs: list[float] = field(default_factory=list)  # of its own tokens, as it wrote them
    done: bool = False
    reward: float = 0.0

    def hear(self, ids: Sequence[int]) -> None:
        self.ids += ids
        self.mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)

    def write(self, ids: Sequence[int], logprobs: Sequence[float]) -> None:
        self.ids += ids
        self.mask += [True] * len(ids)
        self.logprobs += logprobs


def play(policy: Any, renderer: Renderer, tasks: Sequence[Task], c: RunConfig) -> list[Trajectory]:
    """Play one episode per task, all of them turn by turn. In the run: `rollout/episode.py`."""
    trajectories: list[Trajectory] = []
    for task in tasks:
        trajectories.append(Trajectory(EnvSession(environment(c), Deadlines())))
        opening = asyncio.run(trajectories[-1].session.open(task))
        trajectories[-1].tools = opening.tools
        trajectories[-1].hear(renderer.prompt(opening.messages, opening.tools))
    for _ in range(c.episode.max_turns):
        playing = [t for t in trajectories if not t.done]
        turns = generate(policy, [t.ids for t in playing], renderer.eos_ids, c)
        for trajectory, (ids, logprobs) in zip(playing, turns, strict=True):
            trajectory.write(ids, logprobs)  # the ids themselves: text is never tokenized again
            if ids[-1] not in renderer.eos_ids:
                trajectory.done = True  # cut off at the length limit
                continue
            written = renderer.read(ids, trajectory.tools)
            if written.malformed:  # the policy's own fault: it is told, and plays on
                result = StepResult((Message("tool", f"error: {written.malformed}"),), done=False)
            else:
                act = trajectory.session.step(written.answer, written.calls)
                result = asyncio.run(act)
            trajectory.done = result.done
            trajectory.hear(renderer.suffix(result.messages, ids) if not result.done else [])
    for trajectory in trajectories:  # in the run: reward/score.py, which adds judges
        trajectory.reward = sum(asyncio.run(trajectory.session.score()).values())
    return trajectories


@torch.no_grad()
def generate(
    policy: Any, prompts: Sequence[Sequence[int]], ends: Sequence[int], c: RunConfig
) -> list[tuple[list[int], list[float]]]:
    """Sample a turn for each prompt: ids and their log-probs. In the run: `rollout/vllm_engine.py`."""
    if not prompts:
        return []
    width, pad = max(map(len, prompts)), ends[0]
    left = [width - len(prompt) for prompt in prompts]
    found = policy.generate(
        torch.tensor([[pad] * n + [*p] for n, p in zip(left, prompts, strict=True)]),
        attention_mask=torch.tensor([[0] * n + [1] * (width - n) for n in left]),
        max_new_tokens=c.episode.max_completion_tokens,
        do_sample=True,
        temperature=c.sampling.temperature,
        top_k=0,
        eos_token_id=list(ends),  # all at which an engine stops
        pad_token_id=pad,
        output_logits=True,
        return_dict_in_generate=True,
    )
    written = found.sequences[:, width:]
    logits = torch.stack(found.logits, 1).float() / c.sampling.temperature
    logprobs = logits.log_softmax(-1).gather(-1, written[..., None])[..., 0].tolist()
    lengths = [
        next((n for n, id in enumerate(ids, 1) if id in ends), len(ids)) for ids in written.tolist()
    ]
    return [(written[i, :n].tolist(), logprobs[i][:n]) for i, n in enumerate(lengths)]


def samples_of(group: Sequence[Trajectory], name: str, version: int) -> list[TrainSample]:
    """Make samples of one task's trajectories. In the run: `rl/samples/samples.py`.

    A group without variance teaches nothing, and gives none.
    """
    rewards = [t.reward for t in group]
    advantages = GROUP_ADVANTAGES["grpo"](rewards)
    return [
        TrainSample(
            id=f"{name}/{i}",
            env="calculator",
            token_ids=tuple(t.ids),
            loss_mask=tuple(t.mask),
            rollout_logprobs=tuple(t.logprobs),
            advantages=tuple(advantage * learned for learned in t.mask),
            versions=tuple(version if learned else -1 for learned in t.mask),
            reward=t.reward,
        )
        for i, (t, advantage) in enumerate(zip(group, advantages, strict=True))
        if len(set(rewards)) > 1
    ]


def loss_of(policy: Any, samples: Sequence[TrainSample], c: RunConfig) -> Tensor:
    """Loss of a batch that the present version wrote. In the run: `trainer/learner.py`, without padding.

    Shapes: S samples, T tokens of the longest, N tokens that the policy wrote.
    """
    longest = max(len(s.token_ids) for s in samples)

    def padded(rows: Iterable[Sequence[float]], dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], dtype=dtype)

    ids_ST = padded((s.token_ids for s in samples), torch.long)
    mask_ST = padded((s.loss_mask for s in samples), torch.bool)
    logits_STV = policy(input_ids=ids_ST, use_cache=False).logits[:, :-1].float()
    scores_STV = (logits_STV / c.sampling.temperature).log_softmax(-1)  # trainer/scorer.py
    logprobs_N = scores_STV.gather(-1, ids_ST[:, 1:, None])[..., 0][mask_ST[:, 1:]]
    lengths_S = mask_ST.sum(1)
    sample_N = torch.arange(len(samples)).repeat_interleave(lengths_S)
    inputs = LossInputs(
        learner_logprobs_N=logprobs_N,
        behaviour_logprobs_N=logprobs_N.detach(),  # of the version that wrote them: this one
        proximal_logprobs_N=logprobs_N.detach(),
        rollout_logprobs_N=padded((s.rollout_logprobs for s in samples), torch.float)[mask_ST],
        advantages_N=padded((s.advantages for s in samples), torch.float)[mask_ST],
        sample_N=sample_N,
        sample_tokens_N=lengths_S[sample_N],
        num_samples=len(samples),
        num_tokens=int(lengths_S.sum()),
        max_completion_tokens=c.learner.loss.max_completion_tokens,
    )
    return objective(inputs, c.learner.loss)[0]


def train(checkpoint: str, c: RunConfig) -> list[float]:
    """The loop: play, compare, update; returns the mean reward of each step. In the run: `rl/loop/run.py`."""
    torch.manual_seed(c.seed)
    policy = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    renderer = Renderer(checkpoint, c.model.format)
    optimizer = Optimizer(policy, c.learner.optim, torch.float32)
    tasks = environment(c).tasks("train", c.seed + 1)  # in the run: rl/tasks/task_source.py
    size, means = c.batch.group_size, []
    for version in range(c.steps):
        batch = [task for task in islice(tasks, c.batch.groups) for _ in range(size)]
        played = play(policy, renderer, batch, c)
        groups = [played[i : i + size] for i in range(0, len(played), size)]
        samples = [
            s for i, g in enumerate(groups) for s in samples_of(g, f"{version}/{i}", version)
        ]
        if samples:
            loss_of(policy, samples, c).backward()
            optimizer.clip()
            optimizer.step()  # the next version, which plays at once
        means.append(sum(t.reward for t in played) / len(played))
        print(f"step {version + 1}/{c.steps}  reward {means[-1]:.2f}  samples {len(samples)}")
    return means


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    config = RunConfig.model_validate({**SETTINGS, "steps": steps})
    train(first_checkpoint(config, lambda *_: None)[0], config)
