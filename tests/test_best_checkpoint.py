"""The best checkpoint: which it is, what keeps it from going, and the commands that take it."""

import json
import os
from pathlib import Path

import pytest
from test_resume import checkpoint, settings
from typer.testing import CliRunner

from rl.cli import app
from rl.config import RunConfig
from rl.config_file import ConfigError
from rl.loop.resume import find_resume
from rl.record.best_checkpoint import BEST, Best, BestCheckpoint, find_best, link_best
from rl.record.checkpoint_choice import find_checkpoint
from rl.record.evaluations import best_of, read_evaluations
from rl.record.position import Position, write_position
from rl.record.run_folder import RunFolder
from trainer.checkpoint_folder import latest, prune, read_record, remove

POSITION = write_position(40, Position({"calculator": {}, "sensors": {}}, {}, {}))


def evaluated(run: Path, **rates: float | None) -> None:
    """Add evaluations, by version: `v4=0.5`."""
    with (run / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        for version, rate in rates.items():
            mean = None if rate is None else {"pass_rate": rate, "low": 0.0, "high": 1.0}
            row = {"step": int(version[1:]), "version": int(version[1:]), "mean": mean}
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 2, 4 and 5."""
    folder = RunFolder(settings(tmp_path))
    folder.close()
    for step in (2, 4, 5):
        checkpoint(folder.path, step, POSITION)
    return folder.path


def target(run: Path) -> str:
    return os.readlink(run / "checkpoints" / BEST)


def test_the_best_has_the_highest_rate_and_ties_go_to_the_earlier(run):
    assert find_best(run) is None
    evaluated(run, v0=0.9, v2=0.5, v3=0.95, v4=0.75, v5=0.75)
    assert find_best(run) == Best(4, 0.75), "of 0 and 3 there are no checkpoints"


def test_an_evaluation_without_a_rate_and_half_a_line_are_passed_over(run):
    evaluated(run, v2=0.5, v4=None)
    with (run / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "version": 5, "mean": {"pass')
    assert find_best(run) == Best(2, 0.5)


def test_lines_that_are_no_evaluation_are_passed_over(run):
    evaluated(run, v2=0.5)
    with (run / "evaluations.jsonl").open("ab") as file:
        file.write(
            b'[]\n\xff\n{"version": [4], "mean": {"pass_rate": 1}, "tasks": 1, "samples_per_task": 1}\n'
        )
        file.write(
            b'{"version": 4, "mean": {"pass_rate": "all"}, "tasks": 1, "samples_per_task": 1}\n'
        )
    assert find_best(run) == Best(2, 0.5)


def test_of_two_evaluations_of_a_version_the_later_counts(run):
    evaluated(run, v2=0.9, v4=0.5)
    evaluated(run, v2=0.1)
    assert find_best(run) == Best(4, 0.5)


def test_an_evaluation_most_of_which_ended_in_faults_does_not_count(run):
    evaluated(run, v2=0.5)
    for version, faults in ((4, 10), (5, 11)):
        row = {"version": version, "mean": {"pass_rate": 0.6 + version / 100}}
        row |= {"tasks": 10, "samples_per_task": 2, "faults": faults}
        with (run / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    assert find_best(run) == Best(4, 0.64)


def test_the_link_moves_to_a_better_one_and_goes_with_the_last(run):
    evaluated(run, v2=0.5)
    link_best(run)
    assert target(run) == "step_2"
    assert read_record(run / "checkpoints" / BEST).version == 2
    evaluated(run, v4=0.75)
    link_best(run)
    assert target(run) == "step_4"
    assert latest(run / "checkpoints", lambda said: None) == run / "checkpoints" / "step_5"
    for step in (2, 4):
        remove(run / "checkpoints" / f"step_{step}")
    assert link_best(run) is None
    assert not (run / "checkpoints" / BEST).is_symlink()


def test_the_best_and_the_one_that_is_evaluated_are_not_pruned(run):
    kept = BestCheckpoint(run, lambda said: None, wanted=True)
    evaluated(run, v2=0.5)
    kept.choose()
    kept.hold(4)
    checkpoint(run, 6, POSITION)
    prune(run / "checkpoints", 1)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"best", "evaluated", "step_2", "step_4", "step_6"}
    kept.release()
    prune(run / "checkpoints", 1)
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best", "step_2", "step_6"}


def test_a_checkpoint_that_becomes_whole_after_its_evaluation_is_chosen_then(run):
    kept = BestCheckpoint(run, lambda said: None, wanted=True)
    evaluated(run, v2=0.5, v6=0.75)
    kept.choose()
    assert target(run) == "step_2" and not kept.written(6)
    checkpoint(run, 6, POSITION)
    kept.choose()
    assert target(run) == "step_6" and kept.written(6)


def test_a_better_one_is_said_once(run):
    said: list[str] = []
    kept = BestCheckpoint(run, said.append, wanted=True)
    evaluated(run, v2=0.5)
    for _ in range(3):
        kept.choose()
    assert said == ["the best checkpoint is that of step 2: held-out pass rate 0.50"]


def test_a_file_system_without_links_is_told_and_ends_nothing(run, monkeypatch):
    said: list[str] = []
    kept = BestCheckpoint(run, said.append, wanted=True)
    evaluated(run, v2=0.5)

    def refuse(self, to):
        raise OSError("Operation not supported")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    kept.choose()
    assert said == ["checkpoints/best cannot be kept: Operation not supported"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({}, False),
        ({"eval": {"every": 5}}, True),
        ({"eval": {"seconds": 60}}, True),
        ({"eval": {"every": 5}, "checkpoint_best": False}, False),
        ({"checkpoint_best": True}, True),
    ],
)
def test_the_best_is_kept_where_evaluations_go_on_beside_training(given, kept):
    base = {"name": "demo", "model": {"init": {}}, "env": [{"id": "calculator"}]}
    assert RunConfig.model_validate(base | given).keeps_best is kept


def test_export_takes_the_best(run):
    evaluated(run, v2=0.75, v5=0.5)
    link_best(run)
    assert find_checkpoint(str(run), None, best=True) == run / "checkpoints" / "step_2"
    assert find_checkpoint(str(run), None) == run / "checkpoints" / "step_5"


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("{run}", "--best: .*demo has no best checkpoint: one is kept where evaluations go on"),
        ("{run}/checkpoints/step_2", "--best goes with a run folder, .* not with .*step_2"),
        ("2", "--best goes with a run folder, such as runs/quickstart, not with 2"),
    ],
)
def test_a_best_that_is_not_there_is_one_sentence(run, what, sentence):
    with pytest.raises(ConfigError, match=sentence):
        find_checkpoint(what.format(run=run), None, best=True)


def test_a_run_goes_on_from_its_best(run, tmp_path):
    evaluated(run, v2=0.75, v4=0.5)
    link_best(run)
    _, resume = find_resume(str(run), settings(tmp_path, steps=9), best=True)
    assert (resume.step, resume.checkpoint) == (2, run / "checkpoints" / "step_2")
    folder = RunFolder(settings(tmp_path, steps=9), resume=True)
    aside = folder.go_on(2)
    folder.close()
    assert target(run) == "step_2" and find_best(run) == Best(2, 0.75)
    undone = (aside / "evaluations.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["step"] for line in undone.splitlines()] == [4]


def test_an_evaluation_of_a_version_that_is_undone_does_not_count_for_the_one_made_anew(
    run, tmp_path
):
    evaluated(run, v2=0.5)
    late = {"step": 2, "version": 4, "mean": {"pass_rate": 0.9, "low": 0.0, "high": 1.0}}
    with (run / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(late) + "\n")
    folder = RunFolder(settings(tmp_path, steps=9), resume=True)
    aside = folder.go_on(2)
    folder.close()
    checkpoint(run, 4, POSITION)
    assert find_best(run) == Best(2, 0.5)
    assert json.loads((aside / "evaluations.jsonl").read_text(encoding="utf-8")) == late


def test_the_best_of_the_pages_is_the_best_that_is_kept(run):
    evaluated(run, v4=0.9, v2=0.5)
    evaluated(run, v4=0.25)
    few = {"step": 5, "version": 5, "tasks": 9, "faults": 8, "mean": {"pass_rate": 1.0}}
    with (run / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(few) + "\n")
    best = best_of(read_evaluations(run))
    assert best is not None and find_best(run) == Best(best.version, 0.5)


def test_a_best_that_is_undone_gives_way_to_the_best_of_what_is_left(run, tmp_path):
    evaluated(run, v2=0.5, v4=0.75)
    link_best(run)
    folder = RunFolder(settings(tmp_path, steps=9), resume=True)
    folder.go_on(2)
    folder.close()
    assert target(run) == "step_2"


def test_best_goes_with_a_run_and_no_step(run, tmp_path):
    with pytest.raises(ConfigError, match=r"--best goes with a run, and --resume .* names a step"):
        find_resume(f"{run}/step_2", settings(tmp_path, steps=9), best=True)
    done = CliRunner().invoke(app, ["train", "quickstart.toml", "--best"])
    assert done.exit_code == 2
    assert "--best goes with --resume: say which run goes on" in done.output
