"""Whole runs on real Ray and real vLLM: what happens when things go wrong, and what is left behind."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.run, pytest.mark.timeout(290)]

ROOT = Path(__file__).parent.parent
COMMON = """
wandb = { enabled = false }
batch = { groups = 4, group_size = 4, filter_zero_variance = false }
episode = { max_turns = 3, max_completion_tokens = 24, max_tokens = 128, max_seconds = 60 }
engine = { count = 2, max_model_len = 128 }
learner = { micro_batch_tokens = 128, threads = 1, optim = { lr = 1e-4 } }
"""
CALCULATOR = '[[env]]\nid = "calculator"\n'


class Command:
    """`dorado ...` in a folder of its own; every process it starts carries a mark to be found by."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = folder
        environment = os.environ | {
            "DORADO_TEST_MARK": self.mark,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "WANDB_MODE": "disabled",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rl", *arguments],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=280)
        return self.process.returncode, output

    def read_until(self, text: str) -> str:
        """Read lines until one holds `text`; at the end of output, return what there was."""
        assert self.process.stdout is not None
        lines: list[str] = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                break
        return "".join(lines)

    def left_behind(self) -> list[str]:
        """Processes with the mark that are still there ten seconds after the end."""
        deadline = time.monotonic() + 10
        while (alive := self._alive()) and time.monotonic() < deadline:
            psutil.wait_procs(alive, timeout=0.5)
        return [" ".join(p.cmdline())[:120] for p in self._alive()]

    def _alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("DORADO_TEST_MARK") == self.mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that writes calculator calls, most of the time."""
    folder = tmp_path_factory.mktemp("policy")
    config = folder / "sft.toml"
    config.write_text(
        f'name = "sft"\nmodel = {{ init = {{}} }}\n{COMMON}\n{CALCULATOR}\n'
        "[sft]\ndemonstrations = 200\nsteps = 70\noptim = { lr = 2e-3, warmup_steps = 10 }\n"
    )
    code, output = Command(folder, "sft", str(config), "--out", "policy").wait()
    assert code == 0, output
    return folder / "policy"


def _summary(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / name / "summary.json").read_text())


def _assert_books_balance(ledger: dict[str, dict[str, int]]) -> None:
    for env, counts in ledger.items():
        ended = sum(n for state, n in counts.items() if state != "dispatched")
        assert counts["dispatched"] == ended, (env, counts)
        assert counts["in_flight"] == counts["buffered"] == 0, (env, counts)


def test_a_run_goes_on_through_faults_and_counts_them(policy: Path, tmp_path: Path) -> None:
    config = tmp_path / "chaos.toml"
    goes_on = "breaker = { faults = 17, episodes = 16 }\n"  # never trips
    envs = "".join(
        f'[[env]]\nid = "chaos_envs:{name}"\nname = "{label}"\nweight = 0.5\n'
        f"deadlines = {{ tool_seconds = 1 }}\n{goes_on}"
        for name, label in (
            ("ResetRaises", "reset_raises"),
            ("ToolHangs", "tool_hangs"),
            ("HostExits", "host_exits"),
        )
    )
    config.write_text(
        f'name = "chaos"\nsteps = 6\nmodel = {{ path = "{policy}" }}\n{COMMON}'
        "checkpoint_every = 2\ncheckpoint_keep = 2\n"
        f"rollout = {{ hosts = 2 }}\neval = {{ tasks = 4 }}\n{CALCULATOR}{goes_on}{envs}"
    )
    command = Command(tmp_path, "train", str(config))
    code, output = command.wait()
    assert code == 0, output
    assert command.left_behind() == []
    assert not list(Path("/dev/shm").glob(f"dorado-{command.process.pid}-*"))

    summary = _summary(tmp_path, "chaos")
    ledger = summary["ledger"]
    _assert_books_balance(ledger)
    assert summary["steps"] == 6
    assert ledger["calculator"]["trained"] > 0
    assert ledger["reset_raises"]["failed:env_fault"] > 0
    assert ledger["reset_raises"]["trained"] > 0
    assert ledger["tool_hangs"]["failed:env_fault"] > 0
    assert ledger["host_exits"]["failed:host_fault"] > 0
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5
    assert set(summary["staleness"]) <= {"0", "1"}
    assert sum(summary["staleness"].values()) == ledger["all"]["trained"]
    for sentence in ("the world is missing", "no answer within 1 s", "inside a tool"):
        assert sentence in output
    _assert_records_agree(tmp_path / "runs" / "chaos", ledger)
    # What was exported is a policy that a run can start from, and it is not the one that this run began with.
    saved = sorted(p.name for p in (tmp_path / "runs" / "chaos" / "checkpoints").iterdir())
    assert saved == ["step_4", "step_6"], "checkpoint_keep = 2, all of them whole"
    assert Command(tmp_path, "export", "6", "out", "--run", "runs/chaos").wait()[0] == 0
    assert (
        Command(tmp_path, "train", str(config), "--model.path", "out", "--dry-run").wait()[0] == 0
    )
    weights = [(p / "model.safetensors").read_bytes() for p in (policy, tmp_path / "out")]
    assert len(weights[0]) == len(weights[1]) and weights[0] != weights[1]


def test_an_environment_that_fails_for_a_while_rests_and_comes_back_by_itself(
    tmp_path: Path,
) -> None:
    """Of five environments one fails half-way; none of its trajectories gets a 0 for it."""
    switch = tmp_path / "how"
    config = tmp_path / "breaks.toml"
    envs = "".join(f'[[env]]\nid = "calculator"\nname = "steady-{n}"\n' for n in range(4))
    config.write_text(
        f'name = "breaks"\nsteps = 1000\nmodel = {{ init = {{}} }}\n{COMMON}'
        f"eval = {{ before = false, after = false }}\nrollout = {{ hosts = 2 }}\n{envs}"
        f'[[env]]\nid = "chaos_envs:Breaks"\nname = "breaks"\nconfig = {{ file = "{switch}" }}\n'
        "breaker = { cooldown_seconds = 2 }\n"
    )
    command = Command(tmp_path, "train", str(config))
    output = command.read_until("step 2/1000")
    switch.write_text("raise")
    output += command.read_until("gets no new groups")
    output += command.read_until("one group tries whether it works again")
    switch.unlink()
    output += command.read_until("environment 'breaks' works again")
    assert "works again" in output, output
    command.process.send_signal(signal.SIGINT)
    code, rest = command.wait()
    assert code == 130, output + rest
    assert command.left_behind() == []
    ledger = _summary(tmp_path, "breaks")["ledger"]
    _assert_books_balance(ledger)
    assert ledger["breaks"]["failed:env_fault"] >= 8
    assert all(ledger[f"steady-{n}"]["trained"] > 0 for n in range(4))
    rows = sqlite3.connect(tmp_path / "runs/breaks/trajectories.sqlite").execute(
        "select count(*), count(reward) from trajectories where stop_reason = 'env_fault'"
    )
    assert rows.fetchone() == (ledger["breaks"]["failed:env_fault"], 0)
    events = (tmp_path / "runs/breaks/events.jsonl").read_text()
    assert events.count('"lane": "supervision"') >= 3


def _assert_records_agree(folder: Path, ledger: dict[str, dict[str, int]]) -> None:
    """The index, the trajectories on disk and the ledger tell the same story."""
    rows = sqlite3.connect(folder / "trajectories.sqlite").execute(
        "select id, env, stop_reason, reward, file, offset from trajectories where split = 'train'"
    )
    faults: Counter[str] = Counter()
    plain_answers = 0
    for id, env, stop_reason, reward, file, offset in rows:
        with (folder / file).open("rb") as lines:
            lines.seek(offset)
            record = json.loads(lines.readline())
        assert record["id"] == id and record["stop_reason"] == stop_reason
        judged = stop_reason in ("completed", "max_turns", "max_tokens")
        assert (reward is not None) == judged
        if not judged:
            faults[f"{env}/failed:{stop_reason}"] += 1
        plain_answers += bool(record["turns"]) and not record["turns"][0]["calls"]
    booked = {
        f"{env}/{state}": count
        for env, counts in ledger.items()
        for state, count in counts.items()
        if state.startswith("failed") and env != "all"
    }
    assert dict(faults) == booked
    assert plain_answers > 0, "no answer without a tool call was among them"


@pytest.mark.smoke
def test_in_dora_each_trajectory_stays_on_its_version_and_none_is_too_old(
    policy: Path, tmp_path: Path
) -> None:
    config = tmp_path / "dora.toml"
    config.write_text(
        'name = "dora"\nmode = "dora"\nsteps = 5\neval = { tasks = 4, before = false }\n'
        f'model = {{ path = "{policy}" }}\n{COMMON}'
        '[[env]]\nid = "envs.builtin.slow_calculator:SlowCalculator"\nname = "slow"\n'
        "config = { median_seconds = 0.2, p99_seconds = 3.0 }\n"
    )
    command = Command(tmp_path, "train", str(config))
    code, output = command.wait()
    assert code == 0, output
    assert command.left_behind() == []
    assert not list(Path("/dev/shm").glob(f"dorado-{command.process.pid}-*"))
    summary = _summary(tmp_path, "dora")
    _assert_books_balance(summary["ledger"])
    assert set(summary["ledger"]["slow"]) <= {
        "dispatched",
        "trained",
        "cancelled",
        "in_flight",
        "buffered",
    }
    assert set(summary["staleness"]) <= {"0", "1", "2"}
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5
    assert summary["fleet"]["weight_moves"] >= 2
    versions: set[int] = set()
    for line in (tmp_path / "runs/dora/trajectories/controller-0.jsonl").open():
        seen = {span["version"] for turn in json.loads(line)["turns"] for span in turn["versions"]}
        assert len(seen) == 1, "one version per trajectory"
        versions |= seen
    # A version on which nothing begins, because enough is under way, writes nothing.
    assert {0, 1} <= versions <= {0, 1, 2, 3, 4, 5}


def test_an_elastic_run_lends_an_engine_gives_up_old_versions_and_says_what_it_waits_for(
    policy: Path, tmp_path: Path
) -> None:
    config = tmp_path / "elastic.toml"
    config.write_text(
        'name = "elastic"\nmode = "dora"\neviction = "discard"\nlayout = "elastic"\nsteps = 6\n'
        "eval = { before = false, after = false }\nrollout = { over_dispatch = 3 }\n"
        f'model = {{ path = "{policy}" }}\n{COMMON}'
        '[[env]]\nid = "envs.builtin.slow_calculator:SlowCalculator"\nname = "slow"\n'
        "config = { median_seconds = 0.4, p99_seconds = 15.0 }\n"
    )
    command = Command(tmp_path, "train", str(config))
    begun = command.read_until("step 1/6")
    assert "step 1/6" in begun, begun
    state: dict[str, Any] = {"counts": {}}
    while not state["counts"] and command.process.poll() is None:
        asked, said = Command(tmp_path, "status", "runs/elastic", "--json").wait()
        assert asked == 0, said
        state = json.loads(said)
    code, output = command.wait()
    assert code == 0, begun + output
    assert command.left_behind() == []
    assert state["live"] and set(state["engines"]) == {"engine-0", "engine-1"}
    assert sum(state["counts"]["slow"].values()) >= len(state["waiting"]) > 0
    assert {row["phase"] for row in state["waiting"]} <= {"tool", "generate", "reset", "between"}
    summary = _summary(tmp_path, "elastic")
    _assert_books_balance(summary["ledger"])
    assert summary["ledger"]["slow"].get("stale:evicted", 0) > 0, "15 s are more than two steps"
    assert summary["fleet"]["rebalances/switch"] == 6
    assert set(summary["staleness"]) <= {"0", "1", "2"}
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5


@pytest.mark.parametrize("mode", ["in_flight", "dora"])
def test_a_run_of_adapters_publishes_and_loads_them_alone(
    policy: Path, tmp_path: Path, mode: str
) -> None:
    config = tmp_path / "lora.toml"
    lora = '{ rank = 8, alpha = 16, targets = ["q_a_proj", "q_b_proj", "o_proj", "gate_proj"] }'
    config.write_text(
        f'name = "lora"\nmode = "{mode}"\nsteps = 5\neval = {{ tasks = 4, before = false }}\n'
        f'model = {{ path = "{policy}" }}\n{COMMON}{CALCULATOR}'
    )
    command = Command(
        tmp_path,
        "train",
        str(config),
        *("--learner.lora", lora, "--learner.optim.lr", "5e-3", "--checkpoint_every", "2"),
    )
    code, output = command.wait()
    assert code == 0, output
    assert command.left_behind() == []
    assert not list(Path("/dev/shm").glob(f"dorado-{command.process.pid}-*"))
    summary = _summary(tmp_path, "lora")
    _assert_books_balance(summary["ledger"])
    assert summary["steps"] == 5
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5
    last = tmp_path / "out"
    exported = Command(tmp_path, "export", "5", "out", "--run", "runs/lora")
    assert exported.wait()[0] == 0
    before, after = (load_file(f / "model.safetensors") for f in (policy, last))
    adapter = load_file(last / "adapter/adapter_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    named = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in adapter}
    assert changed == {f"{name}.weight" for name in named}
    megabytes = sum(t.nbytes for t in adapter.values()) / 1e6
    for line in (tmp_path / "runs/lora/metrics.jsonl").read_text().splitlines():
        published = json.loads(line).get("sync/megabytes")
        assert published is None or published <= 1.1 * megabytes


def test_a_synchronous_run_can_be_interrupted_and_leaves_nothing(tmp_path: Path) -> None:
    config = tmp_path / "sync.toml"
    config.write_text(
        'name = "sync"\nmode = "sync"\nsteps = 1000\neval = { before = false }\n'
        f'model = {{ init = {{ family = "qwen3_moe" }} }}\n{COMMON}{CALCULATOR}'
        '[[env]]\nid = "sensors"\n'
    )
    command = Command(tmp_path, "train", str(config), "--learner.loss.kind", "grpo")
    output = command.read_until("step 3/1000")
    assert "step 3/1000" in output, output
    command.process.send_signal(signal.SIGINT)
    code, rest = command.wait()
    assert code == 130, output + rest
    assert "interrupted" in rest
    assert command.left_behind() == []
    summary = _summary(tmp_path, "sync")
    assert summary["status"] == "interrupted"
    assert summary["steps"] >= 3
    assert set(summary["staleness"]) == {"0"}
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5
    _assert_books_balance(summary["ledger"])


@pytest.mark.smoke
def test_a_run_that_was_stopped_goes_on_after_its_last_step(policy: Path, tmp_path: Path) -> None:
    config = tmp_path / "stopped.toml"
    config.write_text(
        f'name = "stopped"\nsteps = 1000\nmodel = {{ path = "{policy}" }}\n'
        f"eval = {{ tasks = 4, after = false }}\n{COMMON}{CALCULATOR}"
    )
    folder = tmp_path / "runs" / "stopped"
    command = Command(tmp_path, "train", str(config))
    output = command.read_until("step 3/1000")
    assert "step 3/1000" in output, output
    command.process.send_signal(signal.SIGTERM)
    code, rest = command.wait()
    assert code == 130, output + rest
    assert command.left_behind() == []
    first = _summary(tmp_path, "stopped")
    done = first["steps"]
    _assert_books_balance(first["ledger"])
    assert [p.name for p in (folder / "checkpoints").iterdir()] == [f"step_{done}"], rest
    assert f"--resume runs/stopped goes on after step_{done}" in rest

    resumed = ("--resume", "runs/stopped", "--steps")
    code, output = Command(tmp_path, "train", str(config), *resumed, str(done)).wait()
    assert code == 2 and "is at step" in output, output
    command = Command(tmp_path, "train", str(config), *resumed, str(done + 3))
    code, output = command.wait()
    assert code == 0, output
    assert command.left_behind() == []
    assert not list(Path("/dev/shm").glob(f"dorado-{command.process.pid}-*"))
    last = _summary(tmp_path, "stopped")
    assert (last["steps"], last["resumed"]["step"]) == (done + 3, done)
    assert last["eval"]["before"] == first["eval"]["before"]
    _assert_books_balance(last["ledger"])
    # Learner and engines go on from the same weights, or their log-probs would differ.
    assert last["parity"]["mean_abs_dlogp"] <= 2e-5
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [*range(done + 4)], "with the evaluation before"
    goes_on = next(
        event["start"]
        for event in map(json.loads, (folder / "events.jsonl").open())
        if event["name"] == f"goes on after step {done}"
    )
    oldest = sqlite3.connect(folder / "trajectories.sqlite").execute(
        "select min(first_version), count(*) from trajectories where split = 'train' and start > ?",
        (goes_on,),
    )
    version, count = oldest.fetchone()
    assert version == done and count >= last["ledger"]["all"]["trained"]


def test_an_engine_that_cannot_start_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "broken.toml"
    config.write_text(f'name = "broken"\nmodel = {{ init = {{}} }}\n{COMMON}{CALCULATOR}')
    command = Command(tmp_path, "train", str(config), "--engine.kv_cache_gib", "100000")
    code, output = command.wait()
    assert code == 1, output
    errors = [line for line in output.splitlines() if "error:" in line]
    assert len(errors) == 1, output
    assert "could not start" in errors[0] and "Traceback" not in output
    assert command.left_behind() == []


def test_a_learner_of_two_ranks_trains_and_its_weights_are_those_that_engines_load(
    policy: Path, tmp_path: Path
) -> None:
    config = tmp_path / "ranks.toml"
    config.write_text(
        'name = "ranks"\nsteps = 4\neval = { before = false, after = false }\n'
        f'model = {{ path = "{policy}" }}\n{COMMON}{CALCULATOR}'
    )
    command = Command(
        tmp_path,
        "train",
        str(config),
        "--learner.ranks=2",
        "--learner.expert_parallel=2",
        "--learner.optim.lr=1e-3",
    )
    code, output = command.wait()
    assert code == 0, output
    assert command.left_behind() == []
    summary = _summary(tmp_path, "ranks")
    _assert_books_balance(summary["ledger"])
    assert summary["steps"] == 4
    # The engines, which hold whole weights, agree with the ranks that made them from parts.
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5
    assert sum(summary["staleness"].values()) == summary["ledger"]["all"]["trained"]
    metrics = (tmp_path / "runs/ranks/metrics.jsonl").read_text().splitlines()
    assert max(json.loads(line).get("optim/grad_norm", 0.0) for line in metrics) > 0
    assert {f"learner-{rank}.log" for rank in (0, 1)} <= {
        path.name for path in (tmp_path / "runs/ranks/logs").iterdir()
    }


def test_a_rank_of_the_learner_that_dies_ends_the_run_with_its_name(
    policy: Path, tmp_path: Path
) -> None:
    config = tmp_path / "dies.toml"
    config.write_text(
        'name = "dies"\nsteps = 1000\neval = { before = false, after = false }\n'
        f'model = {{ path = "{policy}" }}\n{COMMON}{CALCULATOR}'
    )
    command = Command(tmp_path, "train", str(config), "--learner.ranks=2")
    output = command.read_until("step 2/1000")
    assert "step 2/1000" in output, output
    _kill(command, tmp_path / "runs/dies/logs/learner-1.log")
    code, rest = command.wait()
    assert code == 1, output + rest
    errors = [line for line in rest.splitlines() if "error:" in line]
    assert len(errors) == 1 and "rank 1 of the learner (learner-1.log) died" in errors[0], rest
    assert command.left_behind() == []


def test_a_controller_that_dies_is_started_anew_and_the_run_goes_on(
    policy: Path, tmp_path: Path
) -> None:
    """The only one: nothing is played until the new one has heard which engine serves what."""
    config = tmp_path / "anew.toml"
    config.write_text(
        'name = "anew"\nsteps = 8\neval = { before = false, after = false }\n'
        f'model = {{ path = "{policy}" }}\n{COMMON}{CALCULATOR}'
    )
    command = Command(tmp_path, "train", str(config), "--rollout.controllers=1")
    output = command.read_until("step 3/8")
    assert "step 3/8" in output, output
    _kill(command, tmp_path / "runs/anew/logs/controller-0.log")
    code, rest = command.wait()
    assert code == 0, output + rest
    assert "was lost: controller-0: " in rest
    assert command.left_behind() == []
    ledger = _summary(tmp_path, "anew")["ledger"]
    _assert_books_balance(ledger)
    assert ledger["all"]["trained"] == 8 * 16
    # What it was playing, of two batches at most; the one that starts anew gets nothing before it answers.
    assert 0 < ledger["all"]["failed:controller_fault"] <= 2 * 16
    assert "failed:timeout" not in ledger["all"], "episodes waited for an engine in vain"


@pytest.mark.parametrize(
    ("mode", "what"), [("dora", "ray::"), ("in_flight", "EngineCore")], ids=["actor", "vllm"]
)
def test_an_engine_that_dies_is_replaced_and_the_new_one_has_the_newest_weights(
    mode: str, what: str, policy: Path, tmp_path: Path
) -> None:
    config = tmp_path / "engine.toml"
    config.write_text(
        'name = "engine"\nsteps = 1000\neval = { before = false, after = false }\n'
        f'model = {{ path = "{policy}" }}\n{COMMON}{CALCULATOR}'
    )
    command = Command(tmp_path, "train", str(config), f"--mode={mode}")
    output = command.read_until("step 3/1000")
    assert "step 3/1000" in output, output
    log = tmp_path / "runs/engine/logs/engine-1.log"
    _kill(command, log, what)
    _await_end(command, log)
    joined = command.read_until("engine-2 has taken the place of engine-1, on node ")
    assert "engine-2 has taken the place of engine-1, on node " in joined, joined
    # Where one version lives its weights come with the next step; then some are played with them.
    steps = "".join(command.read_until("/1000") for _ in range(4))
    command.process.send_signal(signal.SIGINT)
    code, rest = command.wait()
    assert code == 130, joined + steps + rest
    assert command.left_behind() == []
    summary = _summary(tmp_path, "engine")
    _assert_books_balance(summary["ledger"])
    assert (summary["fleet"]["engines_lost"], summary["fleet"]["engines_joined"]) == (1, 1)
    events = (tmp_path / "runs/engine/events.jsonl").read_text().splitlines()
    served = [e for e in map(json.loads, events) if e["lane"] == "engine-2"]
    assert [e["name"] for e in served if e["name"].startswith("load version ")], served
    written = [p.read_text() for p in (tmp_path / "runs/engine/trajectories").glob("*.jsonl")]
    assert any('"engine-2"' in text for text in written), "it has played"
    # Its weights were those that the learner had.
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5


def _kill(command: Command, log: Path, what: str = "") -> None:
    """Kill the actor that writes this log, and what it has started; or what has `what` in its name."""
    victims = [p for p in command._alive() if _writes_to(p, log.resolve())]
    victims = [p for p in victims if what in " ".join(p.cmdline())]
    assert victims
    for victim in victims:
        victim.kill()


def _await_end(command: Command, log: Path) -> None:
    """Until the rest of what writes this log has ended too: it would keep memory and device."""
    give_up = time.monotonic() + 30
    while rest := [p for p in command._alive() if _writes_to(p, log.resolve())]:
        assert time.monotonic() < give_up, [p.cmdline() for p in rest]
        time.sleep(0.1)


def _writes_to(process: psutil.Process, log: Path) -> bool:
    try:
        return Path(f"/proc/{process.pid}/fd/1").resolve() == log
    except OSError:
        return False
