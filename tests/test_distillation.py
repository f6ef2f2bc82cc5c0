"""On-policy distillation: the advantages of tokens against transformers' own models, teachers by environment,
of other sizes and families, on ranks; and what is refused before a run."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import scored
from pydantic import ValidationError
from test_learner import learner, samples, stock_logprobs, with_rollout_logprobs
from transformers import AutoModelForCausalLM

from rl.config import load_config
from rl.config_error import ConfigError
from rl.record.teachers import check_teachers, with_teachers
from rl.samples.samples import group_samples
from trainer.config import LearnerConfig, LossConfig, OptimConfig
from trainer.distil_config import DistilConfig
from trainer.distillation import distances, distilled
from trainer.learner import Learner
from trainer.policy import load_policy
from trainer.sample import TrainSample
from trainer.weights import write_checkpoint

pytestmark = pytest.mark.heavy


def distilling(checkpoint: Path, temperature: float = 1.0, **distill) -> Learner:
    return learner(
        checkpoint,
        temperature=temperature,
        keep_versions=1,
        advantage="distill",
        distill=DistilConfig(**distill),
        loss=LossConfig.model_validate({"kind": "dapo", "behaviour": "learner"}),
        optim=OptimConfig(lr=1e-3),
    )


def fresh(ours: Learner, batch=None) -> list[TrainSample]:
    batch = samples() if batch is None else batch
    return with_rollout_logprobs(batch, ours.logprobs(batch), ours.version)


def in_envs(batch, *envs: str) -> list[TrainSample]:
    return [replace(s, env=envs[i % len(envs)]) for i, s in enumerate(batch)]


def moved(checkpoint: Path, folder: Path, seed: int) -> Path:
    """Another policy of the same architecture and tokenizer."""
    shutil.copytree(checkpoint, folder)
    model = load_policy(checkpoint, torch.float32)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for weight in model.parameters():
            weight += 0.03 * torch.randn_like(weight)
    write_checkpoint(model, folder, torch.float32)
    return folder


def stock(folder: Path, batch, temperature: float = 1.0) -> list[list[float]]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return [stock_logprobs(model, s, temperature).tolist() for s in batch]


@pytest.fixture(scope="module")
def teachers(checkpoints, tmp_path_factory) -> dict[str, Path]:
    """Two teachers of the student's family."""
    root = tmp_path_factory.mktemp("teachers")
    start = checkpoints["longcat_flash"]
    return {name: moved(start, root / name, seed) for seed, name in enumerate("ab")}


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_tokens_advantage_is_the_teachers_log_prob_less_the_students(
    checkpoint, teachers, temperature
):
    ours = distilling(checkpoint, temperature, teacher=str(teachers["a"]))
    batch = fresh(ours)
    wanted = [
        [t - s for t, s in zip(theirs, own, strict=True)]
        for theirs, own in zip(
            stock(teachers["a"], batch, temperature),
            stock(checkpoint, batch, temperature),
            strict=True,
        )
    ]
    result = ours.step(batch)
    assert max(abs(gap) for one in wanted for gap in one) > 0.1
    for scores, gaps in zip(result.token_scores, wanted, strict=True):
        assert scores.advantages == pytest.approx(gaps, abs=2e-4)
    every = [gap for one in wanted for gap in one]
    assert result.metrics["distill/all/kl"] == pytest.approx(-sum(every) / len(every), abs=1e-4)


def test_each_environment_has_its_teacher_and_the_student_is_the_present_policy(
    checkpoint, checkpoints, teachers
):
    # The second one is of another family: its vocabulary is the same.
    other = checkpoints["qwen3_moe"]
    ours = distilling(
        checkpoint, teacher=str(teachers["a"]), teachers={"x": str(other), "y": str(teachers["b"])}
    )
    batch = in_envs(samples(), "x", "y", "z")
    stale = fresh(ours, batch)
    ours.step(stale)
    folders = {"x": other, "y": teachers["b"], "z": teachers["a"]}
    now = ours.logprobs(batch)
    wanted = [
        [t - s for t, s in zip(stock(folders[s.env], [s])[0], own, strict=True)]
        for s, own in zip(batch, now, strict=True)
    ]
    result = ours.step(stale)
    for scores, gaps in zip(result.token_scores, wanted, strict=True):
        assert scores.advantages == pytest.approx(gaps, abs=2e-4)
    assert {"distill/x/kl", "distill/y/kl", "distill/z/kl"} <= result.metrics.keys()


def test_the_outcome_is_added_with_its_weight():
    sample = replace(samples()[0], advantages=tuple(2.0 * m for m in samples()[0].loss_mask))
    count = sample.num_policy_tokens
    theirs, own = [[-1.0] * count], [[-1.5] * count]
    for outcome, wanted in ((None, 0.5), ("grpo", 0.5 + 0.25 * 2)):
        weight = {} if outcome is None else {"outcome_weight": 0.25}
        config = DistilConfig(teacher="x", outcome=outcome, **weight)
        [found] = distilled([sample], theirs, own, config)
        assert {a for a, m in zip(found.advantages, sample.loss_mask, strict=True) if m} == {wanted}
        assert {a for a, m in zip(found.advantages, sample.loss_mask, strict=True) if not m} <= {
            0.0
        }


def test_a_group_without_variance_and_one_of_a_single_member_are_taught():
    settings = {"advantage": "distill", "distill": {"teacher": "x"}}
    name = LearnerConfig.model_validate(settings).reward_advantage
    for members in ([scored("a", 1.0), scored("b", 1.0)], [scored("a", 0.0)]):
        found, dropped = group_samples(members, name, filter_zero_variance=False)
        assert [s.id for s in found] == [m.trajectory.id for m in members] and not dropped
    settings["distill"]["outcome"] = "rloo"
    assert LearnerConfig.model_validate(settings).reward_advantage == "rloo"


def test_metrics_are_means_over_the_tokens_of_an_environment():
    batch = in_envs(samples()[:2], "x", "y")
    counts = [s.num_policy_tokens for s in batch]
    theirs, own = [[-2.0] * counts[0], [-1.0] * counts[1]], [[-1.0] * n for n in counts]
    found = distances(batch, theirs, own)
    assert found["distill/x/kl"] == 1 and found["distill/y/kl"] == 0
    assert found["distill/all/kl"] == pytest.approx(counts[0] / sum(counts))


def test_the_student_comes_nearer_to_its_teacher_and_no_teacher_moves(checkpoint, teachers):
    ours = distilling(checkpoint, teacher=str(teachers["a"]))
    assert ours.teachers is not None
    before = ours.teachers.logprobs(samples())
    first = ours.step(fresh(ours)).metrics
    for _ in range(3):
        last = ours.step(fresh(ours)).metrics
    assert ours.teachers.logprobs(samples()) == before
    assert last["distill/all/kl"] != first["distill/all/kl"]


def test_a_policy_is_its_own_teacher_without_any_advantage(checkpoint):
    ours = distilling(checkpoint, teacher=str(checkpoint))
    for scores in ours.step(fresh(ours)).token_scores:
        assert scores.advantages == pytest.approx([0.0] * len(scores.advantages), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"advantage": "distill"}, "go together"),
        ({"distill": {"teacher": "x"}}, "go together"),
        ({"advantage": "distill", "distill": {}}, "there is no teacher"),
        ({"advantage": "distill", "distill": {"teacher": "x", "outcome": "gae"}}, "reinforce_pp"),
        ({"advantage": "distill", "distill": {"teacher": "x", "outcome_weight": 2}}, "outcome"),
        (
            {"advantage": "distill", "distill": {"teacher": "x"}, "normalise": "batch"},
            "set distill.outcome",
        ),
        (
            {"advantage": "distill", "distill": {"teacher": "x"}, "loss": {"kind": "gspo"}},
            "moves all tokens of a sample alike",
        ),
    ],
)
def test_settings_without_effect_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        LearnerConfig.model_validate(settings)


def run_config(tmp_path: Path, **distill):
    config = load_config("configs/quickstart.toml", ["--runs-dir", str(tmp_path / "runs")])
    learner_config = config.learner.model_copy(
        update={"advantage": "distill", "distill": DistilConfig(**distill)}
    )
    return config.model_copy(update={"learner": learner_config})


def test_a_teacher_with_another_tokenizer_is_refused_with_a_sentence(checkpoint, tmp_path):
    other = shutil.copytree(checkpoint, tmp_path / "other")
    file = other / "tokenizer.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"vocab": {', '"vocab": {"zzz": 99999,', 1), encoding="utf-8")
    config = run_config(tmp_path, teacher=str(checkpoint), teachers={"orders": str(other)})
    with pytest.raises(ConfigError, match="has another tokenizer than the policy that is trained"):
        with_teachers(config, str(checkpoint))
    fine = run_config(tmp_path, teacher=str(checkpoint))
    found = with_teachers(fine, str(checkpoint)).learner.distill
    assert found is not None and found.teacher == str(checkpoint.resolve())


@pytest.mark.parametrize(
    ("distill", "said"),
    [
        ({"teachers": {"orders": "{c}"}}, "environment 'calculator' has no teacher"),
        ({"teacher": "{c}", "teachers": {"order": "{c}"}}, "there is no environment 'order'"),
        ({"teacher": "nowhere"}, "nowhere: there is no such folder"),
        ({"teacher": "runs/x@best"}, "runs/x is no run folder with checkpoints"),
    ],
)
def test_teachers_that_are_not_there_are_one_sentence(checkpoint, tmp_path, distill, said):
    filled = {
        key: {k: v.format(c=checkpoint) for k, v in value.items()}
        if isinstance(value, dict)
        else value.format(c=checkpoint)
        for key, value in distill.items()
    }
    with pytest.raises(ConfigError, match=said):
        check_teachers(run_config(tmp_path, **filled), None)


def test_a_teacher_may_be_a_runs_best_checkpoint(checkpoint, teachers, tmp_path):
    trained = learner(checkpoint, optim=OptimConfig(lr=1e-3))
    run = tmp_path / "runs" / "expert"
    for step in (1, 2):
        trained.step(fresh(trained))
        trained.save_state(
            run / "checkpoints" / f"step_{step}",
            lambda folder: shutil.copy(checkpoint / "tokenizer.json", folder),
        )
        trained.wait_saved()
        if step == 1:
            wanted = trained.logprobs(samples())
    (run / "checkpoints" / "best").symlink_to("step_1")
    config = run_config(tmp_path, teacher=f"{run}@best")
    found = with_teachers(config, str(checkpoint)).learner.distill
    assert found is not None and found.teacher == str((run / "policies" / "step_1").resolve())
    ours = distilling(checkpoint, teacher=found.teacher)
    assert ours.teachers is not None
    for theirs, own in zip(ours.teachers.logprobs(samples()), wanted, strict=True):
        assert theirs == pytest.approx(own, abs=1e-5)
