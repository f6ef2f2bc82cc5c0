"""The turn critic: values and gradients against a critic written out, and a learner that trains it."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import sample
from pydantic import ValidationError
from test_critic import as_written, flat
from test_shared_prefixes import groups
from torch import Tensor
from transformers import AutoModelForCausalLM

from trainer.batch import pack
from trainer.checkpoint_folder import CheckpointError
from trainer.config import LearnerConfig, LossConfig, OptimConfig
from trainer.critic_config import CriticConfig
from trainer.learner import Learner
from trainer.loss import PpoConfig
from trainer.sample import TrainSample
from trainer.turn_critic import turns_of

pytestmark = pytest.mark.heavy

WIDTH, LAYERS, HEADS = 8, 2, 2
TURN = CriticConfig(kind="turn", width=WIDTH, layers=LAYERS, heads=HEADS)
DETACHED = CriticConfig(kind="turn", width=WIDTH, layers=LAYERS, heads=HEADS, detach=True)
PPO = PpoConfig(gamma=0.9, lam=0.7, critic_lr=3e-3)
LENGTHS = (12, 31, 9, 40, 17)


def samples(version: int = 0) -> list[TrainSample]:
    rng = random.Random(4)
    rewards = (1.0, 0.0, -1.0, 0.5, 2.0)
    return [
        sample(f"s{i}", n, rng, version=version, reward=reward)
        for i, (n, reward) in enumerate(zip(LENGTHS, rewards, strict=True))
    ]


def learner(folder: Path, critic: CriticConfig = TURN, **config) -> Learner:
    settings = {
        "micro_batch_tokens": 128,
        "threads": 1,
        "loss": LossConfig(kind="ppo", ppo=PPO),
        "critic": critic,
        "optim": OptimConfig(lr=1e-2),
    }
    return Learner(
        folder, LearnerConfig(**{**settings, **config}), temperature=1.0, keep_versions=1
    )


def with_opinions(ours: Learner) -> Learner:
    """A critic whose head is not 0, so that every weight of it has a gradient."""
    torch.manual_seed(7)
    torch.nn.init.normal_(ours.scorer.critic.head.weight, std=0.3)
    torch.nn.init.constant_(ours.scorer.critic.head.bias, 0.2)
    return ours


# The critic written out: one sample, one turn, one token after the other.


def linear(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    return w[f"{name}weight"] @ x + w[f"{name}bias"]


def normed(x: Tensor, w: Mapping[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean()
    scaled = centred / (centred.square().mean() + 1e-5).sqrt()
    return scaled * w[f"{name}weight"] + w[f"{name}bias"]


def gru(rows: Sequence[Tensor], w: Mapping[str, Tensor]) -> Tensor:
    """Cho et al. 2014 (arXiv 1406.1078) in torch's form: the reset gate acts behind the product."""
    h = torch.zeros(WIDTH, dtype=torch.float64)
    for x in rows:
        of_x = w["within.weight_ih_l0"] @ x + w["within.bias_ih_l0"]
        of_h = w["within.weight_hh_l0"] @ h + w["within.bias_hh_l0"]
        reset = torch.sigmoid(of_x[:WIDTH] + of_h[:WIDTH])
        update = torch.sigmoid(of_x[WIDTH : 2 * WIDTH] + of_h[WIDTH : 2 * WIDTH])
        new = torch.tanh(of_x[2 * WIDTH :] + reset * of_h[2 * WIDTH :])
        h = (1 - update) * new + update * h
    return h


def attended(rows: Sequence[Tensor], w: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """Each row by those up to itself, head by head."""
    found, size = [], WIDTH // HEADS
    joint = [w[f"{name}in_proj_weight"] @ x + w[f"{name}in_proj_bias"] for x in rows]
    for k, own in enumerate(joint):
        heads = []
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            query = own[:WIDTH][part]
            keys = [x[WIDTH : 2 * WIDTH][part] for x in joint[: k + 1]]
            values = [x[2 * WIDTH :][part] for x in joint[: k + 1]]
            weights = torch.stack([query @ key / math.sqrt(size) for key in keys]).softmax(0)
            heads.append(sum(p * v for p, v in zip(weights, values, strict=True)))
        found.append(linear(torch.cat(heads), w, f"{name}out_proj."))
    return found


def position(k: int) -> Tensor:
    """Vaswani et al. 2017, section 3.5."""
    pairs = [(k / 10_000 ** (i / WIDTH)) for i in range(0, WIDTH, 2)]
    both = [f(angle) for angle in pairs for f in (math.sin, math.cos)]
    return torch.tensor(both, dtype=torch.float64)


def values_by_hand(hidden: Tensor, mask: Sequence[bool], w: Mapping[str, Tensor]) -> list[Tensor]:
    """The value at each policy token of one sample, in float64. hidden: (tokens, D)."""
    starts = [t for t in range(1, len(mask)) if mask[t] and not mask[t - 1]]
    said, after = [], 0
    for k, start in enumerate(starts):
        said.append(gru([linear(h, w, "narrow.") for h in hidden[after:start]], w) + position(k))
        after = start
    for layer in range(LAYERS):
        name = f"across.{layer}."
        looked = attended([normed(x, w, f"{name}norm1.") for x in said], w, f"{name}self_attn.")
        said = [x + y for x, y in zip(said, looked, strict=True)]
        for k, x in enumerate(said):
            inner = linear(normed(x, w, f"{name}norm2."), w, f"{name}linear1.")
            bent = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
            said[k] = x + linear(bent, w, f"{name}linear2.")
    found: list[Tensor] = []
    for start, x in zip(starts, said, strict=True):
        both = torch.cat((hidden[start - 1], normed(x, w, "norm.")))
        value = (w["head.weight"] * both).sum() + w["head.bias"][0]
        end = next((t for t in range(start, len(mask)) if not mask[t]), len(mask))
        found += [value] * (end - start)
    return found


def test_a_segment_is_what_a_state_adds_to_the_one_before():
    """Masks FFTTFT, FFT and FFF (longest first), in one micro-batch."""
    rng = random.Random(0)
    masks = ("..xx.x", "..x", "...")
    batch = []
    for i, mask in enumerate(masks):
        wrote = tuple(c == "x" for c in mask)
        batch.append(replace(sample(f"s{i}", len(mask), rng), loss_mask=wrote))
    turns = turns_of(pack(batch, range(3), torch.device("cpu")))
    assert (turns.begin_K.tolist(), turns.end_K.tolist()) == ([0, 2, 6], [1, 4, 7])
    assert (turns.of_N.tolist(), turns.counts) == ([0, 0, 1, 2], (2, 1))
    nothing = turns_of(pack(batch, [2], torch.device("cpu")))
    assert (nothing.counts, nothing.of_N.tolist()) == ((1,), [])


@pytest.mark.parametrize("beginning", ["apart", "shared"])
def test_values_and_gradients_are_those_of_the_critic_written_out(checkpoint, beginning):
    """The gradient of a sum of values by weights of both the critic and the trunk."""
    batch = samples()[:3] if beginning == "apart" else groups()[:4]
    ours = with_opinions(learner(checkpoint, micro_batch_tokens=4096))
    (packed,) = ours.passes.micro_batches(batch)
    assert (packed.copies_T is not None) == (beginning == "shared")
    scores = ours.passes.score(packed)
    factors = torch.linspace(-1, 1, len(scores.values_N)).double()
    (scores.values_N.double() * factors).sum().backward()

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    w = {n: p.detach().double().requires_grad_() for n, p in ours.scorer.critic.named_parameters()}
    wanted: list[Tensor] = []
    for index in packed.sample_N.unique_consecutive().tolist():
        ids = torch.tensor([batch[index].token_ids])
        hidden = model.model(input_ids=ids).last_hidden_state[0].double()
        wanted += values_by_hand(hidden, batch[index].loss_mask, w)
    by_hand = torch.stack(wanted)
    (by_hand * factors).sum().backward()

    assert torch.allclose(scores.values_N.double(), by_hand, atol=1e-5)
    for name, p in ours.scorer.critic.named_parameters():
        gap = (p.grad - w[name].grad).norm()
        assert gap <= 1e-4 * w[name].grad.norm() + 1e-6, name
    embedded = "model.embed_tokens.weight"
    trunk, plain = ours.model.get_parameter(embedded).grad, model.get_parameter(embedded).grad
    assert (trunk - plain).norm() <= 1e-4 * plain.norm() and plain.norm() > 0


@pytest.mark.parametrize("kind", ["linear", "turn"])
def test_a_detached_critic_leaves_the_trunk_to_the_policys_loss(checkpoint, kind):
    """Learners that differ in the weight of the value loss alone move the trunk alike, and the critic not."""
    trunks, heads = [], []
    for weight in (1e-9, 0.5):
        loss = LossConfig(kind="ppo", ppo=PpoConfig(value_weight=weight))
        critic = DETACHED if kind == "turn" else CriticConfig(detach=True)
        ours = learner(checkpoint, critic, loss=loss, optim=OptimConfig(lr=1e-2, max_grad_norm=1e9))
        head = ours.scorer.critic.head if kind == "turn" else ours.scorer.critic
        torch.nn.init.constant_(head.weight, 0.05)
        ours.step(as_written(ours, samples()))
        trunks.append(torch.cat([p.detach().flatten() for p in ours.model.parameters()]))
        heads.append(ours.optimizer.adam.state[head.weight]["exp_avg"].norm())
    assert torch.equal(*trunks)
    assert heads[1] > 1e6 * heads[0] > 0


def test_an_early_turn_is_seen_by_every_later_value_and_a_later_one_by_none_before(checkpoint):
    """The trunk's states are the same for both orders where they are exchanged behind it."""
    ours = with_opinions(learner(checkpoint))
    one = samples()[3]
    batch = pack([one], [0], torch.device("cpu"))
    turns = turns_of(batch)
    assert len(turns.counts) == 1 and turns.counts[0] > 3
    torch.manual_seed(1)
    hidden = torch.randn(len(one.token_ids), ours.model.config.hidden_size)
    before = ours.scorer.critic(hidden, batch)
    changed = hidden.clone()
    middle = slice(int(turns.begin_K[1]), int(turns.end_K[1]))  # not the state of any turn's start
    changed[middle] = hidden[middle].flip(0)
    moved_N = (ours.scorer.critic(changed, batch) - before).abs()
    assert (moved_N[turns.of_N < 1] == 0).all()
    assert (moved_N[turns.of_N >= 1] > 1e-6).all()


def test_it_learns_and_values_stale_samples_under_their_own_versions_weights(checkpoint):
    ours = learner(checkpoint, optim=OptimConfig(lr=3e-3))
    said = []
    for version in range(10):
        wanted = ours.passes.by_sample(samples(version), ours._behaviour_values)
        said.append(ours.step(as_written(ours, samples(version))).metrics["loss/value"])
    assert said[-1] < 0.5 * said[0]
    found = ours.passes.by_sample(samples(9), ours._behaviour_values)
    present = ours.passes.by_sample(samples(10), ours._behaviour_values)
    assert torch.allclose(flat(found), flat(wanted), atol=1e-6)
    assert not torch.allclose(flat(present), flat(wanted), atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_step_is_the_same_in_one_micro_batch_or_many(checkpoint, dtype):
    found = []
    for tokens in (40, 400):
        ours = with_opinions(learner(checkpoint, micro_batch_tokens=tokens, dtype=dtype))
        assert {p.dtype for p in ours.scorer.critic.parameters()} == {torch.float32}
        found.append(ours.step(as_written(ours, samples())).metrics)
    bound = 1e-4 if dtype == "float32" else 5e-2
    for key in ("loss/loss", "loss/value", "optim/grad_norm"):
        assert found[0][key] == pytest.approx(found[1][key], rel=bound), key


def test_a_run_that_goes_on_from_its_checkpoint_makes_the_same_steps(checkpoint, tmp_path):
    def steps(ours: Learner, first: int) -> list[float]:
        return [
            ours.step(as_written(ours, samples(v))).metrics["loss/value"]
            for v in range(first, first + 2)
        ]

    whole = learner(checkpoint)
    steps(whole, 0)
    whole.save_state(tmp_path / "step_2")
    whole.wait_saved()
    resumed = learner(checkpoint)
    resumed.load_state(tmp_path / "step_2")
    assert steps(resumed, 2) == steps(whole, 2)
    with pytest.raises(CheckpointError, match="critic"):
        learner(checkpoint, CriticConfig()).load_state(tmp_path / "step_2")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"critic": {"kind": "turn"}}, r"\[critic\] is set, and loss.kind 'longcat' trains none"),
        ({"critic": {"width": 32}, "loss": {"kind": "ppo"}}, 'width is of a critic of kind "turn"'),
        (
            {"critic": {"kind": "turn", "heads": 3}, "loss": {"kind": "ppo"}},
            r"heads \(3\) has to divide width \(64\)",
        ),
    ],
    ids=["loss without one", "width of a linear one", "heads"],
)
def test_settings_that_make_no_critic_are_refused(given, said):
    with pytest.raises(ValidationError, match=said):
        LearnerConfig.model_validate(given)
