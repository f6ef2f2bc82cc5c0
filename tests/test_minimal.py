"""docs/minimal.py: its gradient is the learner's, its samples keep their tokens, and it learns."""

import importlib.util
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rl.config import RunConfig
from rollout.renderer import Renderer
from trainer.learner import Learner
from trainer.sample import TrainSample
from trainer.small.init_model import init_checkpoint

FILE = Path(__file__).parent.parent / "docs" / "minimal.py"
SPEC = importlib.util.spec_from_file_location("minimal", FILE)
assert SPEC is not None and SPEC.loader is not None
minimal = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(minimal)


def settings(**changes) -> RunConfig:
    return RunConfig.model_validate({**minimal.SETTINGS, **changes})


def sample(index: int, rng: random.Random) -> TrainSample:
    """Tokens of two turns, with an engine's log-probs some way off the learner's."""
    turns = [False] * rng.randint(3, 9) + [True] * rng.randint(2, 12)
    mask = tuple(turns + [False] * rng.randint(1, 5) + [True] * rng.randint(1, 9))
    advantage = rng.choice([-1.0, 0.5, 2.0])
    return TrainSample(
        id=str(index),
        env="calculator",
        token_ids=tuple(rng.randrange(20, 300) for _ in mask),
        loss_mask=mask,
        rollout_logprobs=tuple(-rng.uniform(4, 8) if m else 0.0 for m in mask),
        advantages=tuple(advantage if m else 0.0 for m in mask),
        versions=tuple(0 if m else -1 for m in mask),
    )


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("policy")
    corpus = ["7 plus 8 ? add a b 15 subtract multiply times minus less by"]
    init_checkpoint(folder, family="longcat_flash", preset="tiny", corpus=corpus, seed=3)
    return str(folder)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["longcat", "grpo", "gspo"])
def test_the_gradient_is_the_learners(policy, kind, monkeypatch):
    config = settings(learner={"loss": {"kind": kind}, "record_tokens": False})
    samples = [sample(i, random.Random(i)) for i in range(6)]
    plain = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    minimal.loss_of(plain, samples, config).backward()
    learner = Learner(policy, config.learner, temperature=1.0, keep_versions=0)
    found = {}

    def note() -> float:
        for name, p in learner.model.named_parameters():
            found[name] = torch.zeros_like(p) if p.grad is None else p.grad.clone()
        return 0.0

    monkeypatch.setattr(learner.optimizer, "clip", note)
    learner.step(samples)
    wanted = dict(plain.named_parameters())
    assert found.keys() == wanted.keys()
    largest = max(float(p.grad.abs().max()) for p in wanted.values() if p.grad is not None)
    assert largest > 0
    for name, p in wanted.items():
        gradient = torch.zeros_like(p) if p.grad is None else p.grad
        # transformers also holds zero-computation experts in this tensor; nothing uses those rows.
        ours, unused = gradient.split([len(found[name]), len(gradient) - len(found[name])])
        torch.testing.assert_close(found[name], ours, rtol=1e-3, atol=1e-5 * largest)
        assert not unused.any()


def test_a_trajectory_is_what_was_written_token_by_token(policy):
    config = settings()
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    torch.manual_seed(0)
    tasks = minimal.environment(config).tasks("train", 0)
    renderer = Renderer(policy, config.model.format)
    [one, other] = minimal.play(model, renderer, [next(tasks), next(tasks)], config)
    for trajectory in (one, other):
        assert len(trajectory.ids) == len(trajectory.mask) == len(trajectory.logprobs)
        assert any(trajectory.mask) and not trajectory.mask[0]
        assert [p < 0 for p in trajectory.logprobs] == trajectory.mask
    one.reward, other.reward = 1.0, 0.0
    good, bad = minimal.samples_of([one, other], "0/0", 0)
    assert max(good.advantages) > 0 > min(bad.advantages)
    # Behaviour is the present version, and the engine is the policy itself: all ratios and weights are 1.
    loss = minimal.loss_of(model, [good, bad], config)
    length = config.learner.loss.max_completion_tokens
    wanted = -(sum(good.advantages) + sum(bad.advantages)) / (2 * length)
    assert loss.item() == pytest.approx(wanted, abs=1e-4)


def test_a_turn_ends_at_any_of_the_end_tokens(policy):
    config = settings(episode={"max_turns": 1, "max_completion_tokens": 24, "max_tokens": 128})
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    torch.manual_seed(1)
    ends = tuple(range(0, 40))
    turns = minimal.generate(model, [[50, 51], [60]] * 8, ends, config)
    last = [ids[-1] for ids, _ in turns if len(ids) < 24]
    assert len(set(last)) > 1 and set(last) <= set(ends)
    for ids, logprobs in turns:
        assert not set(ids[:-1]) & set(ends) and len(ids) == len(logprobs)


def test_a_group_without_variance_gives_no_sample(policy):
    both = [minimal.Trajectory(None, [1, 2], [False, True], [0.0, -1.0], reward=1.0)] * 2
    assert minimal.samples_of(both, "0/0", 0) == []


@pytest.mark.slow
def test_the_loop_raises_the_reward(policy, monkeypatch):
    """A random policy of one short turn, paid for the share of even ids among its tokens."""
    play = minimal.play

    def paid(*arguments):
        trajectories = play(*arguments)
        for t in trajectories:
            own = [token for token, m in zip(t.ids, t.mask, strict=True) if m]
            t.reward = sum(token % 2 == 0 for token in own) / len(own)
        return trajectories

    monkeypatch.setattr(minimal, "play", paid)
    config = settings(
        steps=7,
        batch={"groups": 4, "group_size": 8},
        episode={"max_turns": 1, "max_completion_tokens": 8, "max_tokens": 128},
        learner={"loss": {"kind": "longcat"}, "optim": {"lr": 2e-3}},
    )
    means = minimal.train(policy, config)
    assert (means[-2] + means[-1]) / 2 > means[0] + 0.1
