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
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from envs.builtin.calculator import Calculator, CalculatorConfig
from envs.env import Task
from envs.message import Message
from envs.session import EnvSession, StepResult
from rl.cold_start import first_checkpoint
from rl.config import RunConfig
from rollout.renderer import Renderer
from rollout.tool_format import MalformedCall
from trainer.advantage import GROUP_ADVANTAGES
from trainer.loss import objective
from trainer.loss_inputs import LossInputs
from trainer.optimizer import Optimizer
from trainer.sample import TrainSample

SETTINGS: dict[str, Any] = {
    "name": "minimal",
    "model": {"init": {"family": "longcat_flash", "preset": "tiny"}},
    "env": [{"id": "calculator", "config": {"largest": 9}}],
    "sft": {  # demonstrations by an expert that errs: the first policy is half good
        "demonstrations": 200,
        "steps": 100,
        "batch_size": 16,
        "slip": 0.25,
        "optim": {"lr": 2e-3, "warmup_steps": 20, "decay_steps": 120},
    },
    "batch": {"groups": 8, "group_size": 8},
    "episode": {"max_turns": 3, "max_completion_tokens": 24, "max_tokens": 128},
    "learner": {"loss": {"kind": "longcat"}, "optim": {"lr": 3e-4, "warmup_steps": 2}},
}


@dataclass
class Trajectory:
    """One episode's tokens, one entry per token in each list. In the run: `rollout/trajectory.py`."""

    session: EnvSession
    ids: list[int]
    mask: list[bool]  # True where the policy wrote the token: only there it learns
    logprobs: list[float]  # of the tokens that it wrote, when it wrote them
    done: bool = False
    reward: float = 0.0

    def append(self, ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Add what the environment said, or, with log-probs, what the policy wrote."""
        self.ids += ids
        self.mask += [logprobs is not None] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)


def play(policy: Any, renderer: Renderer, tasks: Sequence[Task], c: RunConfig) -> list[Trajectory]:
    """Play one episode per task, all of them turn by turn. In the run: `rollout/episode.py`."""
    trajectories: list[Trajectory] = []
    for task in tasks:
        environment = Calculator(CalculatorConfig(**c.env[0].config))
        trajectory = Trajectory(EnvSession(environment, c.env[0].deadlines.record), [], [], [])
        opening = asyncio.run(trajectory.session.open(task))
        trajectory.append(renderer.prompt(opening.messages, opening.tools))
        trajectories.append(trajectory)
    for _ in range(c.episode.max_turns):
        playing = [t for t in trajectories if not t.done]
        if not playing:
            break
        answers = generate(policy, [t.ids for t in playing], renderer.eos_ids[0], c)
        for trajectory, (ids, logprobs) in zip(playing, answers, strict=True):
            trajectory.append(ids, logprobs)  # the ids themselves: text is never tokenized again
            if ids[-1] not in renderer.eos_ids:
                trajectory.done = True  # cut off at the length limit
                continue
            result = answer(trajectory.session, renderer, ids)
            trajectory.done = result.done
            if not result.done:
                trajectory.append(renderer.suffix(result.messages, ids))
    for trajectory in trajectories:  # in the run: reward/score.py adds judges
        trajectory.reward = sum(asyncio.run(trajectory.session.score()).values())
        asyncio.run(trajectory.session.close())
    return trajectories


def answer(session: EnvSession, renderer: Renderer, ids: Sequence[int]) -> StepResult:
    """Give the environment what the policy wrote, as text and tool calls, and return its answer."""
    try:
        return asyncio.run(session.step(*renderer.parse(ids)))
    except MalformedCall as error:  # the policy's fault: it is told, and plays on
        return StepResult((Message("tool", f"error: {error}"),), done=False)


@torch.no_grad()
def generate(
    policy: Any, prompts: Sequence[Sequence[int]], end: int, c: RunConfig
) -> list[tuple[list[int], list[float]]]:
    """Sample one turn for each prompt: its ids and their log-probs. In the run: `rollout/vllm_engine.py`."""
    width = max(map(len, prompts))
    left = [width - len(p) for p in prompts]
    found = policy.generate(
        torch.tensor([[end] * n + [*p] for n, p in zip(left, prompts, strict=True)]),
        attention_mask=torch.tensor([[0] * n + [1] * (width - n) for n in left]),
        max_new_tokens=c.episode.max_completion_tokens,
        do_sample=True,
        temperature=c.sampling.temperature,
        top_k=0,
        eos_token_id=end,
        pad_token_id=end,
        output_logits=True,
        return_dict_in_generate=True,
    )
    written = found.sequences[:, width:]
    logits = torch.stack(found.logits, 1).float() / c.sampling.temperature
    logprobs = logits.log_softmax(-1).gather(-1, written[..., None])[..., 0].tolist()
    lengths = [ids.index(end) + 1 if end in ids else len(ids) for ids in written.tolist()]
    return [(written[i, :n].tolist(), logprobs[i][:n]) for i, n in enumerate(lengths)]


def samples_of(group: Sequence[Trajectory], name: str, version: int) -> list[TrainSample]:
    """Turn the trajectories of one task into samples. In the run: `rl/samples/samples.py`.

    A group in which all did equally well teaches nothing, and gives none.
    """
    rewards = [t.reward for t in group]
    if len(set(rewards)) == 1:
        return []
    return [
        TrainSample(
            id=f"{name}/{i}",
            env="calculator",
            token_ids=tuple(t.ids),
            loss_mask=tuple(t.mask),
            rollout_logprobs=tuple(t.logprobs),
            advantages=tuple(advantage * m for m in t.mask),
            versions=tuple(version if m else -1 for m in t.mask),
            reward=t.reward,
        )
        for i, (t, advantage) in enumerate(
            zip(group, GROUP_ADVANTAGES["grpo"](rewards), strict=True)
        )
    ]


def logprobs_of(policy: Any, samples: Sequence[TrainSample], temperature: float) -> Tensor:
    """Log-probs of all tokens that the policy wrote, (N,). In the run: `trainer/scorer.py`, unpadded."""
    width = max(len(s.token_ids) for s in samples)
    ids = torch.tensor([[*s.token_ids, *[0] * (width - len(s.token_ids))] for s in samples])
    mask = torch.tensor([[*s.loss_mask, *[False] * (width - len(s.loss_mask))] for s in samples])
    logits = policy(input_ids=ids, use_cache=False).logits[:, :-1].float() / temperature
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0][mask[:, 1:]]


def loss_of(policy: Any, samples: Sequence[TrainSample], c: RunConfig) -> Tensor:
    """The loss of a batch that the present version wrote. In the run: `trainer/learner.py`."""

    def written(values: str) -> list[Any]:
        pairs = (zip(getattr(s, values), s.loss_mask, strict=True) for s in samples)
        return [value for value, learn in itertools.chain(*pairs) if learn]

    lengths = torch.tensor([s.num_policy_tokens for s in samples])
    sample_N = torch.arange(len(samples)).repeat_interleave(lengths)
    logprobs_N = logprobs_of(policy, samples, c.sampling.temperature)
    inputs = LossInputs(
        learner_logprobs_N=logprobs_N,
        behaviour_logprobs_N=logprobs_N.detach(),  # of the version that wrote them: this one
        proximal_logprobs_N=logprobs_N.detach(),
        rollout_logprobs_N=torch.tensor(written("rollout_logprobs")),
        advantages_N=torch.tensor(written("advantages")),
        sample_N=sample_N,
        sample_tokens_N=lengths[sample_N],
        num_samples=len(samples),
        num_tokens=int(lengths.sum()),
    )
    return objective(inputs, c.learner.loss)[0]


def train(checkpoint: str, c: RunConfig) -> list[float]:
    """The loop: play, compare, update. In the run: `rl/loop/run.py`. Returns the mean reward per step."""
    torch.manual_seed(c.seed)
    policy = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    renderer = Renderer(checkpoint, c.episode.tool_format)
    optimizer = Optimizer(policy, c.learner.optim, torch.float32)
    tasks = Calculator(CalculatorConfig(**c.env[0].config)).tasks("train", c.seed + 1)
    means: list[float] = []
    for version in range(c.steps):
        batch = list(itertools.islice(tasks, c.batch.groups))  # in the run: rl/tasks/task_source.py
        size = c.batch.group_size
        played = play(policy, renderer, [task for task in batch for _ in range(size)], c)
        samples: list[TrainSample] = []
        for index in range(len(batch)):
            group = played[index * size : (index + 1) * size]
            samples += samples_of(group, f"{version}/{index}", version)
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
    first, _ = first_checkpoint(config, lambda stage, step, _, loss: None)
    train(first, config)
