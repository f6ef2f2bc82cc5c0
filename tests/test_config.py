"""Settings: what a good file becomes, and the one sentence that each mistake gets, here and in the CLI."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from rl.cli import app
from rl.config import RunConfig, load_config
from rl.config_file import ConfigError, find_config, flat, read_origins
from rl.env_table import DeadlineConfig, EnvTable
from rl.nodes.address import silent_address
from rl.nodes.cpus import usable_cpus
from rl.objective_check import check_objective
from rl.preflight.check import check_run
from rl.preflight.settings import check_settings, own_settings, with_own_deadlines
from rl.record.run_folder import dump_toml
from rollout.engine import Sampling
from trainer.config import LearnerConfig

ROOT = Path(__file__).parent.parent
BASE = """
name = "demo"
steps = 3

[model.init]
family = "qwen3_moe"

[[env]]
id = "calculator"

[[env]]
id = "sensors"
name = "radio"
"""


def write(folder: Path, text: str = BASE) -> Path:
    path = folder / "demo.toml"
    path.write_text(text, encoding="utf-8")
    return path


def sentence(folder: Path, text: str = BASE, *overrides: str) -> str:
    """The message of the ConfigError that loading raises."""
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text), overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_file_becomes_a_frozen_tree_with_defaults(tmp_path):
    config = load_config(write(tmp_path))
    assert (config.name, config.steps, config.mode) == ("demo", 3, "in_flight")
    assert [table.label for table in config.env] == ["calculator", "radio"]
    assert config.folder == Path("runs/demo")
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 4


@pytest.mark.parametrize(
    ("overrides", "read"),
    [
        (["--seed", "1"], lambda c: c.seed == 1),
        (["--env.1.config.least", "-1"], lambda c: c.env[1].config == {"least": -1}),
        (["--learner.optim.lr=1e-4"], lambda c: c.learner.optim.lr == 1e-4),
        (["--learner.optim.lr", "1"], lambda c: c.learner.optim.lr == 1.0),
        (["--env.0.weight", "2"], lambda c: c.env[0].weight == 2 and c.env[1].weight == 1),
        (["--env.1.config.most-failures", "0"], lambda c: c.env[1].config == {"most_failures": 0}),
        (["--name", "other"], lambda c: c.name == "other"),
        (["--max-staleness", "3"], lambda c: c.max_staleness == 3),
        (["--model.format", "hermes"], lambda c: c.model.format == "hermes"),
        (["--episode.tool_format", "hermes"], lambda c: c.model.format == "hermes"),
        (["--batch.filter_zero_variance=false"], lambda c: not c.batch.filter_zero_variance),
        (["--learner.loss.tis.cap", "inf"], lambda c: c.learner.loss.tis.cap == math.inf),
        (["--learner.optim.betas", "[0.8, 0.9]"], lambda c: c.learner.optim.betas == (0.8, 0.9)),
        (["--seed", "1", "--seed=2"], lambda c: c.seed == 2),
    ],
)
def test_any_setting_can_be_changed_on_the_command_line(tmp_path, overrides, read):
    assert read(load_config(write(tmp_path), overrides))


def test_where_each_value_comes_from(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'name = "a"\nsteps = 3\n[model.init]\npreset = "tiny"\n[learner.optim]\nlr = 1.0\n'
        '[[env]]\nid = "calculator"\n[env.deadlines]\ntool_seconds = 5\n',
        encoding="utf-8",
    )
    overrides = [
        "--learner.optim.lr",
        "1e-4",
        "--env.0.weight=2",
        "--sampling",
        "{temperature = 0.5}",
    ]
    assert read_origins(file, overrides) == {
        **dict.fromkeys(
            ("name", "steps", "model.init.preset", "env.0.id", "env.0.deadlines.tool_seconds"),
            f"file {file}",
        ),
        "learner.optim.lr": "--learner.optim.lr",
        "env.0.weight": "--env.0.weight",
        "sampling.temperature": "--sampling",
    }
    own = own_settings(load_config(file, overrides))
    assert own["env.0.deadlines.score_seconds"] == "environment calculator"
    assert "env.0.deadlines.tool_seconds" not in own


def test_nested_tables_as_one():
    nested = {"a": {"b": 1, "c": [1, 2]}, "env": [{"id": "x"}, {"id": "y", "config": {}}], "d": []}
    assert flat(nested) == {"a.b": 1, "a.c": [1, 2], "env.0.id": "x", "env.1.id": "y", "d": []}


def test_staleness_is_zero_in_sync_mode(tmp_path):
    assert load_config(write(tmp_path), ["--mode", "sync"]).rules.max_staleness == 0
    assert load_config(write(tmp_path), ["--max_staleness", "2"]).rules.max_staleness == 2


def test_a_loss_brings_its_papers_advantage_and_correction_unless_told_otherwise(tmp_path):
    def chosen(*overrides: str) -> tuple[str, str]:
        learner = load_config(write(tmp_path), overrides).learner
        return learner.advantage, learner.loss.correction

    assert chosen() == ("grpo", "tis")
    assert chosen("--learner.loss.kind", "rloo") == ("rloo", "none")
    assert chosen("--learner.loss.kind", "ppo") == ("gae", "none")
    assert chosen("--learner.loss.kind=dapo", "--learner.advantage=dr_grpo") == ("dr_grpo", "none")
    assert chosen("--learner.loss.kind=gspo", "--learner.loss.correction=mis") == ("grpo", "mis")
    assert chosen("--learner.loss.correction", "none") == ("grpo", "none")
    assert chosen("--learner.loss.behaviour", "engine") == ("grpo", "none")


def test_the_resolved_settings_name_the_choice_and_leave_out_what_nothing_reads(tmp_path):
    text = dump_toml(load_config(write(tmp_path), ["--learner.loss.kind", "gspo"]))
    learner = tomllib.loads(text)["learner"]
    assert learner["advantage"] == "grpo"
    assert set(learner["loss"]) == {
        *("kind", "max_completion_tokens", "behaviour", "correction", "entropy_weight", "own"),
        "gspo",
    }


@pytest.mark.parametrize("loss", ["5", "{ kind = [1] }", "{ kind = 3 }"])
def test_a_loss_of_the_wrong_kind_is_one_sentence(tmp_path, loss):
    assert "learner.loss" in sentence(tmp_path, BASE, "--learner.loss", loss)


def test_a_part_of_a_losss_settings_leaves_the_rest_at_its_papers_values(tmp_path):
    loss = load_config(
        write(tmp_path), ["--learner.loss.kind=gspo", "--learner.loss.gspo.clip_high=5e-4"]
    ).learner.loss
    assert (loss.gspo.clip_low, loss.gspo.clip_high) == (3e-4, 5e-4)


@pytest.mark.parametrize(
    ("added", "wanted"),
    [
        ("[learner.optim]\nlearning_rate = 1", "learner.optim.learning_rate: unknown key"),
        (
            "[learner.optim]\nwarmup_step = 1",
            "learner.optim.warmup_step: unknown key, did you mean",
        ),
        ("[batch]\ngroup = 1", "batch.group: unknown key, did you mean 'groups'?"),
        ("[batch]\nzzz = 1", "known here are groups, group_size, length, filter_zero_variance"),
        ("[[env]]\nid = 'orders'\nwieght = 2", "env.2.wieght: unknown key, did you mean 'weight'?"),
        (
            "[[env]]\nid = 'orders'\ndeadlines = { tool_second = 2 }",
            "env.2.deadlines.tool_second: unknown key, did you mean 'tool_seconds'?",
        ),
        ("[sft]\nstep = 2", "sft.step: unknown key, did you mean 'steps'?"),
        ("[batch]\ngroups = 'many'", "batch.groups: input should be a valid integer"),
        ("[batch]\ngroups = 0", "batch.groups: input should be greater than 0, got 0"),
        ("[learner]\ndevice = 'tpu'", "learner.device: input should be 'cpu' or 'cuda', got 'tpu'"),
        ("[batch]\ngroup_size = 1", "batch.group_size has to be at least 2"),
        (
            "[episode]\nmax_tokens = 5000",
            "learner.micro_batch_tokens (4096) has to hold a whole trajectory",
        ),
        (
            "[learner.router]\nreplay = true",
            "learner.router.replay repeats the engine's expert choices: it needs engine.capture_routing",
        ),
        ("[engine]\nmax_model_len = 100", "engine.max_model_len (100) has to be at least"),
        (
            "[learner]\nadvantage = 'grpo'\nloss = { kind = 'ppo' }",
            "learner: advantage 'grpo' does not go with loss.kind 'ppo'",
        ),
        ("[learner]\nadvantage = 'gae'", '"gae" needs the critic of "ppo"'),
        (
            "[learner]\ndiscount = 0.9",
            'discount (0.9) is of rewards from turn to turn, and nothing reads it: it needs credit = "turn"',
        ),
        (
            "[learner]\ncredit = 'turn'\nloss = { kind = 'ppo' }",
            "credit \"turn\" has nothing to add to advantage 'gae', which is of turns already",
        ),
        (
            "[learner]\ncredit = 'turn'\nloss = { kind = 'gspo' }",
            'credit "turn" takes no effect with loss.kind "gspo"',
        ),
        ("[learner]\ncredit = 'token'", "learner.credit"),
        (
            "[learner]\nranks = 4\nexpert_parallel = 3",
            "learner: expert_parallel (3) has to divide ranks (4)",
        ),
        (
            "[learner]\nranks = 2\ndevice = 'cuda'\ngpus = 2",
            "learner: gpus (2) is of each of the 2 ranks, and a rank uses one GPU",
        ),
        (
            "[learner.loss]\nkind = 'gspo'\ngrpo = { clip_high = 0.3 }",
            "learner.loss: [grpo] is set, and nothing reads it: kind is 'gspo', the correction is 'none'",
        ),
        ("[learner.loss.mis]\ncap = 1.1", "[mis] is set, and nothing reads it: kind is 'longcat'"),
        (
            "[learner.loss]\ncorrection = 'icepop'\nicepop = { low = 6 }",
            "icepop.low (6) has to be below icepop.high (5)",
        ),
        (
            "[learner.loss]\ncorrection = 'tis'\nbehaviour = 'engine'",
            "correction 'tis' needs behaviour = \"learner\"",
        ),
        (
            "[learner.loss]\nkind = 'hispo'\ncorrection = 'tis'",
            'kind "hispo" masks and weighs the gap between learner and engine itself',
        ),
        (
            "[learner.loss]\nkind = 'dupo'",
            "learner.loss.kind: input should be 'longcat', 'grpo', 'dr_grpo'",
        ),
        (
            "[learner.lora]\nrank = 4\nalpha = 8\ntargets = ['o_proj', 'kv_b_proj']",
            "learner.lora.targets: 'kv_b_proj' cannot be one: vLLM multiplies its weight into",
        ),
        (
            "[learner.lora]\nrank = 4\nalpha = 8\ntargets = ['out_proj']",
            "learner.lora.targets.0: input should be 'q_proj', 'k_proj'",
        ),
        ("[learner.lora]\nrank = 4\nalpha = 8", "learner.lora.targets: this key is required"),
        (
            "[learner]\nlora = { rank = 4, alpha = 8, targets = ['o_proj'] }\nrouter = { bias_rate = 0.1 }",
            "learner: router.bias_rate moves the router's bias, and with [lora] engines get adapters only",
        ),
        (
            "[learner.lora]\nrank = 513\nalpha = 8\ntargets = ['o_proj']",
            "learner.lora.rank: input should be less than or equal to 512, got 513",
        ),
        (
            "[learner.loss.longcat]\nclip_pos_hi = 0.3",
            "learner.loss.longcat.clip_pos_hi: unknown key, did you mean 'clip_pos_high'?",
        ),
        ("[batch]\nreuse_ratio = 1", "batch.reuse_ratio: input should be less than 1, got 1"),
        (
            "[batch]\nreuse_ratio = 0.75",
            "batch.reuse_ratio (0.75) is too high for a staleness of 1: 8 new groups may be on their way",
        ),
        (
            "[engine]\ncompile = true\ndevice = 'cuda'\ngpus = 1",
            'engine: compile is of engines on a CPU, and device is "cuda": leave it out',
        ),
        (
            "[engine]\ncompile = true\nvllm = { enforce_eager = true }",
            "engine: compile = true and vllm.enforce_eager = true exclude each other: leave one out",
        ),
        (
            "[engine.vllm.compilation_config.inductor_compile_config]\nmax_autotune = true",
            "engine: vllm.compilation_config.inductor_compile_config.max_autotune makes the weights a part",
        ),
        (
            "[engine]\ncompile = true\n[learner.lora]\nrank = 4\nalpha = 8\ntargets = ['o_proj']",
            "engine.compile: on a CPU vLLM compiles no engine with adapters (learner.lora); leave it out",
        ),
        ("[[env]]\nid = 'calculator'", "two environments are called 'calculator'"),
        ("[[env]]\nid = 'sensors'\nname = 'all'", "no environment can be called"),
        ("[model]\npath = 'x'", "model: give exactly one of path, hub and init"),
        ("[model.init]\npreset = 'tiny'", "not valid TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence_with_file_and_key(tmp_path, added, wanted):
    text = sentence(tmp_path, f"{BASE}\n{added}\n")
    assert text.startswith(f"config {tmp_path}/demo.toml: ")
    assert wanted in text


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["--stepz", "3"], "command line: stepz: unknown key, did you mean 'steps'?"),
        (
            ["--learner.optim.lrr", "1"],
            "command line: learner.optim.lrr: unknown key, did you mean 'lr'?",
        ),
        (
            ["--env.0.wieght=2"],
            "command line: env.0.wieght: unknown key, did you mean 'weight'?",
        ),
        (["--steps", "three"], "command line: steps: input should be a valid integer"),
        (["--steps"], "command line: --steps needs a value"),
        (["steps", "3"], "command line: 'steps' is no override; they look like --steps 10"),
        (["--env.7.weight", "2"], "command line: --env.7.weight: there is no entry '7'"),
        (["--env.x.weight", "2"], "command line: --env.x.weight: there is no entry 'x'"),
        (["--env.0", "orders"], "command line: --env.0 has to name a key of one entry"),
        (["--name.first", "x"], "command line: --name.first: 'name' is no section"),
        (["--max_staleness", "0"], 'needs max_staleness of at least 1; 0 is mode = "sync"'),
        (
            ["--mode", "dora", "--engine.update", "keep_cache"],
            'engine.update "keep_cache" is for mode "in_flight"',
        ),
        (["--mode", "dora2"], "mode: input should be 'sync', 'one_step', 'in_flight' or 'dora'"),
        (
            ["--mode", "dora", "--live_versions", "0"],
            "needs live_versions (K) of at least 1, got 0",
        ),
        (["--rollout.over_dispatch", "0.5"], "rollout.over_dispatch (0.5) is below one batch"),
        (["--name", "a/b"], "name 'a/b' has to be usable as a folder name"),
        (["--model.path", "x"], "model: give exactly one of path, hub and init"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(tmp_path, overrides, wanted):
    assert wanted in sentence(tmp_path, BASE, *overrides)


def test_a_missing_key_is_named(tmp_path):
    assert sentence(tmp_path, BASE.replace('name = "demo"', "")).endswith(
        "demo.toml: name: this key is required"
    )
    assert "env: this key is required" in sentence(
        tmp_path, 'name = "demo"\n[model.init]\nfamily = "qwen3_moe"\n'
    )


@pytest.mark.parametrize(
    "name",
    ["quickstart.toml", "configs/quickstart.toml", "./quickstart.toml", "sim/dora_testbed.toml"],
)
def test_dorados_own_configurations_are_found_by_name_wherever_one_is(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(Path(name)) == ROOT / "configs" / Path(name).relative_to(
        "configs" if name.startswith("configs/") else "."
    )
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("", encoding="utf-8")
    assert find_config(Path(name)) == Path(name), "a file that is there goes first"


def test_a_config_that_is_not_there_is_said_with_the_one_that_is_meant(tmp_path):
    for name in ("quikstart.toml", "quickstart.toml"):
        with pytest.raises(ConfigError, match=rf"{name}: .* Dorado brings /.*/quickstart\.toml$"):
            load_config(tmp_path / name)
    for name in ("config.toml", "x.toml"):
        with pytest.raises(ConfigError, match=r"the file does not exist$"):
            load_config(tmp_path / name)


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 3000], ids=["long", "deep"])
def test_a_value_that_toml_cannot_hold_is_refused_as_text(tmp_path, text):
    with pytest.raises(ConfigError, match=r"steps: .*(number|integer)"):
        load_config(write(tmp_path, 'name = "x"'), ["--steps", text])


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.toml: the file does not exist"):
        load_config(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match=r"demo.toml: not valid TOML: .*line 1"):
        load_config(write(tmp_path, "name = = 3"))
    with pytest.raises(ConfigError, match=r"demo.toml: it is nested too deeply"):
        load_config(write(tmp_path, f"name = {'[' * 3000}{']' * 3000}"))
    with pytest.raises(ConfigError, match=r"demo.toml: not valid TOML: .* value has 5000 digits$"):
        load_config(write(tmp_path, f"steps = {'9' * 5000}"))
    with pytest.raises(ConfigError, match=r"the file cannot be read: Is a directory$"):
        load_config(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"name = '\xff\xfe'")
    with pytest.raises(ConfigError, match=r"binary.toml: "):
        load_config(tmp_path / "binary.toml")
    with pytest.raises(ConfigError, match="config "):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["--mode", "sync"],
        ["--learner.loss.tis.cap", "inf"],
        ["--learner.loss.kind=ppo", "--learner.loss.correction=icepop"],
        ["--env.1.config.most_failures", "1", "--env.1.rewards.solved", "2"],
        ["--engine.vllm.block_size", "16", "--sft.steps", "7"],
        ["--learner.lora", "{ rank = 4, alpha = 8, targets = ['q_proj', 'o_proj'] }"],
    ],
    ids=" ".join,
)
def test_the_resolved_settings_load_again_to_the_same(tmp_path, overrides):
    config = load_config(write(tmp_path), overrides)
    again = tmp_path / "again.toml"
    again.write_text(dump_toml(config), encoding="utf-8")
    assert load_config(again) == config


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("--learner.optim.lr=inf", "learner.optim.lr: input should be a finite number, got inf"),
        (
            "--learner.optim.betas=[2, 3]",
            "learner.optim.betas.0: input should be less than 1, got 2",
        ),
        (
            "--learner.optim.betas=[0.9, nan]",
            "learner.optim.betas.1: input should be a finite number",
        ),
        (
            "--learner.optim.betas=[-0.1, 0.9]",
            "learner.optim.betas.0: input should be greater than",
        ),
        ("--learner.loss.tis.cap=nan", "learner.loss.tis.cap: "),
        ("--env.0.rewards.solved=nan", "env.0.rewards.solved: input should be a finite number"),
        ("--env.0.rewards.solved=inf", "env.0.rewards.solved: input should be a finite number"),
        ("--env.0.weight=inf", "env.0.weight: input should be a finite number"),
        ("--env.0.deadlines.tool_seconds=inf", "env.0.deadlines.tool_seconds: input should be a"),
        ("--sampling.temperature=inf", "sampling.temperature: input should be a finite number"),
        ("--engine.vllm.gpu_memory_utilization=nan", "gpu_memory_utilization has to be a finite"),
        ("--rollout.rebalance_seconds=inf", "rollout.rebalance_seconds: input should be a finite"),
    ],
)
def test_a_number_that_a_setting_has_no_use_for_is_refused(tmp_path, override, key):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path), [override])
    assert key in str(caught.value) and "\n" not in str(caught.value)


def test_a_configuration_is_read_as_utf_8_whatever_the_locale_is(tmp_path):
    file = tmp_path / "café.toml"
    file.write_bytes(b"\xef\xbb\xbf" + b'name = "t"\n[model.init]\n' + ENV.encode())
    script = (
        "import locale, sys; locale.setlocale(locale.LC_ALL, ''); sys.path.insert(0, sys.argv[2]);"
        "from rl.config import load_config; print(ascii(load_config(sys.argv[1]).env[0].name))"
    )
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", script, str(file), str(ROOT)],
        capture_output=True,
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        cwd=tmp_path,
    )
    assert done.stdout == b"'caf\\xe9'\n", done.stderr.decode(errors="replace")


ENV = '[[env]]\nid = "calculator"\nname = "café"\n'


def test_an_override_that_is_not_utf_8_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--env.0.name: 'caf\\\\udce9' is not UTF-8"):
        load_config(write(tmp_path), ["--env.0.name", "caf\udce9"])


def test_rows_are_seen_from_the_folder_of_the_configuration(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "rows.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "here.jsonl").write_text("", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    table = '[[env]]\nid = "dataset"\n[env.config]\nheldout_path = "PATH"\n'
    head = 'name = "t"\n[model.init]\n'

    def seen(path: str) -> object:
        file = tmp_path / "there" / "run.toml"
        file.write_text(head + table.replace("PATH", path), encoding="utf-8")
        return load_config(file).env[0].config["heldout_path"]

    assert seen("rows.jsonl") == f"{tmp_path}/there/rows.jsonl"
    assert seen("nowhere.jsonl") == f"{tmp_path}/there/nowhere.jsonl"
    assert seen("here.jsonl") == "here.jsonl", "as before, from the working directory"
    assert seen("v1/api") == "v1/api", "no file of rows"


# The command line itself.


@pytest.fixture
def run(tmp_path, checkpoint):
    """Run `dorado train` on a file whose policy is the tiny checkpoint."""
    text = BASE.replace('[model.init]\nfamily = "qwen3_moe"', f'[model]\npath = "{checkpoint}"')
    path = write(tmp_path, f'runs_dir = "{tmp_path}/runs"\n{text}')

    def run(*arguments: str):
        return CliRunner().invoke(app, ["train", str(path), *arguments])

    return run


def test_a_dry_run_prints_settings_that_load_again_and_starts_nothing(run, tmp_path):
    result = run("--dry-run", "--seed", "4", "--learner.optim.lr=1e-4")
    assert (result.exit_code, result.stderr) == (0, "")
    (tmp_path / "printed.toml").write_text(result.stdout, encoding="utf-8")
    wanted = load_config(tmp_path / "demo.toml", ["--seed", "4", "--learner.optim.lr=1e-4"])
    assert load_config(tmp_path / "printed.toml") == wanted
    assert RunConfig.model_validate(tomllib.loads(result.stdout)) == wanted
    assert not (tmp_path / "runs").exists()


def test_a_reference_that_the_mathematics_judge_cannot_read_is_refused_before_the_run(
    run, tmp_path
):
    rows = [
        {"question": f"what is {n}?", "answer": n if n != 7 else r"\frac{1}{"} for n in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "sums.toml").write_text(
        f'name = "sums"\nmodel = {{ path = "{tmp_path}" }}\n[[env]]\nid = "dataset"\n'
        f'config = {{ path = "{tmp_path}/rows.jsonl" }}\njudges = ["mathematics"]\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as caught:
        check_run(load_config(tmp_path / "sums.toml", []))
    sentence = (
        "('what is 7?'): the reference answer '\\\\frac{1}{' cannot be judged by `mathematics`"
    )
    assert sentence in str(caught.value)


def checked(path: Path, *options: str) -> str:
    """The sentence of the check of settings, "" where there is none."""
    text = 'name = "x"\nmodel = { init = {} }\n[[env]]\nid = "calculator"\n'
    (path / "x.toml").write_text(text, encoding="utf-8")
    try:
        config = load_config(path / "x.toml", options)
        check_settings(config)
        check_objective(config)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("behaviour", ["learner", "engine"])
def test_a_cut_distribution_is_refused_whatever_the_behaviour(tmp_path, behaviour):
    loss = ("--learner.loss.behaviour", behaviour)
    assert checked(tmp_path, *loss) == checked(tmp_path, *loss, "--sampling.temperature=0.7") == ""
    sentence = checked(tmp_path, *loss, "--sampling.top_p=0.7")
    assert sentence.startswith("sampling.top_p: at 0.7 tokens are drawn from a distribution whose")
    for key, value in (("top_k", 20), ("min_p", 0.1), ("repetition_penalty", 1.1)):
        for section in ("sampling", "env.0.sampling"):
            sentence = checked(tmp_path, *loss, f"--{section}.{key}={value}")
            assert sentence.startswith(f"{section}.{key}: at {value} tokens are drawn from ")
            assert sentence.endswith("set it in [eval.sampling], for held-out episodes alone")
    assert checked(tmp_path, "--env.0.sampling.temperature=0.5").startswith(
        "env.0.sampling.temperature: 0.5 is not that of [sampling], 1, with which the learner computes"
    )


def test_held_out_episodes_may_be_drawn_from_any_distribution_and_turns_end_at_texts(tmp_path):
    cut = ["--eval.sampling.top_k=20", "--eval.sampling.min_p=0.1", "--eval.sampling.temperature=0"]
    texts = ["--sampling.stop=['</answer>']", "--env.0.sampling.stop_token_ids=[7]"]
    assert checked(tmp_path, *cut, *texts) == ""
    config = load_config(tmp_path / "x.toml", [*cut, *texts])
    train, heldout = (config.sampling_of(config.env[0], train=t) for t in (True, False))
    assert train == Sampling(1.0, stop=("</answer>",), stop_token_ids=(7,))
    assert heldout == replace(train, temperature=0.0, top_k=20, min_p=0.1)
    assert train.cuts == {} and heldout.cuts == {"top_k": 20, "min_p": 0.1}
    assert "sampling.stop.0: " in checked(tmp_path, "--sampling.stop=['']")


@pytest.mark.parametrize(
    "argument",
    ["logprobs_mode='raw_logprobs'", "override_generation_config={top_p=0.5}"],
)
def test_arguments_of_the_engine_that_change_the_distribution_are_refused(tmp_path, argument):
    key, _, _ = argument.partition("=")
    sentence = checked(tmp_path, f"--engine.vllm={{{argument}}}")
    assert sentence.startswith(f"engine.vllm.{key}: changes what tokens are drawn from")


def test_the_longest_completion_of_a_loss_is_the_episodes(tmp_path):
    def t_max(*options: str) -> int:
        assert checked(tmp_path, *options) == ""
        return load_config(tmp_path / "x.toml", options).learner.loss.max_completion_tokens

    assert t_max() == min(256, 8 * 32)
    assert t_max("--episode.max_turns=2") == t_max(
        "--learner.loss.kind=hispo", "--episode.max_turns=2"
    )
    assert t_max("--episode.max_turns=2") == 64
    assert t_max("--learner.loss.max_completion_tokens=32") == 32
    sentence = "does not fit the episodes, in which a policy writes up to 32 tokens a turn and 256"
    for kind in ("longcat", "dr_grpo", "hispo"):
        for wrong in (31, 257):
            options = (
                f"--learner.loss.max_completion_tokens={wrong}",
                f"--learner.loss.kind={kind}",
            )
            assert sentence in checked(tmp_path, *options)
    assert t_max("--learner.loss.max_completion_tokens=31", "--learner.loss.kind=grpo") == 31


def test_a_run_is_checked_once(run, monkeypatch):
    checked: list[RunConfig] = []
    trained: list[RunConfig] = []
    monkeypatch.setattr("rl.preflight.check.check_run", checked.append)
    monkeypatch.setattr("rl.launch._train", lambda config, *_: trained.append(config) or 0)
    assert run("--seed", "5").exit_code == 0
    assert [config.seed for config in checked] == [config.seed for config in trained] == [5]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--stepz", "3"], "unknown key, did you mean 'steps'?"),
        (["--steps", "three"], "steps: input should be a valid integer"),
        (["--model.path", "/no/such/policy"], "the folder /no/such/policy does not exist"),
        (["--env.0.id", "calculater"], "'calculater' does not exist: did you mean 'calculator'?"),
        (["--env.0.config.largset", "9"], "config.largset: unknown key; known here are largest"),
        (["--env.0.judges", "['exacd']"], "judge 'exacd' does not exist; installed are exact"),
        (
            ["--learner.lora", "{ rank = 4, alpha = 8, targets = ['o_proj', 'q_proj'] }"],
            "lora.targets: longcat_flash has no q_proj outside its experts, possible are q_a_proj,",
        ),
        (["--engine.count", "999"], f"this machine has {usable_cpus()}"),
        (["--engine.count", "2", "--engine.cpus", "500"], "ask for 1000 CPUs"),
        (["--runs_dir", f"{__file__}/runs"], "test_config.py/runs cannot be written to"),
        (["--timeouts.stall_seconds", "20"], "timeouts.stall_seconds (20) has to be above"),
        (["--cluster.weights_dir", "/no/such/folder"], "cluster.weights_dir: the folder"),
        (["--rollout.hosts", "100000"], "rollout.hosts: 100000 processes of at least 100 MiB"),
        (["--rollout.controllers", "1000000"], "rollout.controllers: 1000000 processes"),
        (["--engine.vllm.max_num_batched_token", "9"], "did you mean 'max_num_batched_tokens'?"),
        (["--engine.vllm", "{ nope = 1 }"], "engine.vllm.nope: vLLM's engine has no such argument"),
        (["--cluster.address", "127.0.0.1:1"], "cluster.address: nobody answers for Ray at 127"),
        (["--cluster.address", "here"], "'here' is no address: local, auto or HOST:PORT"),
        (["--env.1.id", "dataset", "--env.1.config.path", "no.jsonl"], "'no.jsonl' does not exist"),
        (["--env.0.rewards.slved", "0.5"], "did you mean 'solved'?"),
        (["--env.0.judges", '["exact", "exact"]'], "the reward 'exact' is given twice"),
        (["--env.0.rewards.solved", "0"], "every reward of environment 'calculator' has weight 0"),
        (["--env.0.rewards.exact", "0.5"], "given are solved: drop it, or name the judge"),
    ],
)
@pytest.mark.parametrize("mode", [["--dry-run"], []], ids=["dry run", "run"])
def test_a_bad_input_is_exit_code_2_and_one_line(run, tmp_path, arguments, wanted, mode):
    result = run(*mode, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and wanted in line
    assert not (tmp_path / "runs").exists(), "nothing half-started is left behind"


def model_folder(source: Path, target: Path, change) -> str:
    """A copy of a checkpoint after `change(folder)`."""
    shutil.copytree(source, target)
    change(target)
    return str(target)


def masked(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["BertForMaskedLM"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def with_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), encoding="utf-8")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def with_tensors(folder: Path, kept) -> None:
    """Leave the tensors out whose names are not `kept`."""
    file = folder / "model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if kept(name)}, file)


def index_of_a_missing_file(folder: Path) -> None:
    names = {"weight_map": {"model.norm.weight": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(names), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (masked, "holds a BertForMaskedLM, not a causal language model"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (
            lambda folder: (folder / "config.json").write_text("{", encoding="utf-8"),
            "is not valid JSON",
        ),
        (lambda folder: (folder / "config.json").write_text("[]", encoding="utf-8"), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no *.safetensors weights"),
        (lambda folder: (folder / "tokenizer_config.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (cut, "is not whole"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "no whole safetensors"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 99),
            "no whole safetensors",
        ),
        (lambda folder: with_config(folder, vocab_size=77), "and config.json asks for [77, "),
        (lambda folder: with_config(folder, hidden_size=48), "and config.json asks for ["),
        (
            lambda folder: with_config(folder, num_layers=9, num_hidden_layers=9),
            "asks for 9 layers",
        ),
        (
            lambda folder: with_tensors(folder, lambda name: ".layers.1.self_attn" not in name),
            "no file holds model.layers.1.self_attn.",
        ),
        (
            lambda folder: with_tensors(
                folder, lambda name: ".layers.1.mlp.experts.2." not in name
            ),
            "no file holds model.layers.1.mlp.experts.2.down_proj.weight, which config.json asks for",
        ),
        (
            lambda folder: with_config(folder, expert_ffn_hidden_size=96),
            "and config.json asks for [",
        ),
        (index_of_a_missing_file, "has no model-2.safetensors, which model.safetensors.index.json"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text(
                "{% if %}", encoding="utf-8"
            ),
            "chat_template",
        ),
    ],
)
def test_a_folder_that_is_no_policy_is_one_line(run, tmp_path, checkpoint, change, wanted):
    result = run("--model.path", model_folder(checkpoint, tmp_path / "policy", change))
    assert result.exit_code == 2, result.exception
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: model.path: ") and wanted in line


def test_a_cold_start_needs_its_section_and_experts(run, tmp_path, checkpoint):
    demo = str(tmp_path / "demo.toml")
    result = CliRunner().invoke(app, ["sft", demo])
    assert (result.exit_code, "there is no [sft] section" in result.stderr) == (2, True)
    (tmp_path / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n', encoding="utf-8")
    dataset = ["--env.1.id", "dataset", "--env.1.config.path", str(tmp_path / "rows.jsonl")]
    result = CliRunner().invoke(app, ["sft", demo, "--sft.steps", "1", *dataset])
    assert result.exit_code == 2 and "offers no expert" in result.stderr


def test_a_new_policy_needs_a_folder_that_is_not_there_and_a_family_there_is(tmp_path):
    out = tmp_path / "policy"
    taken = CliRunner().invoke(app, ["model", "init", str(tmp_path)])
    assert (taken.exit_code, taken.stderr) == (2, f"error: {tmp_path} exists already\n")
    wrong = CliRunner().invoke(app, ["model", "init", str(out), "--family", "llama"])
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: --family: input should be 'longcat_flash' or")
    assert not out.exists()


def test_deadlines_are_the_runs_then_the_environments_own_then_the_usual_ones():
    given = DeadlineConfig(tool_seconds=5)
    slow = with_own_deadlines(EnvTable(id="python_code", deadlines=given)).deadlines
    assert (slow.tool_seconds, slow.score_seconds, slow.reset_seconds) == (5, 180, 30)
    assert with_own_deadlines(EnvTable(id="orders")).deadlines == DeadlineConfig()


@pytest.mark.parametrize("seed", [0, 7, 20241130, 2**31, 2**32 - 1, 2**40, 10**30])
def test_every_seed_derives_seeds_that_all_libraries_take(seed):
    config = RunConfig.model_validate(
        {"name": "demo", "seed": seed, "model": {"init": {}}, "env": [{"id": "calculator"}]}
    )
    derived = [config.seed_of(seed * 1000 + engine) for engine in range(64)]
    assert all(0 <= one < 2**31 for one in derived) and len(set(derived)) == 64
    # Small ones stay as they are: a run of before repeats itself.
    assert derived[:2] == [seed * 1000, seed * 1000 + 1] or seed * 1000 >= 2**31


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", "-1"),
        ("steps", "true"),
        ("engine.count", "true"),
        ("engine.cpus", "false"),
        ("batch.group_size", "true"),
        ("timeouts.step_seconds", "true"),
        ("rollout.over_dispatch", "true"),
        ("learner.optim.lr", "true"),
        ("learner.optim.betas", "[true, 0.9]"),
        ("env.0.rewards", "{ solved = true }"),
        ("env.0.weight", "true"),
        ("sampling.temperature", "true"),
    ],
)
def test_a_truth_for_a_number_and_a_negative_seed_are_refused(tmp_path, key, value):
    file = tmp_path / "demo.toml"
    file.write_text(
        'name = "demo"\nmodel = { init = {} }\n[[env]]\nid = "calculator"\n', encoding="utf-8"
    )
    with pytest.raises(ConfigError, match=key.rpartition(".")[2]) as raised:
        load_config(file, [f"--{key}", value])
    said = str(raised.value)
    assert "true and false are no numbers" in said or "greater than or equal to 0" in said


def test_a_truth_where_one_is_wanted_is_taken(tmp_path):
    file = tmp_path / "demo.toml"
    file.write_text(
        'name = "demo"\nmodel = { init = {} }\n[[env]]\nid = "calculator"\n', encoding="utf-8"
    )
    given = [
        "--eval.before",
        "false",
        "--env.0.config",
        "{ deep = true }",
        "--engine.vllm",
        "{a = true}",
    ]
    config = load_config(file, given)
    assert not config.eval.before and config.engine.vllm == {"a": True}


def test_an_opening_that_leaves_no_room_is_found_before_anything_starts(run, checkpoint):
    short = ["--episode.max_tokens", "40", "--episode.max_completion_tokens", "8"]
    result = run("--dry-run", "--model.path", str(checkpoint), *short)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "its openings leave no room for an answer" in line and "episode.max_tokens is 40" in line


def test_an_address_where_something_else_listens_is_no_ray_and_is_said_so_soon():
    with socket.create_server(("127.0.0.1", 0)) as dumb:
        began = time.monotonic()
        said = silent_address(f"127.0.0.1:{dumb.getsockname()[1]}", 1.0)
    assert "nobody answers for Ray at 127.0.0.1" in said and time.monotonic() - began < 5


def test_a_chat_template_that_loses_a_tools_result_is_refused_before_a_run(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "policy")
    template = tmp_path / "policy" / "chat_template.jinja"
    each = "{%- for message in messages -%}"
    written = template.read_text(encoding="utf-8")
    assert each in written
    deaf = each.replace("messages", "messages if message.role != 'tool'")
    template.write_text(written.replace(each, deaf), encoding="utf-8")
    (tmp_path / "run.toml").write_text(
        f'name = "t"\nmodel = {{ path = "{tmp_path / "policy"}" }}\n[[env]]\nid = "calculator"\n',
        encoding="utf-8",
    )
    wanted = (
        r"model\.path: .*policy: the chat template leaves out the empty result of the tool called in turn 1 "
        r"\(role 'tool'\)"
    )
    with pytest.raises(ConfigError, match=wanted):
        check_run(load_config(tmp_path / "run.toml", []))
    check_run(load_config(tmp_path / "run.toml", ["--episode.max_turns", "1"]))


WORLD = """
import os, time
from envs.env import Env
from envs.message import Message

class World(Env):
    name = "world"
    reward_names = ("solved",)

    def sample(self, rng):
        return {"a": rng.random()}

    def expert(self, task):
        yield Message("assistant", "4")

    async def reset(self, task):
        BODY
        return [Message("user", "count the stones " * 40)]

    async def score(self):
        return {"solved": 1.0}
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("body", "code"),
    [("pass", 2), ("raise ValueError('no stones')", 0), ("os._exit(3)", 0), ("1 / 0", 0)],
)
def test_openings_of_others_are_looked_at_too_and_those_that_fail_are_left_to_the_run(
    run, checkpoint, tmp_path, body, code
):
    file = tmp_path / "world.py"
    file.write_text(WORLD.replace("BODY", body), encoding="utf-8")
    short = ["--episode.max_tokens", "64", "--episode.max_completion_tokens", "8"]
    world = ["--env.0.id", f"{file}:World", "--env.1.id", f"{file}:World", "--env.1.name", "other"]
    result = run("--dry-run", "--model.path", str(checkpoint), *short, *world)
    assert result.exit_code == code, result.stderr
    if code:
        (line,) = result.stderr.splitlines()
        assert "env 'world.py:World': its openings leave no room for an answer" in line


def test_a_loss_without_a_ratio_is_for_fresh_samples(tmp_path):
    loss = ("--learner.loss.kind", "rloo")
    check_objective(load_config(write(tmp_path), [*loss, "--mode", "sync"]))
    with pytest.raises(ConfigError, match=r"'rloo' has no ratio, .* set mode = .sync."):
        check_objective(load_config(write(tmp_path), loss))


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (
            {"kind": "gspo", "kl": {"weight": 0.1, "estimator": "k1", "place": "reward"}},
            'the one ratio of loss.kind "gspo" moves all tokens of a sample alike',
        ),
        ({"kind": "longcat", "longcat": {"clip_neg_high": 1.0}}, "clip_neg_high"),
    ],
)
def test_a_setting_of_a_loss_that_makes_no_sense_is_refused(loss, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        LearnerConfig.model_validate({"loss": loss})
