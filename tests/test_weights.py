"""Weights out and in: published names, folders that stock transformers loads, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.config import LearnerConfig
from trainer.families.registry import num_experts
from trainer.learner import Learner
from trainer.policy import build_policy, load_policy
from trainer.weights import (
    published_weights,
    read_checkpoint,
    snapshot,
    write_checkpoint,
    write_weights,
)

IDS = torch.arange(20, 60).reshape(2, 20)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def another(folder: Path):
    """A model of the same shape with other weights."""
    torch.manual_seed(77)
    return build_policy(AutoConfig.from_pretrained(folder), torch.float32)


def changed_copy(source: Path, target: Path, change) -> Path:
    """The checkpoint with its tensors changed by `change(tensors)`."""
    target.mkdir()
    (target / "config.json").write_text(
        (source / "config.json").read_text(encoding="utf-8"), encoding="utf-8"
    )
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return target


def test_published_weights_make_the_same_model_again(family_checkpoint, tmp_path):
    model = load_policy(family_checkpoint, torch.float32)
    size = write_weights(snapshot(model, torch.float32), tmp_path / "v1.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["v1.safetensors"], "no partial file is left"
    assert size == (tmp_path / "v1.safetensors").stat().st_size
    other = another(family_checkpoint)
    read_checkpoint(other, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_published_names_are_one_per_expert_and_none_for_zero_experts(family_checkpoint):
    model = load_policy(family_checkpoint, torch.float32)
    named = dict(published_weights(model, torch.float32))
    first = "model.layers.0.mlp.experts."
    for kind in ("gate_proj", "up_proj", "down_proj"):
        found = [n for n in named if n.startswith(first) and n.endswith(f".{kind}.weight")]
        wanted = [f"{first}{e}.{kind}.weight" for e in range(num_experts(model.config))]
        assert sorted(found) == sorted(wanted)
    with safe_open(family_checkpoint / "model.safetensors", "pt") as file:
        placeholders = set(file.keys()) - set(named)
    zero = model.config.zero_expert_num if model.config.model_type == "longcat_flash" else 0
    assert len(placeholders) == 2 * zero * 2, "gate and up of the zero experts of two layers"


def test_gate_and_up_are_the_halves_of_the_stacked_tensor(family_checkpoint):
    model = load_policy(family_checkpoint, torch.float32)
    named = dict(published_weights(model, torch.float32))
    stacked = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    prefix = "model.layers.1.mlp.experts.3"
    both = torch.cat([named[f"{prefix}.gate_proj.weight"], named[f"{prefix}.up_proj.weight"]])
    assert torch.equal(both, stacked[3])


def test_in_bfloat16_everything_is_cast_but_the_router_of_longcat(checkpoint):
    model = load_policy(checkpoint, torch.float32)
    for name, tensor in published_weights(model, torch.bfloat16):
        assert tensor.dtype == (torch.float32 if ".router." in name else torch.bfloat16), name


def test_a_written_folder_loads_in_stock_transformers_with_equal_logits(
    family_checkpoint, tmp_path
):
    ours = another(family_checkpoint)
    write_checkpoint(ours, tmp_path / "out", torch.float32)
    stock, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    gap = (logits(ours) - logits(stock)).norm() / logits(stock).norm()
    assert gap <= 1e-5


def test_a_folder_that_stock_transformers_wrote_loads_here(family_checkpoint, tmp_path):
    stock = AutoModelForCausalLM.from_pretrained(family_checkpoint)
    stock.save_pretrained(tmp_path / "stock")
    ours = load_policy(tmp_path / "stock", torch.float32)
    gap = (logits(ours) - logits(stock)).norm() / logits(stock).norm()
    assert gap <= 1e-5


def test_a_written_longcat_config_has_the_published_keys(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LongcatFlashForCausalLM"]
    assert config["zero_expert_type"] == "identity"
    assert config["mla_scale_q_lora"] is config["mla_scale_kv_lora"] is True


def test_weights_in_several_files_are_read_as_one(family_checkpoint, tmp_path):
    def split(tensors: dict) -> None:
        names = sorted(tensors)
        save_file({n: tensors.pop(n) for n in names[::2]}, tmp_path / "half" / "a.safetensors")

    folder = changed_copy(family_checkpoint, tmp_path / "half", split)
    whole = load_policy(family_checkpoint, torch.float32)
    assert torch.equal(logits(load_policy(folder, torch.float32)), logits(whole))


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.1.mlp.experts.3.up_proj.weight",
        "model.layers.0.mlp.experts.7.down_proj.weight",
    ],
)
def test_a_missing_tensor_is_named(family_checkpoint, tmp_path, name):
    folder = changed_copy(family_checkpoint, tmp_path / "holes", lambda t: t.pop(name))
    with pytest.raises(ValueError, match="holes") as caught:
        load_policy(folder, torch.float32)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "lm_head.weight", "model.layers.1.mlp.experts.3.up_proj.weight"]
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(family_checkpoint, tmp_path, name):
    def cut(tensors: dict) -> None:
        tensors[name] = tensors[name][:-1].clone()

    folder = changed_copy(family_checkpoint, tmp_path / "cut", cut)
    with pytest.raises(ValueError, match="has shape") as caught:
        load_policy(folder, torch.float32)
    assert name in str(caught.value) and "the config asks for" in str(caught.value)


def test_a_learner_publishes_what_it_holds(checkpoint, tmp_path):
    learner = Learner(checkpoint, LearnerConfig(threads=1), temperature=1.0, keep_versions=0)
    size = write_weights(learner.snapshot(torch.bfloat16), tmp_path / "version-1.safetensors")
    tensors = load_file(tmp_path / "version-1.safetensors")
    assert size == (tmp_path / "version-1.safetensors").stat().st_size
    own = dict(published_weights(learner.model, torch.bfloat16))
    assert set(tensors) == set(own)
    assert all(torch.equal(tensors[name], own[name]) for name in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_snapshot_stays_what_the_policy_was_while_it_is_trained_on(checkpoint, dtype):
    learner = Learner(checkpoint, LearnerConfig(threads=1), temperature=1.0, keep_versions=0)
    before = {n: t.clone() for n, t in published_weights(learner.model, dtype)}
    copied = learner.snapshot(dtype)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter += 1
    assert set(copied) == set(before)
    assert all(torch.equal(copied[name], before[name]) for name in before)


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_half_written(tmp_path):
    path = tmp_path / "version-3.safetensors"
    write_weights({"a": torch.ones(3)}, path)
    shared = torch.ones(4)
    with pytest.raises(RuntimeError, match="share memory"):
        write_weights({"a": shared, "b": shared}, path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert torch.equal(load_file(path)["a"], torch.ones(3))
