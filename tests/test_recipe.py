"""Recipes: stages by name, all checked first; done ones are skipped, interrupted ones go on, changed ones are
refused. Stages are stand-ins, commands that write down that they ran; none starts an engine."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rl.cli import app
from rl.config import load_config
from rl.config_error import ConfigError
from rl.recipes.config import find_recipe, load_recipe
from rl.recipes.plan import plan
from rl.recipes.runner import WHOLE, _how_far, missing, read_state

ROOT = Path(__file__).parent.parent
# Writes the result, and a line in a file beside the recipe, each time that it runs.
STAND_IN = """
import sys, time, pathlib
out, log, seconds = pathlib.Path(sys.argv[1]), pathlib.Path("ran.txt"), float(sys.argv[2])
with log.open("a", encoding="utf-8") as file:
    file.write(" ".join([out.name, *sys.argv[3:]]) + "\\n")
out.mkdir(parents=True, exist_ok=True)
time.sleep(seconds)
"""


def recipe(folder: Path, *stages: str, name: str = "r") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stand_in.py").write_text(STAND_IN, encoding="utf-8")
    head = f'name = "{name}"\nruns_dir = {json.dumps(str(folder / "runs"))}\n'
    (folder / "recipe.toml").write_text(head + "".join(stages), encoding="utf-8")
    return folder


def command(name: str, *uses: str, seconds: float = 0.0) -> str:
    words = [sys.executable, "stand_in.py", "{out}", str(seconds)]
    words += [f"{{stage:{one}}}" for one in uses]
    return f'[[stage]]\nname = "{name}"\nkind = "command"\ncommand = {json.dumps(words)}\n'


def call(*arguments: object):
    return CliRunner().invoke(app, ["recipe", "run", *map(str, arguments)])


def ran(folder: Path) -> list[str]:
    file = folder / "ran.txt"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def test_stages_run_in_order_with_each_others_results_and_once(tmp_path):
    folder = recipe(tmp_path, command("a"), command("b", "a"), command("c", "a", "b"))
    done = call(folder)
    assert done.exit_code == 0, done.output
    runs = tmp_path / "runs" / "r"
    assert ran(folder) == ["a", f"b {runs / 'a'}", f"c {runs / 'a'} {runs / 'b'}"]
    assert "3/3 c (command): done" in done.stdout
    again = call(folder / "recipe.toml")
    assert again.exit_code == 0 and again.stdout.count("done before") == 3
    assert len(ran(folder)) == 3


def test_a_dry_run_prints_the_plan_and_starts_nothing(tmp_path):
    folder = recipe(tmp_path, command("a"), command("b", "a"))
    done = call(folder, "--dry-run")
    assert done.exit_code == 0
    assert "1/2 a (command), to do" in done.stdout and "2/2 b" in done.stdout
    assert ran(folder) == [] and not (tmp_path / "runs").exists()


def test_a_failed_stage_ends_the_recipe_with_its_last_sentence_and_is_tried_again(tmp_path):
    words = [
        sys.executable,
        "-c",
        "import pathlib, sys; done = pathlib.Path('fixed').exists(); print('error: it broke'); "
        "sys.exit(0 if done else 7)",
    ]
    broken = f'[[stage]]\nname = "b"\nkind = "command"\ncommand = {json.dumps(words)}\n'
    folder = recipe(tmp_path, command("a"), broken, command("c"))
    done = call(folder)
    assert done.exit_code == 1
    assert "stage 'b' has failed, exit code 7: error: it broke" in done.stderr
    assert ran(folder) == ["a"]
    (folder / "fixed").touch()
    assert call(folder).exit_code == 0
    assert ran(folder) == ["a", "c"]


def test_a_stage_whose_result_was_removed_runs_again_where_it_is_needed(tmp_path):
    file = recipe(tmp_path, command("a"), command("b", "a"), command("c", "b")) / "recipe.toml"
    stages = plan(load_recipe(file, {}), file)
    done = {stage.stage.name: {"state": "done"} for stage in stages}
    a, b, c = (Path(stage.result) for stage in stages)
    for folder in (a, b, c):
        folder.mkdir(parents=True)
    assert missing(done, stages) == set() and missing({}, stages) == {"a", "b", "c"}
    a.rmdir()
    assert missing(done, stages) == set(), "nobody needs it any more"
    c.rmdir()
    assert missing(done, stages) == {"c"}
    b.rmdir()
    assert missing(done, stages) == {"a", "b", "c"}


def test_a_record_of_stages_that_was_edited_to_nonsense_is_one_sentence(tmp_path):
    folder = recipe(tmp_path, command("a"))
    (folder / "runs" / "r").mkdir(parents=True)
    for text in ('{"a": "done"}', "[]", "{"):
        (folder / "runs" / "r" / "recipe.json").write_text(text, encoding="utf-8")
        done = call(folder)
        assert done.exit_code and "recipe.json" in done.output, done.exception


def test_a_recipe_that_has_changed_is_refused_where_the_stage_is_done(tmp_path):
    folder = recipe(tmp_path, command("a"), command("b", "a"))
    assert call(folder).exit_code == 0
    recipe(tmp_path, command("a", seconds=0.01), command("b", "a"))
    done = call(folder)
    assert done.exit_code == 2 and "stage 'a' is done, and the recipe has changed" in done.stderr
    assert call(folder, "--name", "other").exit_code == 0


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([command("a"), command("a")], "two stages are called 'a'"),
        ([command("a", "b"), command("b")], "stage 'a' uses 'b', which is no earlier stage"),
        (['[[stage]]\nname = "a"\nkind = "cook"\n'], "stage.1"),
        (['[[stage]]\nname = "a/b"\nkind = "command"\ncommand = ["x"]\n'], "pattern"),
        (
            ['[[stage]]\nname = "a"\nkind = "fuse"\nmodels = ["x", "y"]\nfusion.method = "ties"\n'],
            "--base",
        ),
        (
            ['[[stage]]\nname = "a"\nkind = "fuse"\nmodels = ["nowhere", "there"]\n'],
            "nowhere is neither an earlier stage nor a folder",
        ),
        (
            [
                '[[stage]]\nname = "a"\nkind = "train"\nconfig = "quickstart.toml"\nset = { stesp = 1 }\n'
            ],
            "did you mean 'steps'",
        ),
        (
            ['[[stage]]\nname = "a"\nkind = "train"\nconfig = "nowhere.toml"\n'],
            "config nowhere.toml: the file does not exist",
        ),
        (
            [
                '[[stage]]\nname = "a"\nkind = "train"\nconfig = "quickstart.toml"\n'
                'set = { model = { path = "stage:b" } }\n'
            ],
            "stage 'a' uses 'b'",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(tmp_path, stages, said):
    folder = recipe(tmp_path, *[command("first")], *stages)
    done = call(folder)
    assert done.exit_code == 2, done.output
    assert said in done.stderr, done.stderr
    assert ran(folder) == []


def test_a_recipe_that_is_not_there_names_those_that_are(tmp_path):
    done = call(tmp_path / "nowhere")
    assert done.exit_code == 2 and "recipes/quick" in done.stderr


def start(folder: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "rl", "recipe", "run", str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def wait_for(seen, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not seen():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.mark.process
def test_ctrl_c_ends_the_stage_and_the_same_command_goes_on(tmp_path):
    folder = recipe(tmp_path, command("a"), command("b", seconds=120))
    process = start(folder)
    wait_for(lambda: len(ran(folder)) == 2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted in stage 'b'" in out
    state = read_state(tmp_path / "runs" / "r")
    assert state["a"]["state"] == "done" and state["b"]["state"] == "begun"
    recipe(tmp_path, command("a"), command("b"))
    assert call(folder).exit_code == 0
    assert ran(folder) == ["a", "b", "b"]


@pytest.mark.process
def test_a_killed_runner_takes_its_stage_with_it_and_two_at_once_are_refused(tmp_path):
    folder = recipe(tmp_path, command("a", seconds=120))
    process = start(folder)
    state = tmp_path / "runs" / "r"
    wait_for(lambda: "pid" in read_state(state).get("a", {}) and ran(folder))
    refused = call(folder)
    assert refused.exit_code == 2 and "this recipe is in progress" in refused.stderr
    pid = int(str(read_state(state)["a"]["pid"]))
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: not alive(pid))
    recipe(tmp_path, command("a"))
    assert call(folder).exit_code == 0
    assert ran(folder) == ["a", "a"]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    return status.rpartition(")")[2].split()[0] != "Z"


def planned(name: str = "recipes/quick"):
    file = find_recipe(Path(name))
    return {one.stage.name: one for one in plan(load_recipe(file, {"runs_dir": "x"}), file)}


def test_the_quick_recipe_begins_each_stage_with_the_one_before():
    stages = planned()
    folder = Path("x/quick-recipe")
    chain = (("orders", "start"), ("distilled", "fused"), ("general", "distilled/policy"))
    for name, begins in chain:
        settings = stages[name].settings
        assert settings is not None and settings.model.path == str(folder / begins)
        assert settings.sft is None and settings.model.init is None
    experts = ("orders", "sensors", "units")
    assert [[t.id for t in stages[n].settings.env] for n in experts] == [[n] for n in experts]
    distil = stages["distilled"].settings.learner.distill
    assert distil.teachers == {n: str(folder / n / "policy") for n in experts}
    models = [str(folder / n / "policy") for n in experts]
    assert stages["fused"].command[:6] == ("model", "fuse", str(folder / "fused"), *models)
    assert stages["orders"].export == ("export", str(folder / "orders"), models[0])


def test_a_stages_key_depends_on_the_stages_that_it_uses(tmp_path):
    file = find_recipe(Path("recipes/quick"))
    text = file.read_text(encoding="utf-8")
    (tmp_path / "base.toml").write_text(
        (file.parent / "base.toml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    changed = tmp_path / "recipe.toml"
    changed.write_text(
        text.replace(
            'set = { env = [{ id = "units" }] }', 'set = { env = [{ id = "units" }], steps = 3 }'
        ),
        encoding="utf-8",
    )
    before = planned()
    after = {one.stage.name: one for one in plan(load_recipe(changed, {"runs_dir": "x"}), changed)}
    same = {name for name in before if before[name].key == after[name].key}
    assert same == {"start", "orders", "sensors"}


def test_a_training_goes_on_from_its_last_checkpoint_or_has_ended(tmp_path):
    settings = load_config("configs/quickstart.toml", ["--steps", "4", "--eval.after", "false"])
    assert _how_far(tmp_path, settings) == ""
    record = {
        "schema": 1,
        "model": {},
        "updates": 3,
        "version": 3,
        "past_versions": [],
        "files": {},
    }
    for step, wanted in ((3, "step_3"), (4, WHOLE)):
        folder = tmp_path / "checkpoints" / f"step_{step}"
        folder.mkdir(parents=True)
        (folder / "learner.json").write_text(json.dumps(record), encoding="utf-8")
        assert _how_far(tmp_path, settings) == wanted
    trained = json.dumps({"step": 4, "loss/loss": 1.0})
    (tmp_path / "metrics.jsonl").write_text(f"{trained}\n", encoding="utf-8")
    due = settings.model_copy(update={"eval": settings.eval.model_copy(update={"after": True})})
    assert _how_far(tmp_path, due) == "step_4"


@pytest.mark.slow
def test_the_quick_recipe_is_checked_as_a_whole(tmp_path):
    done = call("recipes/quick", "--dry-run", "--runs-dir", tmp_path)
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 7


@pytest.mark.slow
def test_a_stage_that_fuses_two_checkpoints_is_a_real_command(checkpoints, tmp_path):
    models = [str(checkpoints["qwen3_moe"])] * 2
    fuse = f'[[stage]]\nname = "fused"\nkind = "fuse"\nmodels = {json.dumps(models)}\n'
    folder = recipe(tmp_path, fuse, command("after", "fused"))
    done = call(folder)
    assert done.exit_code == 0, done.output
    out = tmp_path / "runs" / "r" / "fused"
    assert (out / "fusion.json").is_file() and (out / "model.safetensors").is_file()
    assert ran(folder) == [f"after {out}"]


def test_a_teacher_that_is_no_earlier_stage_is_refused():
    file = find_recipe(Path("recipes/quick"))
    distilled = load_recipe(file, {}).stage[5]
    with pytest.raises(ConfigError, match="'distilled' uses 'orders', which is no earlier stage"):
        load_recipe(file, {"stage": [distilled.model_dump()]})
