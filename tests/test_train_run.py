"""Whole runs on real Ray and real vLLM: what happens when things go wrong, and what is left behind.

A run takes most of its time to start, so each carries several faults, one after the other.
"""

import json
import shutil
import signal
import sqlite3
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import own_objectives
import pytest
import torch
from agent_scripts import PLAIN
from dorado_command import Command, lines
from safetensors.torch import load_file
from tracker_servers import HttpServer, listening

from rollout.episode import PHASES

pytestmark = [pytest.mark.run, pytest.mark.timeout(600)]

COMMON = """
wandb = { enabled = false }
batch = { groups = 4, group_size = 4, filter_zero_variance = false }
episode = { max_turns = 3, max_completion_tokens = 24, max_tokens = 128, max_seconds = 60 }
engine = { count = 2, max_model_len = 128 }
learner = { micro_batch_tokens = 128, threads = 1, optim = { lr = 1e-4 } }
"""
CALCULATOR = '[[env]]\nid = "calculator"\n'
COIN = '[[env]]\nid = "chaos_envs:Coin"\nname = "coin"\n'
SLOW = '[[env]]\nid = "envs.builtin.slow_calculator:SlowCalculator"\nname = "slow"\n'
OWN = (
    *("--learner.loss.kind", "mine.py:reinforce"),
    *("--learner.loss.correction", "mine.py:halves"),
    *("--learner.advantage", "mine.py:above_mean"),
)
LORA = (
    "--learner.lora",
    '{ rank = 8, alpha = 16, targets = ["q_a_proj", "q_b_proj", "o_proj", "gate_proj"] }',
    "--learner.optim.lr=5e-3",
    "--checkpoint_every=2",
)
RANKS = ("--learner.ranks=2", "--learner.expert_parallel=2", "--learner.optim.lr=1e-3")
ENDED_WELL = {"dispatched", "trained", "cancelled", "in_flight", "buffered"}
# All but W&B, which another run has.
TRACKERS = ["tensorboard", "mlflow", "trackio", "prometheus", "otel"]
# The last line of an engine's replacement, but for the node.
JOINED = "engine-2 has taken the place of engine-1, on node "


@pytest.fixture(autouse=True)
def _ended() -> Iterator[None]:
    """End what a test that fails has not waited for: it would keep the cores from the next one."""
    yield
    while Command.started:
        Command.started.pop().end()


def _config(folder: Path, name: str, text: str) -> str:
    """The path of a configuration with what all have in common; `text`: the rest, environments last."""
    file = folder / f"{name}.toml"
    above, _, envs = text.partition("[[env]]")
    file.write_text(f'name = "{name}"\n{above}{COMMON}[[env]]{envs}', encoding="utf-8")
    return str(file)


def _summary(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / name / "summary.json").read_text(encoding="utf-8"))


def _assert_books_balance(ledger: dict[str, dict[str, int]]) -> None:
    for env, counts in ledger.items():
        ended = sum(n for state, n in counts.items() if state != "dispatched")
        assert counts["dispatched"] == ended, (env, counts)
        assert counts["in_flight"] == counts["buffered"] == 0, (env, counts)


def _assert_one_version_each(run: Path) -> set[int]:
    """The versions that the trajectories are of."""
    versions: set[int] = set()
    for trajectory in lines(run / "trajectories/controller-0.jsonl"):
        seen = {span["version"] for turn in trajectory["turns"] for span in turn["versions"]}
        # One whose engine died in its first turn has none.
        assert len(seen) == bool(trajectory["turns"]), "one version per trajectory"
        versions |= seen
    return versions


def _assert_nothing_left(command: Command) -> None:
    assert command.left_behind() == []
    assert not list(Path("/dev/shm").glob(f"dorado-{command.process.pid}-*"))


def _replace_engine(command: Command, run: Path, what: str) -> str:
    """Kill engine-1 and wait for engine-2 in its place, and for four steps more; what was said meanwhile."""
    log = run / "logs/engine-1.log"
    command.kill(log, what)
    command.await_end(log)
    joined = command.read_until(JOINED)
    assert JOINED in joined, joined
    # Where one version lives its weights come with the next step; then some are played with them.
    return joined + "".join(command.read_until("/1000") for _ in range(4))


def _go_on_through_kills(command: Command, run: Path) -> str:
    """Kill a tracker, W&B's helper and a controller, stop an engine's process; what was said meanwhile."""
    command.kill(None, '"tracker": "tensorboard"')
    output = command.read_until("TensorBoard: ")
    command.kill(None, "wandb-core")
    output += command.read_until("W&B: ")
    command.kill(run / "logs/controller-0.log")
    output += command.read_until("was lost: controller-0: ")
    output += "".join(command.read_until("/1000") for _ in range(3))
    command.signal(run / "logs/engine-0.log", "EngineCore", signal.SIGSTOP)
    output += command.read_until("engine-3 has taken the place of engine-0, on node ")
    return output + "".join(command.read_until("/1000") for _ in range(2))


def _assert_a_sentence_for_each_kill(output: str) -> None:
    for sentence in (
        "TensorBoard: its process has ended, and is started again ",
        "; it goes on offline, and `wandb sync` sends that",
        "was lost: controller-0: it died or is out of reach",
        "within 30 s: it hangs, and is ended as if it had died",
        "engine-0 died; its log says why",
        "engine-1 died; its log says why",
    ):
        assert output.count(sentence) == 1, output
    assert "Traceback" not in output and "(raylet)" not in output, output


def _assert_the_new_engine_played(run: Path, summary: dict[str, Any], engines: int = 1) -> None:
    fleet = summary["fleet"]
    assert (fleet["engines_lost"], fleet["engines_joined"]) == (engines, engines)
    served = [e for e in lines(run / "events.jsonl") if e["lane"] == "engine-2"]
    assert [e["name"] for e in served if e["name"].startswith("load version ")], served
    written = [p.read_text(encoding="utf-8") for p in (run / "trajectories").glob("*.jsonl")]
    assert any('"engine-2"' in text for text in written), "it has played"
    # Its weights were those that the learner had.
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5


def _assert_only_adapters_changed(policy: Path, run: Path, out: Path) -> None:
    """In what was exported; and no more than they was published."""
    before, after = (load_file(f / "model.safetensors") for f in (policy, out))
    adapter = load_file(out / "adapter/adapter_model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    named = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in adapter}
    assert changed == {f"{name}.weight" for name in named}
    megabytes = sum(t.nbytes for t in adapter.values()) / 1e6
    for line in lines(run / "metrics.jsonl"):
        published = line.get("sync/megabytes")
        assert published is None or published <= 1.1 * megabytes


def _agent(folder: Path) -> str:
    """An environment whose agent asks once, over HTTP, and writes down what it hears."""
    script = PLAIN + 'open("answer.txt", "w").write(str(ask(sys.stdin.read())))'
    (folder / "agent.py").write_text(script, encoding="utf-8")
    rows = [json.dumps({"instruction": f"{n} plus 1 ?", "answer": f"{n + 1}"}) for n in range(90)]
    (folder / "tasks.jsonl").write_text("\n".join(rows), encoding="utf-8")
    values = 'agent = "agent.py", tasks = "tasks.jsonl", answer_file = "answer.txt"'
    return f'[[env]]\nid = "agent"\nweight = 0.5\nconfig = {{ {values}, sandbox = "none" }}\n'


def _assert_two_ranks_trained(run: Path) -> None:
    assert max(line.get("optim/grad_norm", 0.0) for line in lines(run / "metrics.jsonl")) > 0
    assert {f"learner-{rank}.log" for rank in (0, 1)} <= {p.name for p in (run / "logs").iterdir()}


def test_a_run_of_adapters_goes_on_through_faults_of_environments_and_counts_them(
    policy: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "chaos"
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
    config = _config(
        tmp_path,
        "chaos",
        f'mode = "in_flight"\nsteps = 6\nmodel = {{ path = "{policy}" }}\ncheckpoint_keep = 2\n'
        f"rollout = {{ hosts = 2 }}\n{CALCULATOR}{goes_on}{envs}{_agent(tmp_path)}{goes_on}"
        "[eval]\ntasks = 4\nevery = 3\nsamples_per_task = 2\nsampling = { temperature = 0 }\n"
        '[[eval.env]]\nid = "sensors"\n',
    )
    hears = HttpServer("answers")
    told = (
        f"--trackers.use={json.dumps(TRACKERS)}",
        f"--trackers.otel.endpoint={hears.url}",
        f"--trackers.trackio.folder={tmp_path}/trackio",
        f"--notify.webhook={hears.url}/hook",
    )
    with listening(hears):
        command = Command(tmp_path, "train", config, *LORA, *told)
        output = command.read_until("evaluation before training")
        _await_served(run)
        code, rest = command.wait()
    output += rest
    assert code == 0, output
    _assert_nothing_left(command)
    _assert_trackers_have_it(run, output, hears.posts)

    summary = _summary(tmp_path, "chaos")
    ledger = summary["ledger"]
    _assert_books_balance(ledger)
    assert summary["steps"] == 6
    assert ledger["calculator"]["trained"] > 0
    assert ledger["reset_raises"]["failed:env_fault"] > 0
    assert ledger["reset_raises"]["trained"] > 0
    assert ledger["tool_hangs"]["failed:env_fault"] > 0
    assert ledger["agent"]["trained"] > 0 and "failed:env_fault" not in ledger["agent"], output
    assert ledger["host_exits"]["failed:host_fault"] > 0
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5
    assert set(summary["staleness"]) <= {"0", "1"}
    assert sum(summary["staleness"].values()) == ledger["all"]["trained"]
    for sentence in ("the world is missing", "no answer within 1 s", "inside a tool"):
        assert sentence in output
    _assert_records_agree(run, ledger)
    _assert_evaluated_beside_training(run)
    # What was exported is a policy that a run can start from, and it is not the one that this run began with.
    saved = sorted(p.name for p in (run / "checkpoints").iterdir())
    last = {"step_4", "step_6"}
    kept = last | {"best", f"step_{summary['best']['step']}"}
    assert set(saved) == kept, "checkpoint_keep = 2, and the best; all of them whole"
    assert Command(tmp_path, "export", "6", "out", "--run", "runs/chaos").wait()[0] == 0
    assert Command(tmp_path, "train", config, "--model.path", "out", "--dry-run").wait()[0] == 0
    weights = [(p / "model.safetensors").read_bytes() for p in (policy, tmp_path / "out")]
    assert len(weights[0]) == len(weights[1]) and weights[0] != weights[1]
    _assert_only_adapters_changed(policy, run, tmp_path / "out")
    again = Command(tmp_path, "eval", "runs/chaos", "--best", "--out", "again", "--eval.tasks=2")
    code, output = again.wait()
    assert code == 0, output
    found = json.loads((tmp_path / "again" / "summary.json").read_text(encoding="utf-8"))
    assert found["version"] == summary["best"]["step"]
    assert {"calculator", "sensors"} <= found["env"].keys()
    _assert_nothing_left(again)


def _await_served(run: Path) -> None:
    """Wait until Prometheus would scrape the run's own metrics and those of vLLM."""
    wanted = ("\ndorado_engines 2", 'vllm:generation_tokens_total{actor="engine-0"')
    address, text = run / "prometheus.address", ""
    give_up = time.monotonic() + 120
    while not all(one in text for one in wanted):
        assert time.monotonic() < give_up, text[:2000]
        if address.exists():
            with urllib.request.urlopen(address.read_text(encoding="utf-8"), timeout=30) as answer:
                text = answer.read().decode()
        time.sleep(0.2)


def _assert_trackers_have_it(run: Path, output: str, posts: list[tuple[str, bytes]]) -> None:
    """Each has the steps, or the episodes, of a real run, and nobody has warned of one."""
    assert not [line for line in output.splitlines() if "metrics.jsonl has every step" in line]
    events = b"".join(file.read_bytes() for file in (run / "tensorboard").glob("events*"))
    assert b"evaluation/step_3" in events and b"trained/calculator/reward" in events
    with sqlite3.connect(run.parent / "mlflow.db") as store:
        steps = store.execute("select distinct step from metrics where key = 'loss/loss'")
        assert sorted(step for (step,) in steps) == [1, 2, 3, 4, 5, 6]
        assert store.execute("select status from runs").fetchall() == [("FINISHED",)]
    with sqlite3.connect(run.parent.parent / "trackio" / "dorado.db") as store:
        assert store.execute("select count(*) from metrics").fetchone()[0] >= 6
    spans = b"".join(body for path, body in posts if path == "/v1/traces")
    with sqlite3.connect(run / "trajectories.sqlite") as index:
        played = index.execute("select count(*) from trajectories").fetchone()[0]
    assert spans.count(b"dorado.trajectory") == played
    [end] = [body for path, body in posts if path == "/hook" and b'"end"' in body]
    assert json.loads(end)["outcome"] == "finished"


def _assert_evaluated_beside_training(run: Path) -> None:
    rows = lines(run / "evaluations.jsonl")
    assert [row["when"] for row in rows] == ["before", "step_3", "after"]
    for row in rows:
        assert row["step"] <= row["version"] <= row["last_version"]
        assert {"calculator", "sensors"} <= row["env"].keys()
        assert row["env"]["calculator"]["low"] <= row["env"]["calculator"]["pass_rate"]
    heldout = [
        json.loads(line)
        for file in (run / "trajectories").glob("controller-*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
        if '"eval-before-' in line
    ]
    # At temperature 0 both episodes of a task are the same, the faults of environments apart.
    said: dict[str, set[str]] = {}
    for one in heldout:
        if one["env"] in ("calculator", "sensors") and one["turns"]:
            said.setdefault(one["group"], set()).add(one["turns"][0]["text"])
    assert said and all(len(texts) == 1 for texts in said.values())


def _assert_records_agree(folder: Path, ledger: dict[str, dict[str, int]]) -> None:
    """The index, the trajectories on disk and the ledger tell the same story."""
    rows = sqlite3.connect(folder / "trajectories.sqlite").execute(
        "select id, env, stop_reason, reward, file, offset from trajectories where split = 'train'"
    )
    faults: Counter[str] = Counter()
    plain_answers = 0
    for id, env, stop_reason, reward, file, offset in rows:
        with (folder / file).open("rb") as written:
            written.seek(offset)
            record = json.loads(written.readline())
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


def test_a_dora_run_of_adapters_goes_on_through_faults_and_replacements_until_its_learner_dies(
    policy: Path, tmp_path: Path
) -> None:
    """Of five environments one fails half-way; none of its trajectories gets a 0 for it. Where the only
    controller dies nothing is played until the new one has heard which engine serves what."""
    run = tmp_path / "runs" / "breaks"
    switch = tmp_path / "how"
    envs = "".join(f'[[env]]\nid = "calculator"\nname = "steady-{n}"\n' for n in range(4))
    config = _config(
        tmp_path,
        "breaks",
        f'mode = "dora"\nsteps = 1000\nmodel = {{ path = "{policy}" }}\n'
        f"eval = {{ before = false, after = false }}\nrollout = {{ hosts = 2 }}\n{envs}"
        f'[[env]]\nid = "chaos_envs:Breaks"\nname = "breaks"\nconfig = {{ file = "{switch}" }}\n'
        "breaker = { cooldown_seconds = 2 }\n",
    )
    trackers = '--trackers.use=["tensorboard"]'
    chaos = ("--wandb.enabled=true", "--timeouts.load_seconds=30", trackers)
    one = "--rollout.controllers=1"
    command = Command(tmp_path, "train", config, *LORA, one, *chaos, WANDB_MODE="offline")
    output = command.read_until("step 2/1000")
    switch.write_text("raise", encoding="utf-8")
    output += command.read_until("gets no new groups")
    output += command.read_until("one group tries whether it works again")
    switch.unlink()
    output += command.read_until("environment 'breaks' works again")
    assert "works again" in output, output
    output += _replace_engine(command, run, "EngineCore")
    output += _go_on_through_kills(command, run)
    command.kill(run / "logs/learner.log")
    code, rest = command.wait()
    assert code == 1, output + rest
    _assert_a_sentence_for_each_kill(output + rest)
    errors = [line for line in rest.splitlines() if "error:" in line]
    assert len(errors) == 1 and "the learner died" in errors[0], rest
    _assert_nothing_left(command)

    summary = _summary(tmp_path, "breaks")
    ledger = summary["ledger"]
    assert summary["status"] == "failed" and summary["steps"] >= 2 + 4 + 3 + 2
    _assert_books_balance(ledger)
    assert ledger["breaks"]["failed:env_fault"] >= 8
    assert all(ledger[f"steady-{n}"]["trained"] > 0 for n in range(4))
    rows = sqlite3.connect(run / "trajectories.sqlite").execute(
        "select count(*), count(reward) from trajectories where stop_reason = 'env_fault'"
    )
    assert rows.fetchone() == (ledger["breaks"]["failed:env_fault"], 0)
    assert (run / "events.jsonl").read_text(encoding="utf-8").count('"lane": "supervision"') >= 3
    # What the only controller was playing, of two batches at most.
    assert 0 < ledger["all"]["failed:controller_fault"] <= 2 * 16
    assert "failed:timeout" not in ledger["all"], "episodes waited for an engine in vain"
    assert sum(summary["staleness"].values()) == ledger["all"]["trained"]
    _assert_one_version_each(run)
    _assert_the_new_engine_played(run, summary, engines=2)
    whole = (run / "checkpoints").glob("step_*[0-9]")
    step = max(int(p.name.removeprefix("step_")) for p in whole)
    assert Command(tmp_path, "export", str(step), "out", "--run", "runs/breaks").wait()[0] == 0
    _assert_only_adapters_changed(policy, run, tmp_path / "out")


@pytest.mark.smoke
def test_a_dora_run_lends_an_engine_gives_up_old_versions_and_says_what_it_waits_for(
    policy: Path, tmp_path: Path
) -> None:
    """Each trajectory stays on its version, and none that is trained on is too old."""
    run = tmp_path / "runs" / "elastic"
    config = _config(
        tmp_path,
        "elastic",
        'mode = "dora"\neviction = "discard"\nlayout = "elastic"\nsteps = 6\n'
        "eval = { tasks = 4, before = false }\nrollout = { over_dispatch = 3 }\n"
        f'model = {{ path = "{policy}" }}\n{SLOW}'
        "config = { median_seconds = 0.4, p99_seconds = 15.0 }\n",
    )
    command = Command(tmp_path, "train", config)
    begun = command.read_until("step 1/6")
    assert "step 1/6" in begun, begun
    state: dict[str, Any] = {"counts": {}}
    while not state["counts"] and command.process.poll() is None:
        asked, said = Command(tmp_path, "status", "runs/elastic", "--json").wait()
        assert asked == 0, said
        state = json.loads(said)
    code, output = command.wait()
    assert code == 0, begun + output
    _assert_nothing_left(command)
    assert state["live"] and set(state["engines"]) == {"engine-0", "engine-1"}
    assert sum(state["counts"]["slow"].values()) >= len(state["waiting"]) > 0
    assert {row["phase"] for row in state["waiting"]} <= PHASES
    summary = _summary(tmp_path, "elastic")
    _assert_books_balance(summary["ledger"])
    assert summary["ledger"]["slow"].get("stale:evicted", 0) > 0, "15 s are more than two steps"
    assert set(summary["ledger"]["slow"]) <= {*ENDED_WELL, "stale:evicted"}
    assert summary["fleet"]["rebalances/switch"] == 6
    assert summary["fleet"]["weight_moves"] >= 2
    assert set(summary["staleness"]) <= {"0", "1", "2"}
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5
    # A version on which nothing begins, because enough is under way, writes nothing.
    # The last one plays the evaluation.
    assert {0, 1, 6} <= _assert_one_version_each(run) <= {0, 1, 2, 3, 4, 5, 6}


@pytest.mark.smoke
def test_a_synchronous_run_that_was_stopped_leaves_nothing_and_goes_on_after_its_last_step(
    tmp_path: Path,
) -> None:
    """Then the learner has two ranks. Its loss, advantage and correction are the user's own, by path."""
    run = tmp_path / "runs" / "sync"
    shutil.copy(own_objectives.__file__, tmp_path / "mine.py")
    config = _config(
        tmp_path,
        "sync",
        'mode = "sync"\nsteps = 1000\neval = { tasks = 4, after = false }\n'
        f'model = {{ init = {{ family = "qwen3_moe" }} }}\n{COIN}[[env]]\nid = "sensors"\n',
    )
    # One engine: two take twice as long to start on two cores, and the other runs have two.
    train = ("train", config, *OWN, "--engine.count=1")
    command = Command(tmp_path, *train)
    output = command.read_until("step 3/1000")
    assert "step 3/1000" in output, output
    command.process.send_signal(signal.SIGTERM)
    code, rest = command.wait()
    assert code == 130, output + rest
    assert "interrupted" in rest
    _assert_nothing_left(command)
    first = _summary(tmp_path, "sync")
    done = first["steps"]
    assert first["status"] == "interrupted"
    assert done >= 3
    assert set(first["staleness"]) == {"0"}
    assert first["parity"]["mean_abs_dlogp"] <= 2e-5
    _assert_books_balance(first["ledger"])
    assert [p.name for p in (run / "checkpoints").iterdir()] == [f"step_{done}"], rest
    assert f"--resume runs/sync goes on after step_{done}" in rest

    resumed = ("--resume", "runs/sync", "--steps")
    code, output = Command(tmp_path, *train, *resumed, str(done)).wait()
    assert code == 2 and "is at step" in output, output
    command = Command(tmp_path, *train, *resumed, str(done + 3), *RANKS)
    code, output = command.wait()
    assert code == 0, output
    _assert_nothing_left(command)
    last = _summary(tmp_path, "sync")
    assert (last["steps"], last["resumed"]["step"]) == (done + 3, done)
    assert last["eval"]["before"] == first["eval"]["before"]
    _assert_books_balance(last["ledger"])
    # Learner and engines go on from the same weights, or their log-probs would differ.
    assert last["parity"]["mean_abs_dlogp"] <= 2e-5
    assert sum(last["staleness"].values()) == last["ledger"]["all"]["trained"]
    _assert_two_ranks_trained(run)
    metrics = lines(run / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [*range(done + 4)], "with the evaluation before"
    assert {m["loss/mine"] for m in metrics if "loss/mine" in m} == {0.5}, "of `halves`"
    own = json.loads((run / "own_functions.json").read_text(encoding="utf-8"))
    assert {one["file"] for one in own.values()} == {str(tmp_path / "mine.py")} and len(own) == 3
    goes_on = next(
        event["start"]
        for event in lines(run / "events.jsonl")
        if event["name"] == f"goes on after step {done}"
    )
    oldest = sqlite3.connect(run / "trajectories.sqlite").execute(
        "select min(first_version), count(*) from trajectories where split = 'train' and start > ?",
        (goes_on,),
    )
    version, count = oldest.fetchone()
    assert version == done and count >= last["ledger"]["all"]["trained"]


def test_an_engine_that_cannot_start_ends_the_run_with_one_sentence(tmp_path: Path) -> None:
    config = _config(tmp_path, "broken", f"model = {{ init = {{}} }}\n{CALCULATOR}")
    broken = ("--engine.kv_cache_gib", "100000", "--engine.count", "1")
    command = Command(tmp_path, "train", config, *broken)
    code, output = command.wait()
    assert code == 1, output
    errors = [line for line in output.splitlines() if "error:" in line]
    assert len(errors) == 1, output
    assert "could not start" in errors[0] and "Traceback" not in output
    assert command.left_behind() == []
