"""A learner on several ranks, in processes of their own over gloo, against one rank alone."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from rank_processes import RankProcesses
from safetensors.torch import load_file
from test_learner import LOSS, flat, samples
from test_shared_prefixes import groups
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state
from transformers import GPT2Config, Qwen3MoeConfig

from trainer.config import LearnerConfig, LossConfig, OptimConfig, RouterConfig, UpdatesConfig
from trainer.critic_config import CriticConfig
from trainer.distil_config import DistilConfig
from trainer.learner import Learner
from trainer.micro_batches import plan_shared
from trainer.moe.exchange import from_experts, plan_route, to_experts
from trainer.moe.experts import GroupedExperts
from trainer.parallel import ALONE, Ranks, shard
from trainer.policy import outline_policy
from trainer.sample import TokenScores, TrainSample
from trainer.sample_check import MOST_SET_ASIDE, NotFinite

# Up to four processes that train: over two minutes of CPU time in all.
pytestmark = pytest.mark.slow

# How the experts lie on two ranks: sharded like every other weight, or each on one of them.
EXPERT_PARALLEL = (1, 2)
TURN_CRITIC = CriticConfig(kind="turn", width=16, detach=True)
Join = Callable[[int], Ranks]


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankProcesses]:
    with RankProcesses(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[RankProcesses]:
    with RankProcesses(4) as ranks:
        yield ranks


def alone(_: int) -> Ranks:
    """In place of `join`: one rank in this process."""
    return ALONE


# Metrics that are made of ratios of probabilities.
RATIOS = ("/kl", "/kl_behaviour", "/kl_engine", "/ratio_max", "/engine_ratio_max", "/ess")


@dataclass(frozen=True)
class Trained:
    """What a learner answered: the metrics of its steps, then the log-probs of the last step's samples."""

    metrics: list[dict[str, float]]
    logprobs: list[list[float]]
    tokens: list[TokenScores]
    weights: dict[str, Tensor]


def learner(join: Join, folder: Path, expert_parallel: int, **config) -> Learner:
    # Adam makes a whole step of a gradient that is all rounding; above eps it is as small as that.
    optim = OptimConfig(lr=1e-3, eps=1e-5)
    settings = {"micro_batch_tokens": 64, "loss": LOSS, "optim": optim, "threads": 1}
    return Learner(
        folder,
        LearnerConfig(**{**settings, **config}),
        temperature=1.0,
        keep_versions=1,
        ranks=join(expert_parallel),
    )


def train(
    join: Join,
    folder: Path,
    expert_parallel: int,
    config: dict,
    batches: Sequence[Sequence[TrainSample]],
) -> Trained:
    """Steps, and what the policy then is; rank 0 has its weights."""
    ours = learner(join, folder, expert_parallel, **config)
    steps = [ours.step(batch) for batch in batches]
    logprobs = ours.logprobs(batches[-1])
    metrics = [step.metrics for step in steps]
    return Trained(metrics, logprobs, steps[-1].token_scores, ours.snapshot(torch.float32))


def assert_same(found: Trained, wanted: Trained, relative: float, absolute: float = 1e-7) -> None:
    """absolute: of the metrics, whose terms may nearly cancel."""
    for mine, theirs in zip(found.metrics, wanted.metrics, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            # Ranks share fewer tokens than one rank does.
            if not name.startswith("time/") and name != "learner/computed_tokens":
                # A ratio is as close as the log-probs' difference, and these are about -6.
                of_ratios = name.startswith(("learn/", "update/")) and name.endswith(RATIOS)
                bound = 10 * relative if of_ratios else relative
                assert mine[name] == pytest.approx(
                    theirs[name], rel=bound, abs=absolute, nan_ok=True
                ), name
    gap = (flat(found.logprobs) - flat(wanted.logprobs)).norm() / flat(wanted.logprobs).norm()
    assert gap <= relative, f"log-probs differ by {gap:.1e}"
    assert [t.id for t in found.tokens] == [t.id for t in wanted.tokens]
    for mine, theirs in zip(found.tokens, wanted.tokens, strict=True):
        assert mine.advantages == pytest.approx(theirs.advantages, rel=relative)
        assert mine.learner_logprobs == pytest.approx(theirs.learner_logprobs, abs=1e-3)
        assert mine.entropies == pytest.approx(theirs.entropies, abs=1e-3)
    assert found.weights.keys() == wanted.weights.keys()
    for name, weight in found.weights.items():
        gap = (weight - wanted.weights[name]).norm()
        assert gap <= relative * wanted.weights[name].norm(), f"{name} differs by {gap:.1e}"


def compared(
    ranks: RankProcesses, folder: Path, expert_parallel: int, config: dict, batches
) -> tuple[Trained, Trained]:
    """Rank 0's answers beside those of one rank; the other ranks answer the same, but for the weights."""
    wanted = train(alone, folder, 1, config, batches)
    first, *others = ranks(train, folder, expert_parallel, config, batches)
    for other in others:
        assert_same(replace(other, weights={}), replace(first, weights={}), 1e-12)
    return first, wanted


@pytest.mark.parametrize("expert_parallel", EXPERT_PARALLEL)
def test_two_ranks_train_as_one_does(two_ranks, family_checkpoint, expert_parallel):
    """Loss, gradient norm and all other metrics, log-probs and published weights; the second batch is of
    the version before, so it is scored under earlier weights as well."""
    batches = [samples(0), samples(0, seed=4)]
    found, wanted = compared(two_ranks, family_checkpoint, expert_parallel, {}, batches)
    assert_same(found, wanted, 1e-5)
    moved = found.metrics[1]["loss/clipped_pos"] + found.metrics[1]["loss/clipped_neg"]
    assert moved > 0, "the first step changed what the second one sees"


def test_the_balance_loss_of_two_ranks_is_that_of_the_batch(two_ranks, family_checkpoint):
    """Three steps; one rank alone in micro-batches of another size."""
    router = RouterConfig(balance_weight=1.0, balance_groups=2, z_weight=0.01)
    batches = [
        [replace(s, versions=(version,) * len(s.versions)) for s in samples(0, seed=3 + version)]
        for version in range(3)
    ]
    config = {"router": router, "micro_batch_tokens": 400}
    wanted = train(alone, family_checkpoint, 1, config, batches)
    found, _ = two_ranks(train, family_checkpoint, 2, config | {"micro_batch_tokens": 40}, batches)
    assert_same(found, wanted, 1e-5, absolute=1e-6)


def test_experts_on_two_ranks_each_of_which_is_sharded_over_two_more(four_ranks, checkpoint):
    batches = [samples(0), samples(0, seed=4)]
    found, wanted = compared(four_ranks, checkpoint, 2, {}, batches)
    assert_same(found, wanted, 1e-5)


@pytest.mark.parametrize(("expert_parallel", "kind"), [(1, "longcat"), (2, "ppo")])
def test_a_step_in_bfloat16_is_close_to_that_of_one_rank(
    two_ranks, family_checkpoint, expert_parallel, kind
):
    """The critic of `ppo`, and LongCat-Flash's router, stay float32 among weights that do not."""
    config = {"dtype": "bfloat16", "loss": LossConfig(kind=kind, max_completion_tokens=20)}
    if kind == "ppo":
        config["critic"] = TURN_CRITIC
    batches = [samples(0), samples(0, seed=4)]
    found, wanted = compared(two_ranks, family_checkpoint, expert_parallel, config, batches)
    for name in ("loss/loss", "loss/entropy", "optim/grad_norm"):
        gap = abs(found.metrics[0][name] - wanted.metrics[0][name])
        assert gap <= 0.03 * abs(wanted.metrics[0][name]), name
    for name, weight in found.weights.items():
        assert (weight - wanted.weights[name]).norm() <= 1e-2 * wanted.weights[name].norm(), name


@pytest.mark.parametrize(
    ("kind", "critic"),
    [("reinforce_pp", CriticConfig()), ("ppo", CriticConfig()), ("ppo", TURN_CRITIC)],
    ids=["reinforce_pp", "linear critic", "turn critic"],
)
def test_advantages_over_the_whole_batch_are_those_of_one_rank(two_ranks, checkpoint, kind, critic):
    """In the last batch one rank has nothing to do."""
    config = {"loss": LossConfig(kind=kind), "critic": critic}
    batches = [
        [replace(s, reward=float(i % 3)) for i, s in enumerate(samples(0, seed=seed))]
        for seed in (3, 4)
    ]
    batches.append([replace(s, versions=(1,) * len(s.versions)) for s in batches[0][:1]])
    found, wanted = compared(two_ranks, checkpoint, 2, config, batches)
    assert_same(found, wanted, 1e-5, absolute=1e-6)


@pytest.mark.parametrize("kl", [{"every": 2}, {"reference": "start", "place": "reward"}])
def test_several_updates_and_a_kl_to_a_reference_are_those_of_one_rank(two_ranks, checkpoint, kl):
    """The second batch is of the version before, and its mini-batches are on other ranks than its scores."""
    loss = {"kind": "dapo", "entropy_weight": 0.01, "kl": {"weight": 0.1, "estimator": "k3", **kl}}
    config = {
        "loss": LossConfig.model_validate(loss),
        "updates": UpdatesConfig(mini_batches=3, epochs=2, max_kl=10.0),
        "optim": OptimConfig(lr=3e-5, eps=1e-5),
    }
    batches = [samples(0), samples(0, seed=4)]
    found, wanted = compared(two_ranks, checkpoint, 2, config, batches)
    assert_same(found, wanted, 1e-4, absolute=1e-6)
    assert found.metrics[1]["update/made"] == 6 and found.metrics[1]["loss/kl_reference"] > 0


@pytest.mark.parametrize("expert_parallel", EXPERT_PARALLEL)
def test_teachers_of_two_families_score_as_on_one_rank(two_ranks, checkpoints, expert_parallel):
    student, other = checkpoints["longcat_flash"], checkpoints["qwen3_moe"]
    config = {
        "advantage": "distill",
        "distill": DistilConfig(teacher=str(other), teachers={"y": str(student)}),
        "loss": LossConfig(kind="dapo"),
    }
    batches = [
        [replace(s, env="xy"[i % 2]) for i, s in enumerate(samples(0, seed=seed))]
        for seed in (3, 4)
    ]
    found, wanted = compared(two_ranks, student, expert_parallel, config, batches)
    for mine, theirs in zip(found.tokens, wanted.tokens, strict=True):
        assert mine.advantages == pytest.approx(theirs.advantages, abs=1e-4)
    for name in ("distill/x/kl", "distill/y/kl", "distill/all/kl"):
        assert found.metrics[1][name] == pytest.approx(wanted.metrics[1][name], abs=1e-5)
    assert abs(found.metrics[1]["distill/x/kl"]) > 0.01, "the other family is another policy"


@pytest.mark.parametrize("expert_parallel", EXPERT_PARALLEL)
def test_a_rank_without_a_sample_takes_part(two_ranks, checkpoint, expert_parallel):
    batches = [samples(0)[:1], samples(0)[3:4]]
    plan = plan_shared([s.token_ids for s in batches[0]], 64, ranks=2)
    assert plan == [[[0]], [[]]], "the second rank has nothing to do"
    found, wanted = compared(two_ranks, checkpoint, expert_parallel, {}, batches)
    assert_same(found, wanted, 1e-5)


@pytest.mark.parametrize("expert_parallel", EXPERT_PARALLEL)
def test_ranks_whose_samples_begin_alike_train_as_one_does(two_ranks, checkpoint, expert_parallel):
    """What they share is computed once on each rank; a rank may get more of it than the other."""
    found, wanted = compared(two_ranks, checkpoint, expert_parallel, {}, [groups()] * 2)
    assert_same(found, wanted, 1e-5)


def test_ranks_whose_samples_are_of_other_versions_score_them_together(two_ranks, checkpoint):
    """A sample begun under version 0 and ended under 1, beside one that is all of version 0."""
    batch = samples(0)[:2]
    wrote = [t for t, m in enumerate(batch[0].loss_mask) if m]
    versions = tuple(1 if t == wrote[-1] else v for t, v in enumerate(batch[0].versions))
    mixed = [replace(batch[0], versions=versions), batch[1]]
    found, wanted = compared(two_ranks, checkpoint, 1, {}, [samples(0), mixed])
    assert_same(found, wanted, 1e-5)


def bad_calls(join: Join, folder: Path) -> tuple[list[dict[str, float]], str, bool]:
    ours = learner(join, folder, 2)
    before = ours.logprobs(samples())
    huge = {"advantages": tuple(1e38 if m else 0.0 for m in samples()[0].loss_mask)}
    broken = [replace(s, reward=float("nan")) for s in samples()]
    calls = [broken, [replace(samples()[0], **huge), *samples()[1:]]]
    found = [ours.step(call).metrics for call in calls]
    with pytest.raises(NotFinite) as raised:
        for _ in range(MOST_SET_ASIDE):
            ours.step(broken)
    unchanged = ours.logprobs(samples()) == before
    ours.step([replace(s, versions=(ours.version,) * len(s.versions)) for s in samples()])
    return found, str(raised.value), unchanged and ours.logprobs(samples()) != before


def test_what_one_rank_sets_aside_all_set_aside_and_nothing_changes(two_ranks, checkpoint):
    """One sample's gradient is computed on one rank only."""
    for found, sentence, unchanged in two_ranks(bad_calls, checkpoint):
        assert [f["learner/updates_set_aside"] for f in found] == [1, 1]
        assert [f["learner/samples_set_aside"] for f in found] == [len(samples()), 0]
        assert sentence.startswith("sample s0 (fake): its reward is nan; it has to be finite; 6 ")
        assert unchanged


def imitate(join: Join, folder: Path, expert_parallel: int) -> list[dict[str, float]]:
    ours = learner(join, folder, expert_parallel)
    return [ours.sft_step(samples()) for _ in range(2)]


def test_imitation_is_that_of_one_rank(two_ranks, checkpoint):
    for found in two_ranks(imitate, checkpoint, 2):
        for mine, theirs in zip(found, imitate(alone, checkpoint, 1), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)


ROUTED, WIDTH, INNER = 6, 16, 8
# Experts that each rank's tokens choose; those from ROUTED on are zero-computation experts.
CHOICES = {
    "all": ([[0, 5], [3, 1], [2, 7], [4, 0]], [[5, 4], [3, 6], [1, 2]]),
    "to one rank only": ([[0, 1], [2, 0]], [[1, 2], [0, 6], [2, 1]]),
    "from one rank only": ([[0, 4], [3, 7]], [[6, 7], [7, 6]]),
    "none at all": ([[6, 7]], [[7, 6]]),
}


def experts() -> GroupedExperts:
    torch.manual_seed(0)
    return GroupedExperts(
        Qwen3MoeConfig(
            num_experts=ROUTED,
            hidden_size=WIDTH,
            moe_intermediate_size=INNER,
            initializer_range=0.3,
        )
    )


def tokens(chosen: Sequence[Sequence[int]], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(len(chosen), WIDTH, requires_grad=True)
    return x, torch.tensor(chosen), torch.rand(len(chosen), 2, requires_grad=True)


class Layer(nn.Module):
    """A policy as `shard` knows it, of one layer with nothing but experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = experts()

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        return self.experts(x, chosen, weights)


class OneLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.model = nn.Module()
        self.model.model.layers = nn.ModuleList([Layer()])

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model.model.layers[0](*inputs)


def pass_experts(join: Join, expert_parallel: int, choices) -> list[np.ndarray]:
    """Output, and gradients of the tokens, of their routing weights and of all experts."""
    ranks = join(expert_parallel)
    policy = OneLayer()
    shard(policy, ranks, torch.float32)
    x, chosen, weights = tokens(choices[ranks.rank], seed=ranks.rank + 1)
    out = policy(x, chosen, weights)
    (out * torch.arange(WIDTH)).sum().backward()
    found = [out, x.grad, weights.grad]
    found += [weight.grad.full_tensor() for _, weight in sorted(policy.named_parameters())]
    return [t.detach().numpy() for t in found]


@pytest.mark.parametrize("expert_parallel", EXPERT_PARALLEL)
@pytest.mark.parametrize("case", CHOICES)
def test_experts_on_two_ranks_are_those_of_one_layer(two_ranks, case, expert_parallel):
    choices = CHOICES[case]
    layer = experts()
    inputs = [tokens(chosen, seed=rank + 1) for rank, chosen in enumerate(choices)]
    outs = [layer(*own) for own in inputs]
    sum((out * torch.arange(WIDTH)).sum() for out in outs).backward()
    held = [
        torch.zeros_like(w) if w.grad is None else w.grad
        for w in (layer.down_proj, layer.gate_up_proj)
    ]
    for rank, found in enumerate(two_ranks(pass_experts, expert_parallel, choices)):
        x, _, weights = inputs[rank]
        wanted = (outs[rank], x.grad, weights.grad, *held)
        for mine, theirs in zip(found, wanted, strict=True):
            assert torch.allclose(torch.from_numpy(mine), theirs, atol=1e-5)


def travel(join: Join) -> tuple[list[float], list[float], list[int]]:
    """Rows that say where they come from and where they want to go: rank, expert, number."""
    ranks = join(2)
    assert ranks.mesh is not None
    counts = [[2, 0, 1, 3], [1, 1, 0, 2]][ranks.rank]
    rows = [100 * ranks.rank + 10 * e + i for e, n in enumerate(counts) for i in range(n)]
    x = torch.tensor(rows, dtype=torch.float32)[:, None]
    route = plan_route(torch.tensor(counts).cumsum(0), ranks.mesh["ep"].get_group())
    there, weight = to_experts(x, x[:, 0] + 1, route)
    assert torch.equal(weight, there[:, 0] + 1)
    assert torch.equal(from_experts(there, route), x)
    return there[:, 0].tolist(), x[:, 0].tolist(), route.ends_L.tolist()


def test_rows_arrive_sorted_by_expert_and_go_back_to_their_places(two_ranks):
    (first, _, first_ends), (second, _, second_ends) = two_ranks(travel)
    assert first == [0, 1, 100, 110] and first_ends == [3, 4]
    assert second == [20, 30, 31, 32, 130, 131] and second_ends == [1, 6]


def share_unevenly(join: Join) -> str:
    ranks = join(2)
    assert ranks.mesh is not None
    layer = GroupedExperts(
        Qwen3MoeConfig(num_experts=5, hidden_size=WIDTH, moe_intermediate_size=INNER)
    )
    with pytest.raises(ValueError) as raised:
        layer.share(ranks.mesh["ep"])
    return str(raised.value)


def test_experts_that_cannot_be_shared_out_are_refused(two_ranks):
    for sentence in two_ranks(share_unevenly):
        assert sentence == (
            "learner.expert_parallel (2) has to divide the policy's 5 routed experts"
        )


def state(ours: Learner) -> dict[str, Tensor]:
    """Weights and AdamW's moments by name."""
    found = {}
    for name, weight in ours.optimizer.masters.items():
        found[name] = weight.detach()
        for key in ("exp_avg", "exp_avg_sq"):
            found[f"{name}/{key}"] = ours.optimizer.adam.state[weight][key]
    return found


def save_after_a_step(join: Join, folder: Path, expert_parallel: int, target: Path) -> None:
    ours = learner(join, folder, expert_parallel)
    ours.step(samples(0))
    save_state(state(ours), checkpoint_id=target)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("expert_parallel", EXPERT_PARALLEL)
def test_torchs_checkpoint_of_two_ranks_loads_on_one(
    two_ranks, family_checkpoint, tmp_path, expert_parallel
):
    """The shards say truly what they are parts of, also those of the experts and of the optimizer."""
    two_ranks(save_after_a_step, family_checkpoint, expert_parallel, tmp_path / "saved")
    ours = learner(alone, family_checkpoint, 1)
    ours.step(samples(0))
    wanted = {name: t.clone() for name, t in state(ours).items()}
    found = {name: torch.zeros_like(t) for name, t in wanted.items()}
    load_state(found, storage_reader=dcp.FileSystemReader(tmp_path / "saved"), no_dist=True)
    for name, tensor in found.items():
        gap = (tensor - wanted[name]).norm()
        assert gap <= 1e-4 * wanted[name].norm(), f"{name} differs by {gap:.1e}"


def test_several_ranks_are_for_the_families_that_the_learner_has_modules_for(tmp_path):
    GPT2Config(n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"of the family gpt2 is trained on 1 rank; several are for "
    ):
        outline_policy(tmp_path)


def save_and_go_on(
    join: Join, folder: Path, expert_parallel: int, config: dict, target: Path
) -> dict[str, float]:
    ours = learner(join, folder, expert_parallel, **config)
    ours.step(samples(0))
    ours.save_state(target)
    ours.wait_saved()
    return ours.step(samples(0, seed=4)).metrics


@pytest.mark.parametrize(("expert_parallel", "dtype"), [(1, "float32"), (2, "bfloat16")])
def test_a_checkpoint_of_two_ranks_goes_on_on_one(
    two_ranks, checkpoint, tmp_path, expert_parallel, dtype
):
    """With the weights of the version before, which the second batch is of."""
    config = {"dtype": dtype}
    wanted = two_ranks(save_and_go_on, checkpoint, expert_parallel, config, tmp_path / "saved")[0]
    ours = learner(alone, checkpoint, 1, **config)
    ours.load_state(tmp_path / "saved")
    assert ours.version == 1 and sorted(ours.past_weights) == [0]
    found = ours.step(samples(0, seed=4)).metrics
    relative = 1e-5 if dtype == "float32" else 3e-2
    for name in ("loss/loss", "loss/entropy", "parity/mean_abs_dlogp", "optim/grad_norm"):
        assert found[name] == pytest.approx(wanted[name], rel=relative), name


def load_and_go_on(join: Join, folder: Path, saved: Path) -> dict[str, float]:
    ours = learner(join, folder, 2)
    ours.load_state(saved)
    return ours.step(samples(0, seed=4)).metrics


def test_a_checkpoint_of_one_rank_goes_on_on_two(two_ranks, checkpoint, tmp_path):
    wanted = save_and_go_on(alone, checkpoint, 1, {}, tmp_path / "saved")
    for found in two_ranks(load_and_go_on, checkpoint, tmp_path / "saved"):
        for name in ("loss/loss", "loss/entropy", "parity/mean_abs_dlogp", "optim/grad_norm"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-5), name


@pytest.mark.parametrize("expert_parallel", EXPERT_PARALLEL)
def test_the_routers_biases_move_by_the_loads_of_all_ranks(two_ranks, checkpoint, expert_parallel):
    config = {"router": RouterConfig(bias_rate=0.1, z_weight=0.01)}
    batches = [samples(0)[:5], samples(0)[:1], samples(1, seed=4)]
    found, wanted = compared(two_ranks, checkpoint, expert_parallel, config, batches)
    assert_same(found, wanted, 1e-5)
    biases = [n for n in wanted.weights if n.endswith("e_score_correction_bias")]
    started = load_file(checkpoint / "model.safetensors")
    assert biases and all(not torch.equal(wanted.weights[n], started[n]) for n in biases)


@pytest.mark.parametrize("expert_parallel", EXPERT_PARALLEL)
def test_two_ranks_recompute_activations_as_one_does(two_ranks, family_checkpoint, expert_parallel):
    batches = [samples(0), samples(0, seed=4)]
    found, wanted = compared(
        two_ranks, family_checkpoint, expert_parallel, {"recompute": True}, batches
    )
    assert_same(found, wanted, 1e-5)
