"""Going on: which checkpoint, which settings, what becomes of the run folder, and which tasks come next."""

import asyncio
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakes import FakeDispatcher, FakePool, group_report, member
from rich.console import Console
from typer.testing import CliRunner

from rl.cli import app
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.loop.resume import Resume, find_resume
from rl.loop.run import Interrupted, Run
from rl.record.position import POSITION, Position, read_position, write_position
from rl.record.progress import Progress
from rl.record.run_folder import RunFolder
from rl.tasks.task_source import TaskSource
from rl.trackers.trackers import Trackers
from trainer.checkpoint_folder import Record, complete, make_room

SETTINGS: dict[str, Any] = {
    "name": "demo",
    "steps": 5,
    "mode": "in_flight",
    "model": {"init": {}},
    "env": [{"id": "calculator"}, {"id": "sensors", "weight": 2}],
    "batch": {"groups": 3, "group_size": 2},
    "rollout": {"max_in_flight_groups": 8},
    "eval": {"before": False, "after": False},
    "wandb": {"enabled": False},
}
EMPTY = Position({"calculator": {}, "sensors": {}}, {}, {})


def settings(runs: Path, **changes: Any) -> RunConfig:
    return RunConfig.model_validate({**SETTINGS, "runs_dir": str(runs), **changes})


def checkpoint(run: Path, step: int, position: str | None = None) -> Path:
    """A whole checkpoint without tensors."""
    folder = run / "checkpoints" / f"step_{step}"
    partial = folder.with_name(f"{folder.name}.partial")
    make_room(folder, partial)
    if position is not None:
        (partial / POSITION).write_text(position, encoding="utf-8")
    complete(partial, folder, Record(model={}, updates=step, version=step, past_versions=[]))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 2 and 3."""
    folder = RunFolder(settings(tmp_path))
    folder.close()
    for step in (2, 3):
        checkpoint(folder.path, step, write_position(10 * step, EMPTY))
    return folder.path


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("what", "step"),
    [
        ("demo", 3),
        ("demo/step_2", 2),
        ("{run}", 3),
        ("{run}/", 3),
        ("{run}/step_3", 3),
        ("{run}/checkpoints/step_2", 2),
    ],
)
def test_a_run_is_found_by_name_and_by_folder_and_its_name_goes_on(run, tmp_path, what, step):
    config, found = find_resume(what.format(run=run), settings(tmp_path, name="another", steps=9))
    assert (found.step, found.groups) == (step, 10 * step)
    assert found.checkpoint == run / "checkpoints" / f"step_{step}"
    assert (config.folder, config.steps) == (run, 9)


def test_a_save_that_did_not_end_is_passed_over_with_a_sentence(run, tmp_path):
    (run / "checkpoints" / "step_4.partial").mkdir()
    _, found = find_resume("demo", settings(tmp_path))
    assert found.step == 3
    assert len(found.notes) == 1 and "step_4.partial is no checkpoint" in found.notes[0]


@pytest.mark.parametrize(
    ("what", "changes", "sentence"),
    [
        ("nowhere", {}, "there is no run folder"),
        ("demo/step_7", {}, "is no checkpoint: there is no such folder"),
        ("demo", {"steps": 3}, "is at step 3 already and steps is 3"),
        ("demo", {"model": {"init": {"family": "qwen3_moe"}}}, "--resume: model was"),
        ("demo", {"seed": 4}, "--resume: seed was 0 in this run and is 4 now"),
        ("demo", {"env": [{"id": "calculator"}]}, "--resume: env was"),
        ("demo", {"learner": {"loss": {"kind": "grpo"}}}, "--resume: learner.loss.kind was"),
        (
            "demo",
            {"learner": {"loss": {"kind": "ppo"}, "critic": {"kind": "turn"}}},
            "--resume: learner.critic was",
        ),
    ],
)
def test_what_cannot_go_on_is_one_sentence(run, tmp_path, what, changes, sentence):
    with pytest.raises(ConfigError) as raised:
        find_resume(what, settings(tmp_path, **changes))
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_a_run_that_was_ended_before_its_last_evaluation_goes_on_for_it(run, tmp_path):
    due = {"steps": 3, "eval": {"before": True, "after": True}}
    (run / "metrics.jsonl").write_text(
        '{"step": 0, "eval/sensors/pass_rate": 0.5}\n{"step": 3, "rollout/all/reward": 1.0}\n',
        encoding="utf-8",
    )
    _, found = find_resume("demo", settings(tmp_path, **due))
    assert found.step == 3
    with pytest.raises(ConfigError, match="is at step 3 already and steps is 2"):
        find_resume("demo", settings(tmp_path, **due | {"steps": 2}))
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "eval/sensors/pass_rate": 0.75}\n')
    with pytest.raises(ConfigError, match="is at step 3 already and steps is 3"):
        find_resume("demo", settings(tmp_path, **due))


def test_a_run_without_a_whole_checkpoint_and_one_without_a_position_are_refused(tmp_path):
    folder = RunFolder(settings(tmp_path))
    folder.close()
    with pytest.raises(ConfigError, match="has no whole checkpoint"):
        find_resume("demo", settings(tmp_path))
    checkpoint(folder.path, 1)
    with pytest.raises(ConfigError, match=r"has no run\.json"):
        find_resume("demo", settings(tmp_path))


def test_the_command_line_says_it_in_one_line_and_exits_2(run, tmp_path):
    file = run / "config.toml"
    done = CliRunner().invoke(app, ["train", str(file), "--resume", "no-such", "--dry-run"])
    assert (done.exit_code, done.output.count("\n")) == (2, 1)
    assert "error: --resume: there is no run folder" in done.output
    done = CliRunner().invoke(app, ["train", str(file), "--resume", str(run), "--dry-run"])
    assert done.exit_code == 0, done.output


def test_undone_steps_are_moved_aside_and_half_lines_cut_off(run, tmp_path):
    config = settings(tmp_path)
    first = RunFolder(config, resume=True)
    first.metrics(0, {"eval/calculator/pass_rate": 0.25})
    for step in (1, 2, 3):
        first.metrics(step, {"loss/loss": float(step), "loss/kl": math.nan})
        first.experts(step, 1, [[1.0]])
        first.learned(step, [("g000041.0", 100 * step), (f"g00000{step}.0", 100 * step + 50)])
    first.event("learner", "step 3", 1.0, 2.0)
    report = group_report("calculator", [member("g000041.0")])
    first.index(report, "train")
    first._index.execute("update trajectories set grp = 'g000041'")
    first._index.commit()
    first.summary({"status": "interrupted"})
    first.close()
    for name in ("metrics.jsonl", "trajectories/controller-0.jsonl"):
        with (run / name).open("a", encoding="utf-8") as file:
            file.write('{"half": ')

    again = RunFolder(settings(tmp_path, steps=9), resume=True)
    assert (again.groups(), again.eval_before()) == (42, {"calculator": 0.25})
    aside = again.go_on(2)
    again.metrics(3, {"loss/loss": 30.0})
    again.learned(3, [("g000044.0", 400)])
    learned = again._index.execute("select step, id from learned order by step, id").fetchall()
    assert learned == [
        *((step, id) for step in (1, 2) for id in (f"g00000{step}.0", "g000041.0")),
        (3, "g000044.0"),
    ]
    again.close()
    undone = [
        (line["id"], line["step"], line["offset"]) for line in lines(aside / "learned_index.jsonl")
    ]
    assert undone == [("g000003.0", 3, 350), ("g000041.0", 3, 300)]
    assert [line["step"] for line in lines(run / "metrics.jsonl")] == [0, 1, 2, 3]
    assert lines(run / "metrics.jsonl")[-1]["loss/loss"] == 30.0
    assert [line["step"] for line in lines(run / "experts.jsonl")] == [1, 2]
    assert [line["loss/loss"] for line in lines(aside / "metrics.jsonl")] == [3.0]
    assert [line["step"] for line in lines(run / "not_finite.jsonl")] == [1, 2]
    assert [line["step"] for line in lines(aside / "not_finite.jsonl")] == [3]
    assert (run / "trajectories/controller-0.jsonl").read_text(encoding="utf-8") == ""
    assert [e["name"] for e in lines(run / "events.jsonl")] == ["step 3", "goes on after step 2"]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step_2"]
    assert {p.name for p in aside.iterdir()} == {
        *("config.toml", "origins.json", "summary.json"),
        *("metrics.jsonl", "experts.jsonl", "not_finite.jsonl", "learned_index.jsonl", "step_3"),
    }
    assert "steps = 9" in (run / "config.toml").read_text(encoding="utf-8")
    assert "steps = 5" in (aside / "config.toml").read_text(encoding="utf-8")


def test_a_run_in_progress_cannot_be_gone_on_with(run, tmp_path):
    held = RunFolder(settings(tmp_path), resume=True)
    with pytest.raises(ConfigError, match=r"--resume: the run in .* is in progress"):
        RunFolder(settings(tmp_path), resume=True)
    held.close()


def test_the_tasks_after_a_position_are_those_of_a_run_that_was_not_interrupted(tmp_path):
    config = settings(tmp_path)

    def begun(task_source: TaskSource, first: int, count: int) -> list[tuple[str, str]]:
        found = [task_source.begin(f"g{first + n}", 0.0, room=8) for n in range(count)]
        for number in range(first, first + count):
            task_source.put_back(f"g{number}")
        for again in task_source.again.values():
            again.clear()
        return [(label, task.id) for label, task in filter(None, found)]

    def supervision() -> TaskSource:
        return TaskSource(
            config.env, [t.make() for t in config.env], config.batch.group_size, seed=7
        )

    whole = supervision()
    wanted = begun(whole, 0, 6) + begun(whole, 6, 6)
    before = supervision()
    parts = begun(before, 0, 6)
    (tmp_path / POSITION).write_text(write_position(6, before.position()), encoding="utf-8")
    groups, position = read_position(tmp_path)
    after = supervision()
    after.restore(position)
    assert groups == 6
    assert parts + begun(after, 6, 6) == wanted
    assert len({id for _, id in wanted}) == 12
    assert asdict(after.position()) == asdict(whole.position())


async def test_a_run_that_is_stopped_saves_its_last_step_and_goes_on_after_it(tmp_path):
    """Over fake actors: three steps or so, stop, then on to the fifth."""

    def make(folder: RunFolder, resumed: Resume | None = None) -> Run:
        cluster: Any = SimpleNamespace(actors=FakePool(), weights=tmp_path)
        progress = Progress(Console(file=io.StringIO(), width=200))
        run = Run(
            folder.config,
            cluster,
            folder,
            progress,
            Trackers(folder),
            resumed,
        )
        fake: Any = FakeDispatcher(lambda: run.fleet.window.newest)
        run.dispatcher = run.rollouts.dispatcher = run.watch.dispatcher = fake
        return run

    config = settings(tmp_path, steps=1000)
    folder = RunFolder(config)
    run = make(folder)
    assert not run.stop(), "nothing is trained yet: it may end at once"
    running = asyncio.create_task(run.main())
    while run.book.learner_version < 3:
        await asyncio.sleep(0)
    assert run.stop() and not run.stop(), "a second time means at once"
    with pytest.raises(Interrupted):
        await asyncio.wait_for(running, 30)
    folder.close()
    last = run.book.learner_version
    saved = [path for name, path in run.actors.log if name == "save"]  # pyright: ignore
    assert saved == [str((folder.path / "checkpoints" / f"step_{last}").resolve())]
    checkpoint(folder.path, last, run.actors.positions[-1])  # pyright: ignore
    first_part = {spec.id for _, spec in run.dispatcher.played}  # pyright: ignore
    first_tasks = {(s.env, s.task.id) for _, s in run.dispatcher.played}  # pyright: ignore

    config, resume = find_resume("demo", settings(tmp_path, steps=last + 2))
    folder = RunFolder(config, resume=True)
    folder.go_on(resume.step)
    run = make(folder, resume)
    await asyncio.wait_for(run.main(), 30)
    folder.close()
    assert [line["step"] for line in lines(folder.path / "metrics.jsonl")] == [*range(1, last + 3)]
    loaded = [version for name, version in run.actors.log if name == "engine-0"]  # pyright: ignore
    assert loaded == [last, last + 1, last + 2], "before its first request an engine is up to date"
    played = run.dispatcher.played  # pyright: ignore
    assert min(version for version, _ in played) == last
    assert not first_part & {spec.id for _, spec in played}
    assert not first_tasks & {(s.env, s.task.id) for _, s in played}
    totals = run.summary()["ledger"]["all"]
    assert totals["dispatched"] == sum(n for name, n in totals.items() if name != "dispatched")
    assert totals["trained"] == 2 * 3 * 2
    assert run.summary()["resumed"]["step"] == last
