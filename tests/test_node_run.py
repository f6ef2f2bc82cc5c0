"""A whole run over Ray nodes: probed before, spread, on with one when the other is lost, or one joins."""

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from namespaces import NotPermitted, two_places
from ray_nodes import Place, RayNodes

from rl.dashboard.alerts import alerts
from rl.dashboard.run_data import RunData

pytestmark = [pytest.mark.run, pytest.mark.timeout(900)]

CONFIG = """
wandb = { enabled = false }
batch = { groups = 4, group_size = 4, filter_zero_variance = false }
episode = { max_turns = 3, max_completion_tokens = 24, max_tokens = 128, max_seconds = 60 }
engine = { count = 2, max_model_len = 128 }
learner = { micro_batch_tokens = 128, threads = 1, optim = { lr = 1e-4 } }
rollout = { hosts = 2, controllers = 2 }
eval = { before = false, after = false }
"""
CPUS = ("--learner.cpus=1.5", "--engine.cpus=0.5")
CALCULATOR = '[[env]]\nid = "calculator"\n'
# An environment that only the head's node can import.
PLUGIN = "from envs.builtin.calculator import Calculator\n\n\nclass Here(Calculator):\n    name = 'here'\n"


@contextmanager
def addresses() -> Iterator[list[Place]]:
    """Addresses of the loopback; all else is shared."""
    yield [Place(f"127.0.0.{number}") for number in (2, 3, 4)]


def config_in(folder: Path, checkpoint: Path, name: str, rest: str) -> Path:
    file = folder / f"{name}.toml"
    file.write_text(
        f'name = "{name}"\nmodel = {{ path = "{checkpoint}" }}\n{CONFIG}{rest}', encoding="utf-8"
    )
    return file


def read_until(run: Any, text: str) -> str:
    """Its lines up to the one that holds `text`, or to the end."""
    lines: list[str] = []
    for line in run.stdout:
        lines.append(line)
        if text in line:
            break
    return "".join(lines)


def read_rest(nodes: RayNodes, run: Any, folder: Path, seconds: float) -> str:
    """What it prints until it has ended. Of a run that does not end: that, and its last status."""
    try:
        return run.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        nodes.kill(0)  # and the run with it
        status = folder / "status.json"
        said = status.read_text(encoding="utf-8") if status.exists() else "no status.json"
        pytest.fail(f"no end within {seconds:g} s\n{run.communicate()[0]}\n{said}")


def events(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def test_a_run_over_nodes_goes_on_when_one_is_lost_and_takes_in_one_that_joins(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Nodes that share nothing, where the machine permits namespaces. One run is refused before it."""
    (tmp_path / "only_here").mkdir()
    (tmp_path / "only_here" / "here_env.py").write_text(PLUGIN, encoding="utf-8")
    with ExitStack() as stack:
        try:
            places = stack.enter_context(two_places())
        except NotPermitted:
            places = stack.enter_context(addresses())
        # The learner has no room on the node that will be lost.
        nodes = RayNodes(places[:2], [2, 1], modules=[tmp_path / "only_here"])
        try:
            _assert_a_plugin_of_one_node_is_refused(nodes, tmp_path, checkpoint)
            config = config_in(tmp_path, checkpoint, "two", CALCULATOR)
            run, output, lost = _lose_a_node(nodes, config)
            output += read_until(run, "engine-2 starts in place of engine-")
            added = nodes.add(places[2], 1)
            output += read_until(run, f"on node {places[2].address}")
            assert nodes.running(added, "ray::Engine"), output + nodes.logs()
            # Then some are played with it.
            output += "".join(read_until(run, "/1000") for _ in range(6))
            run.send_signal(signal.SIGINT)
            output += read_rest(nodes, run, tmp_path / "runs" / "two", 100)
            assert run.returncode == 130, output
            # Ray ends what is left of a job once its driver is gone.
            _, left = psutil.wait_procs([p for p in nodes.marked() if _is_ours(p)], timeout=10)
        finally:
            nodes.end()
    folder = tmp_path / "runs" / "two"
    summary = _assert_a_node_was_lost(folder, output, places[1].address, lost)
    assert (summary["fleet"]["engines_lost"], summary["fleet"]["engines_joined"]) == (1, 1)
    loads = [e["name"] for e in events(folder) if e["lane"] == "engine-2"]
    assert [name for name in loads if name.startswith("load version ")], loads
    assert left == []


def _assert_a_plugin_of_one_node_is_refused(
    nodes: RayNodes, folder: Path, checkpoint: Path
) -> None:
    env = '[[env]]\nid = "here_env:Here"\n'
    run = nodes.train(config_in(folder, checkpoint, "plugin", env), *CPUS)
    output = read_rest(nodes, run, folder / "runs" / "plugin", 200)
    assert run.returncode == 1, output
    [error] = [line for line in output.splitlines() if "error:" in line]
    other = nodes.node_of[1].address
    assert error.endswith(
        f"error: env 'here_env:Here': on node {other}: environment 'here_env:Here' cannot be imported: "
        "ModuleNotFoundError: No module named 'here_env'"
    ), output


def _lose_a_node(nodes: RayNodes, config: Path) -> tuple[Any, str, list[str]]:
    """A run over both nodes whose second one is gone after three steps: what it said so far, and what was on
    that node."""
    head, worker = (place.address for place in nodes.node_of)
    run = nodes.train(config, "--mode=dora", "--steps=1000", *CPUS)
    output = read_until(run, "step 3/1000")
    assert "step 3/1000" in output, output + nodes.logs()
    before = {line.split("on node ")[1] for line in output.splitlines() if "on node " in line}
    assert {line.split(":")[0] for line in before} == {head, worker}, output
    lost = next(line for line in before if line.startswith(worker)).split(": ")[1].split(", ")
    assert {name.split("-")[0] for name in lost} >= {"engine", "host"}, output
    assert nodes.running(1, "ray::EnvHost") and nodes.running(1, "ray::Engine")
    nodes.kill(1)
    return run, output, lost


def _assert_a_node_was_lost(
    folder: Path, output: str, worker: str, lost: list[str]
) -> dict[str, Any]:
    """In what it said, and in each of its records; returns the summary."""
    sentence = f"node {worker} is gone: {', '.join(lost)}"
    said = [e["what"] for e in events(folder) if e["lane"] == "supervision"]
    assert said[0] == sentence and sentence in output
    anew = {name for name in lost if name.startswith(("host", "controller"))}
    assert {s.split()[0] for s in said if "was started anew on" in s} <= anew
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert sentence in status["lost"] and worker not in status["nodes"]
    shown = RunData(folder)
    shown.refresh()
    assert f"{sentence}." in [alert.text for alert in alerts(shown)]
    assert any(sentence in span.what for span in shown.spans if span.lane == "supervision")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["fleet"]["engines_lost"] == sum(name.startswith("engine") for name in lost)
    for counts in summary["ledger"].values():
        assert counts["dispatched"] == sum(n for s, n in counts.items() if s != "dispatched")
    # Weights that came over are those that the learner had.
    assert summary["parity"]["mean_abs_dlogp"] <= 2e-5
    return summary


def _is_ours(process: psutil.Process) -> bool:
    """Of the run, not of Ray."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(name in line for name in ("ray::E", "ray::L", "ray::C", "ray::S", "EngineCore"))
