"""Held-out evaluation: every environment's tasks, faults apart, and its settings."""

from pathlib import Path

import pytest
from fakes import ENVS, FakeDispatcher

from rl.config import RunConfig, load_config
from rl.config_file import ConfigError
from rl.env_table import EnvTable
from rl.loop.evaluation import evaluate, heldout_sets, heldout_tasks
from rl.preflight.check import check_run
from rl.preflight.settings import own_settings, resolved
from rl.samples.metrics import pass_rates


@pytest.mark.parametrize("id", ENVS)
def test_heldout_tasks_are_different_ones_and_the_same_in_every_run(id):
    tasks = heldout_tasks(EnvTable(id=id), 30)
    assert tasks == heldout_tasks(EnvTable(id=id), 30)
    assert len({t.id for t in tasks}) == 30
    assert {t.split for t in tasks} == {"heldout"}


def test_a_small_world_has_fewer_heldout_tasks_than_asked_for():
    tiny = EnvTable(id="calculator", config={"largest": 1})
    tasks = heldout_tasks(tiny, 100)
    assert 0 < len(tasks) == len({t.id for t in tasks}) < 24


async def test_every_task_is_played_once_and_not_too_many_at_a_time():
    outcomes = {"calculator": "samples", "orders": "fault", "sensors": "lost"}
    dispatcher = FakeDispatcher(outcome=lambda spec: outcomes[spec.env])
    seen: list[tuple[int, int]] = []
    reports, wanted = await evaluate(
        {id: heldout_tasks(EnvTable(id=id), 9) for id in ENVS},
        dispatcher.play,
        "before",
        lambda *n: seen.append(n),
        most=4,
    )
    specs = [spec for _, spec in dispatcher.played]
    assert len({s.task.id for s in specs}) == len({s.ids for s in specs}) == wanted == 27
    assert not any(spec.train for spec in specs)
    assert dispatcher.most_at_once <= 4
    assert seen == [(n, 27) for n in range(1, 28)]
    assert len(reports) == 18, "lost groups have no report"
    assert pass_rates(reports) == {"calculator": 1.0}


async def test_the_episodes_of_a_task_are_a_group_and_no_more_instances_are_used_than_there_are():
    dispatcher = FakeDispatcher()
    sets = {id: heldout_tasks(EnvTable(id=id), 6) for id in ("calculator", "sensors")}
    busy: list[int] = []

    async def play(spec):
        busy.append(sum(one.env == "sensors" for one in dispatcher.playing.values()))
        return await dispatcher.play(spec)

    reports, wanted = await evaluate(
        sets, play, "x", lambda *_: None, most=16, samples=4, instances={"sensors": 7}
    )
    assert wanted == len(reports) == 12
    assert all(len(report.spec.ids) == 4 for report in reports)
    assert len({id for report in reports for id in report.spec.ids}) == 48
    assert dispatcher.most_at_once == 4 and max(busy) <= 1


def settings(**changes) -> RunConfig:
    base = {"name": "demo", "model": {"init": {}}, "env": [{"id": "calculator"}]}
    return RunConfig.model_validate({**base, **changes})


def test_an_evaluation_only_environment_has_its_noise_and_others_have_none():
    config = settings(
        env=[{"id": "calculator", "noise": {"level": 3}}],
        eval={"tasks": 5, "env": [{"id": "sensors", "noise": {"level": 2}}]},
    )
    sets = heldout_sets(config)
    assert {task.noise for task in sets["calculator"]} == {0}
    assert {task.noise for task in sets["sensors"]} == {2}
    assert [len(tasks) for tasks in sets.values()] == [5, 5]


@pytest.mark.parametrize(
    ("evaluated", "concurrency", "sentence"),
    [
        ({"samples_per_task": 16}, 12, r"eval.samples_per_task \(16\): at least 16"),
        ({"every": 5}, 8, r"\(1\) beside a group of training, 8: at least 9"),
        ({"every": 5, "samples_per_task": 4}, 11, r"\(4\) beside a group .*: at least 12"),
    ],
)
def test_too_few_instances_for_an_evaluation_are_refused(evaluated, concurrency, sentence):
    with pytest.raises(ValueError, match=sentence):
        settings(env=[{"id": "calculator", "concurrency": concurrency}], eval=evaluated)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("concurrency", [12, 16, 17, 64])
def test_training_and_evaluation_each_have_instances_enough_for_a_group(share, concurrency):
    config = settings(
        env=[{"id": "calculator", "concurrency": concurrency}],
        eval={"every": 5, "samples_per_task": 4, "share": share},
    )
    kept = config.kept(concurrency)
    assert 4 <= kept <= max(4, share * concurrency)
    assert concurrency - kept >= config.batch.group_size
    assert settings().kept(concurrency) == 0


def test_an_environment_is_trained_on_or_evaluated_only_and_not_both_under_one_name():
    with pytest.raises(ValueError, match="two environments are called 'calculator'"):
        settings(eval={"env": [{"id": "calculator"}]})
    config = settings(eval={"env": [{"id": "calculator", "name": "hard"}]})
    assert [table.label for table in config.all_envs] == ["calculator", "hard"]


def test_a_file_of_an_evaluation_only_environment_is_seen_from_the_configs_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"question": "1", "answer": 1}\n', encoding="utf-8")
    (tmp_path / "run.toml").write_text(
        'name = "t"\n[model.init]\n[[env]]\nid = "calculator"\n'
        '[[eval.env]]\nid = "dataset"\nname = "rows"\njudges = ["exact"]\n'
        'config = { heldout_path = "rows.jsonl", path = "rows.jsonl" }\n',
        encoding="utf-8",
    )
    config = load_config(tmp_path / "run.toml")
    assert config.eval.env[0].config["path"] == str(tmp_path / "rows.jsonl")
    assert "eval.env.0.deadlines.reset_seconds" in own_settings(config)
    assert resolved(config).eval.env[0].label == "rows"


def test_a_weight_of_an_unknown_reward_names_the_key_of_an_evaluation_only_environment(
    tmp_path: Path,
) -> None:
    evaluated = {"env": [{"id": "sensors", "rewards": {"solvd": 1.0}}]}
    with pytest.raises(ConfigError, match=r"eval\.env\.0\.rewards\.solvd"):
        check_run(settings(eval=evaluated, runs_dir=str(tmp_path)))
