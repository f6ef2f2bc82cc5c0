"""A loss, an advantage and a correction of the user's own: used, recorded, and refused before anything
starts."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import own_objectives
import pytest
import torch
from fakes import scored
from test_learner import learner, samples, with_rollout_logprobs
from torch import Tensor

from rl.config import RunConfig, load_config
from rl.config_file import ConfigError
from rl.objective_check import check_objective
from rl.record.run_folder import RunFolder
from rl.samples.samples import group_samples
from trainer.config import LearnerConfig, LossConfig
from trainer.loss import objective
from trainer.own_check import synthetic_batch
from trainer.own_function import BadFunction, source_of
from trainer.own_objective import OWN_FUNCTIONS

FILE = Path(own_objectives.__file__)
MINE = {
    "advantage": "own_objectives:above_mean",
    "loss": {"kind": "own_objectives:reinforce", "correction": "own_objectives:halves"},
}


def config(learner_settings, **changes) -> RunConfig:
    values = {"name": "mine", "model": {"init": {}}, "env": [{"id": "calculator"}]}
    return RunConfig.model_validate({**values, "learner": learner_settings, **changes})


def test_a_loss_and_a_correction_of_ones_own_train(checkpoint):
    def loss_of(**changes) -> dict[str, float]:
        settings = LearnerConfig.model_validate({"loss": {**MINE["loss"], **changes}})
        ours = learner(checkpoint, loss=settings.loss)
        batch = with_rollout_logprobs(samples(), ours.logprobs(samples()), 0)
        return ours.step(batch).metrics

    usual = loss_of()
    assert usual["loss/mine"] == 0.5 and usual["loss/loss"] != 0
    assert loss_of(own={"scale": 3.0})["loss/loss"] == pytest.approx(3 * usual["loss/loss"])
    assert loss_of(correction="none")["loss/loss"] == pytest.approx(2 * usual["loss/loss"])


def test_a_loss_may_be_constant_on_a_part_and_name_its_counts_as_it_likes(checkpoint):
    """Every sample is a micro-batch here, half of them with nothing that it keeps."""
    settings = LearnerConfig.model_validate({"loss": {"kind": "own_objectives:clips_some"}})
    longest = max(len(s.token_ids) for s in samples())
    ours = learner(checkpoint, loss=settings.loss, micro_batch_tokens=longest)
    batch = with_rollout_logprobs(samples(), ours.logprobs(samples()), 0)
    found = ours.step(batch).metrics
    assert 0 < found["loss/clipped_away"] < 1 and found["loss/kl"] < 0
    assert found["loss/loss"] != 0 and found["loss/entropy"] > 0


def test_a_loss_and_a_correction_are_not_asked_of_no_token():
    nothing = synthetic_batch()
    empty = {k: t.detach()[:0] for k, t in vars(nothing).items() if isinstance(t, Tensor)}
    nothing = replace(nothing, **empty | {"learner_logprobs_N": torch.zeros(0, requires_grad=True)})
    loss = {
        "kind": "own_objectives:clips_some",
        "correction": "own_objectives:weights_over_their_mean",
    }
    found, counts = objective(nothing, LossConfig.model_validate(loss))
    assert found.item() == 0 and found.requires_grad and counts == {}


def test_the_synthetic_batch_has_what_the_settings_ask_for():
    loss = {"kind": "own_objectives:pulls_to_the_reference", "entropy_weight": 0.01}
    kl = {"weight": 0.1, "estimator": "k3"}
    check_objective(config({"loss": {**loss, "kl": kl}}))
    with pytest.raises(ConfigError, match="raised TypeError"):
        check_objective(config({"loss": loss}))


@pytest.mark.parametrize("name", ["scaled", "partly"])
def test_what_is_called_and_is_no_function_is_recorded_with_its_file(name):
    check_objective(config({"loss": {"kind": f"own_objectives:{name}"}}))
    assert source_of(f"own_objectives:{name}") == (str(FILE), FILE.read_text(encoding="utf-8"))


def test_an_advantage_that_fails_in_the_run_says_which_it_is():
    members = [scored("a", -1.0), scored("b", 1.0)]
    check_objective(config({"advantage": "own_objectives:fails_below_zero"}))
    with pytest.raises(BadFunction, match="'own_objectives:fails_below_zero' raised ValueError"):
        group_samples(members, "own_objectives:fails_below_zero", filter_zero_variance=True)


def test_an_advantage_of_ones_own_is_of_a_group():
    members = [scored(f"m{i}", float(i)) for i in range(3)]
    name = config(MINE).learner.advantage
    found, _ = group_samples(members, name, filter_zero_variance=True)
    assert [next(a for a in s.advantages if a or s.reward == 1) for s in found] == [-1, 0, 1]


def test_functions_that_work_are_accepted_by_module_and_by_file(tmp_path):
    check_objective(config(MINE))
    file = tmp_path / "run.toml"
    (tmp_path / "objective.py").write_text(FILE.read_text("utf-8"), encoding="utf-8")
    file.write_text(
        'name = "mine"\nmodel = { init = {} }\nenv = [{ id = "calculator" }]\n[learner]\n'
        'advantage = "objective.py:above_mean"\n'
        'loss = { kind = "objective.py:reinforce", own = { scale = 2.0 } }\n',
        encoding="utf-8",
    )
    found = load_config(file)
    assert found.learner.advantage == f"{tmp_path}/objective.py:above_mean"
    assert found.learner.loss.correction == "none"
    check_objective(found)
    assert RunConfig.model_validate(found.model_dump()) == found


def test_the_run_folder_has_their_source(tmp_path):
    RunFolder(config(MINE, runs_dir=str(tmp_path)))
    found = json.loads((tmp_path / "mine" / OWN_FUNCTIONS).read_text(encoding="utf-8"))
    assert {key: one["name"] for key, one in found.items()} == {
        "learner.advantage": "own_objectives:above_mean",
        "learner.loss.kind": "own_objectives:reinforce",
        "learner.loss.correction": "own_objectives:halves",
    }
    source = FILE.read_text(encoding="utf-8")
    for one in found.values():
        assert (one["file"], one["source"]) == (str(FILE), source)
        assert one["sha256"] == hashlib.sha256(source.encode()).hexdigest()


def test_a_run_without_any_has_none(tmp_path):
    RunFolder(config({}, runs_dir=str(tmp_path)))
    assert json.loads((tmp_path / "mine" / OWN_FUNCTIONS).read_text("utf-8")) == {}


BROKEN = [
    ("kind", "no_such_module:loss", "cannot be imported: ModuleNotFoundError"),
    ("kind", "no_such_file.py:loss", "cannot be imported: FileNotFoundError: there is no file"),
    ("kind", "own_objectives:reinforced", "own_objectives has no 'reinforced'; its functions are"),
    ("kind", "own_objectives:NUMBER", "is of type int; it has to be a function"),
    ("kind", "own_objectives:one_argument", "has to take LossInputs and weights: too many"),
    ("kind", "own_objectives:raises", "raised AttributeError: 'LossInputs' object has no"),
    ("kind", "own_objectives:returns_a_float", "returned float; it has to return a tensor"),
    ("kind", "own_objectives:returns_a_vector", r"returned a loss of shape \(8,\)"),
    ("kind", "own_objectives:returns_nan", "returned the loss nan on a synthetic batch"),
    ("kind", "own_objectives:detached", "returned a loss without a gradient"),
    ("kind", "own_objectives:gradient_not_finite", "has a gradient that is not finite"),
    ("advantage", "own_objectives:too_few", "returned 3 advantages for 4 rewards"),
    ("advantage", "own_objectives:divides_by_zero_variance", "raised ZeroDivisionError"),
    ("correction", "own_objectives:weights_of_one_sample", r"weights of shape \(1,\)"),
    ("kind", "own_objectives:mean_of_what_is_there", "and take no mean"),
    ("kind", "own_objectives:changes_its_inputs", "changed advantages_N in place"),
    (
        "kind",
        "own_objectives:counts_what_is_ours",
        "a count called 'loss/entropy', which is a metric",
    ),
    ("kind", "own_objectives:Scaled", r"has to take LossInputs and weights"),
    ("correction", "own_objectives:weights_over_their_mean", "its own sample"),
    ("correction", "own_objectives:negative_weights", "returned a weight below 0"),
]


@pytest.mark.parametrize(("key", "name", "sentence"), BROKEN)
def test_each_broken_one_gets_one_sentence_before_anything_starts(key, name, sentence):
    settings = {"advantage": name} if key == "advantage" else {"loss": {key: name}}
    with pytest.raises(ConfigError, match=sentence) as caught:
        check_objective(config(settings))
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith("learner." if key == "advantage" else "learner.loss.")


def test_a_setting_that_it_does_not_take_is_refused():
    loss = {"kind": "own_objectives:reinforce", "own": {"scael": 2.0}}
    with pytest.raises(ConfigError, match="the keyword 'scael': got an unexpected keyword"):
        check_objective(config({"loss": loss}))


def test_settings_of_ones_own_without_a_function_are_refused():
    with pytest.raises(ValueError, match=r"\[own\] holds arguments of a loss of your own"):
        LossConfig.model_validate({"own": {"scale": 2.0}})
