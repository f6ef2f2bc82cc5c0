"""Files of weights held against their config.json: what is whole passes, one tensor off is named.

Each folder is written by transformers, or by the learner, from a model of a few thousand weights.
"""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_agreement import ACCEPTED, SIZES
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from rl.config_error import ConfigError
from rl.preflight.models import check_model_folder
from trainer.checkpoint_files import check_weights
from trainer.families.family import Unsupported
from trainer.policy import build_policy, load_policy
from trainer.weights import write_checkpoint
from trainer.weights_fit import check_fit

OURS = {"longcat_flash", "qwen3_moe"}
FILE = "model.safetensors"


def written(name: str, folder: Path) -> Path:
    """A folder of this family's, as it is published."""
    kind = name.split()[0]
    config = CONFIG_MAPPING[kind](**SIZES | ACCEPTED[name])
    if kind in OURS:
        write_checkpoint(build_policy(config, torch.float32), folder, torch.float32)
    else:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def check(folder: Path) -> None:
    check_fit(folder, check_weights(folder, {}))


def refused(folder: Path, change) -> str:
    """What is said of the folder after `change(tensors)`; the file is whole again afterwards."""
    whole = load_file(folder / FILE)
    tensors = dict(whole)
    change(tensors)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        check(folder)
    save_file(whole, folder / FILE, metadata={"format": "pt"})
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


@pytest.mark.heavy
@pytest.mark.parametrize("name", ACCEPTED)
def test_every_tensor_of_a_layer_is_asked_for_by_name_and_shape(name, tmp_path):
    folder = written(name, tmp_path / "policy")
    check(folder)
    # One of each kind of tensor, in the second layer and, of experts, the second one.
    kinds: dict[str, str] = {}
    for tensor in sorted(load_file(folder / FILE)):
        if ".layers.1." in tensor:
            kinds[re.sub(r"experts\.\d+", "experts.N", tensor)] = tensor
    for tensor in kinds.values():
        stem = tensor.rpartition(".")[0].split(".layers.1.")[1].split(".")[0]
        assert ".layers.1." in refused(folder, lambda t, one=tensor: t.pop(one))
        cut = refused(folder, lambda t, one=tensor: t.update({one: t[one][:-1].clone()}))
        assert stem in cut and "config.json asks for" in cut, tensor
    extra = "model.layers.1.self_attn.z_proj.weight"
    said = refused(folder, lambda t: t.update({extra: torch.zeros(3)}))
    assert f"{extra} belongs to nothing that config.json describes" in said


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3"])
def test_a_layer_that_predicts_further_tokens_and_what_is_computed_may_be_there(name, tmp_path):
    folder = written(name, tmp_path / "policy")
    tensors = load_file(folder / FILE)
    tensors["model.layers.4.embed_tokens.weight"] = torch.zeros(512, 64)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    tensors["model.mtp.layers.0.eh_proj.weight"] = torch.zeros(4, 4)
    save_file(tensors, folder / FILE, metadata={"format": "pt"})
    check(folder)


def test_a_head_that_is_the_embedding_need_not_be_there(tmp_path):
    folder = written("gemma", tmp_path / "policy")
    assert "lm_head.weight" not in load_file(folder / FILE)
    check(folder)


def test_a_family_that_nobody_here_knows_is_left_to_who_loads_it(tmp_path):
    folder = written("llama", tmp_path / "policy")
    (folder / "config.json").write_text('{"model_type": "nobody"}', encoding="utf-8")
    check(folder)


@pytest.mark.parametrize("kind", ["config", "tensor"])
def test_a_quantized_policy_is_refused_and_a_quantized_judge_is_not(kind, tmp_path):
    folder = written("qwen3_moe", tmp_path / "policy")
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    if kind == "config":
        file = folder / "config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings["architectures"] = ["Qwen3MoeForCausalLM"]
        settings["quantization_config"] = {"quant_method": "fp8"}
        file.write_text(json.dumps(settings), encoding="utf-8")
        said = "quantization_config in config.json: fp8"
        with pytest.raises(Unsupported, match="quantized"):
            load_policy(folder, torch.float32)
    else:
        [file] = folder.glob("*.safetensors")
        tensors = load_file(file)
        name = min(name for name in tensors if ".experts." in name)
        save_file({**tensors, name: tensors[name].to(torch.float8_e4m3fn)}, file)
        said = f"{name} is F8_E4M3"
    with pytest.raises(ConfigError, match=re.escape(said)):
        check_model_folder(folder, trained=True)
    check_model_folder(folder)
