"""A model family is one record on each side: a third one, declared here, is trained on and published."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from test_learner import (
    assert_close,
    flat,
    learner,
    samples,
    stock_logprobs,
    with_rollout_logprobs,
)
from transformers import AutoModelForCausalLM, Qwen2MoeConfig
from transformers.models.qwen2_moe import modeling_qwen2_moe

from rl.config import InitConfig
from rl.config_file import ConfigError, build
from rollout.families import registry as engine_side
from rollout.families.family import Family as EngineFamily
from rollout.routing import RoutingLayout
from trainer.families import registry as learner_side
from trainer.families.family import Family, Replacements
from trainer.moe.experts import GroupedExperts
from trainer.moe.router import SoftmaxRouter
from trainer.norm import RMSNorm
from trainer.policy import load_policy, outline_policy
from trainer.small.init_model import init_checkpoint
from trainer.swiglu import DenseMLP
from trainer.weights import published_weights, read_checkpoint, write_checkpoint


@cache
def replacements() -> Replacements:
    class Router(SoftmaxRouter, modeling_qwen2_moe.Qwen2MoeTopKRouter):
        """Same parameters as transformers' class."""

    classes = {
        "Qwen2MoeExperts": GroupedExperts,
        "Qwen2MoeMLP": DenseMLP,
        "Qwen2MoeRMSNorm": RMSNorm,
        "Qwen2MoeTopKRouter": Router,
    }
    return Replacements(modeling_qwen2_moe, classes)


# Shared experts and attention biases, which neither of our families has.
QWEN2_MOE = Family(
    model_type="qwen2_moe",
    replacements=replacements,
    presets={
        "tiny": {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 80,
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "norm_topk_prob": False,
            "decoder_sparse_step": 1,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
        }
    },
    experts="num_experts",
    adapter_targets=("q_proj", "o_proj"),
)


def routing_layout(config) -> RoutingLayout:
    layers = tuple(range(config.num_hidden_layers))
    return RoutingLayout(layers, config.num_experts_per_tok, config.num_experts)


@pytest.fixture
def third(monkeypatch, tmp_path, texts) -> Path:
    """A checkpoint of the third family, which both sides know."""
    monkeypatch.setitem(learner_side.FAMILIES, "qwen2_moe", QWEN2_MOE)
    monkeypatch.setitem(
        engine_side.FAMILIES, "qwen2_moe", EngineFamily("qwen2_moe", routing_layout)
    )
    init = InitConfig(family="qwen2_moe")
    folder = tmp_path / "qwen2_moe"
    init_checkpoint(folder, family=init.family, preset=init.preset, corpus=texts[:50], seed=5)
    return folder


def test_log_probs_and_gradients_are_those_of_transformers(third):
    ours = learner(third)
    assert len(ours.scorer.routers) == 3
    assert sum(isinstance(m, GroupedExperts) for m in ours.model.modules()) == 3
    stock = AutoModelForCausalLM.from_pretrained(third)
    wanted = torch.cat([stock_logprobs(stock, s) for s in samples()])
    assert_close(flat(ours.logprobs(samples())), wanted.detach(), 1e-5, "log-probs")
    (-wanted.sum()).backward()
    for batch in ours.passes.micro_batches(samples()):
        (-ours.passes.score(batch).logprobs_N.sum()).backward()
    theirs = dict(stock.named_parameters())
    for name, parameter in ours.model.named_parameters():
        assert parameter.grad is not None and theirs[name].grad is not None, name
        assert_close(parameter.grad, theirs[name].grad, 1e-5, name)


def test_published_names_make_the_same_model_again(third, tmp_path):
    model = load_policy(third, torch.float32)
    named = dict(published_weights(model, torch.float32))
    assert "model.layers.2.mlp.experts.5.gate_proj.weight" in named
    write_checkpoint(model, tmp_path / "again", torch.float32)
    stock, info = AutoModelForCausalLM.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state = stock.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    other = load_policy(third, torch.float32)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    read_checkpoint(other, tmp_path / "again")
    assert all(torch.equal(p, state[name]) for name, p in other.named_parameters())


def test_a_step_and_adapters_of_its_targets(third):
    ours = learner(third, lora={"rank": 2, "alpha": 4, "targets": QWEN2_MOE.adapter_targets})
    ours.step(with_rollout_logprobs(samples(), ours.logprobs(samples()), 0))
    assert ours.version == 1
    assert len(ours.snapshot(torch.float32)) == 3 * 2 * 2
    assert ours.steering.experts is not None and (
        ours.steering.experts.computing,
        ours.steering.experts.zero,
    ) == (6, 0)


def test_it_can_be_sharded_and_its_routing_captured(third):
    assert all(p.is_meta for p in outline_policy(third).parameters())
    config = Qwen2MoeConfig(**json.loads((third / "config.json").read_text(encoding="utf-8")))
    assert engine_side.routing_layout(config) == RoutingLayout((0, 1, 2), 2, 6)


def test_a_setting_may_name_a_registered_family_only():
    with pytest.raises(
        ConfigError, match=r"family: input should be 'longcat_flash' or 'qwen3_moe'"
    ):
        build({"family": "qwen2_moe"}, "file", (), InitConfig)


def test_without_a_record_transformers_modules_stay(third, monkeypatch):
    monkeypatch.delitem(learner_side.FAMILIES, "qwen2_moe")
    ours = learner(third)
    assert ours.scorer.routers == [] and ours.steering.experts is None
    assert not any(isinstance(m, GroupedExperts) for m in ours.model.modules())
    stock = AutoModelForCausalLM.from_pretrained(third)
    with torch.no_grad():
        wanted = torch.cat([stock_logprobs(stock, s) for s in samples()])
    assert_close(flat(ours.logprobs(samples())), wanted, 1e-5, "log-probs")
    with pytest.raises(ValueError, match="the family qwen2_moe is trained on 1 rank"):
        outline_policy(third)


def test_both_sides_know_the_same_families():
    assert set(learner_side.FAMILIES) == set(engine_side.FAMILIES)
    assert all(name == f.model_type for name, f in learner_side.FAMILIES.items())
    assert all(name == f.model_type for name, f in engine_side.FAMILIES.items())


def test_a_family_is_named_in_its_own_files_and_as_the_default_only():
    root = Path(__file__).parent.parent
    naming = {
        path.relative_to(root).as_posix()
        for package in ("envs", "rollout", "reward", "trainer", "rl")
        for path in (root / package).rglob("*.py")
        if any(name in path.read_text(encoding="utf-8") for name in learner_side.FAMILIES)
    }
    records = {
        f"{side}/families/{name}.py"
        for side in ("trainer", "rollout")
        for name in learner_side.FAMILIES
    }
    registries = {"trainer/families/registry.py", "rollout/families/registry.py"}
    assert naming == records | registries | {"rl/config.py", "rl/cli.py"}
