"""Trackers: each writes what a reader of that tracker reads back, and none ends or stalls a run.

The trackers run as in a run, in processes of their own, over a run folder that is written as a run's is.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import scored
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from recorded_run import RecordedRun
from tracker_servers import HttpServer, listening

from rl.record.run_folder import RunFolder
from rl.record.status import Status, write_end
from rl.tracker_config import NotifyConfig, TrackersConfig, WandbConfig
from rl.trackers import tracker_process
from rl.trackers import trackers as trackers_module
from rl.trackers.feed import drawable
from rl.trackers.mlflow_tracker import named
from rl.trackers.tensorboard_tracker import TensorboardTracker, _histogram
from rl.trackers.tracker import STATES, Ended, Line, Order, Position, RunFacts
from rl.trackers.trackers import Trackers
from rollout.trajectory import Phase

pytestmark = pytest.mark.process

STEPS = [
    {"rollout/all/reward": 0.25, "rollout_tokens": 100.0, "time/total_seconds": 4.5},
    {"rollout/all/reward": 0.75, "rollout_tokens": 120.0, "time/total_seconds": 4.25},
]
LEDGER = {
    "calculator": {"dispatched": 8, "trained": 4, "filtered:zero_variance": 2, "in_flight": 2}
}
ALL = ("tensorboard", "trackio", "mlflow", "prometheus", "otel")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes long to import what a tracker needs."""
    monkeypatch.setattr(trackers_module, "CLOSE_SECONDS", 200.0)


class Played:
    """A run folder that a test writes step by step, and its trackers."""

    def __init__(self, runs: Path, *use: str, **more: Any) -> None:
        """more: settings of `trackers`; notify: those of `notify`."""
        notify = more.pop("notify", {})
        wandb = {"enabled": "wandb" in use}
        mlflow_and_trackio = {"trackio": {"folder": str(runs / "trackio")}}
        self.run = RecordedRun(
            runs,
            wandb=wandb,
            trackers={"use": use, **mlflow_and_trackio, **more},
            notify=notify,
        )
        self.path = self.run.path
        self.said: list[str] = []
        self.trackers = Trackers(self.run.folder, self.said.append)

    def step(self, step: int) -> None:
        """A group that was trained on, and the step's metrics."""
        phases = (Phase("generate", 1000.0 + step, 0.5), Phase("tool", 1000.5 + step, 0.25))
        members = [scored(f"g{step}.{n}", float(n)) for n in range(2)]
        for member in members:
            object.__setattr__(member.trajectory, "phases", phases)
        self.run.group(f"g{step}", members)
        for member in members:
            self.run.learned(member.trajectory.id, step, [1.0], [-0.5], [0.1])
        self.run.folder.metrics(step, STEPS[step - 1])
        self.trackers.look()

    def evaluation(self) -> None:
        """The held-out trajectories of an evaluation after step 1, and its results."""
        self.run.rewards("eval-step_1-0", 1.0, 0.0, split="heldout-step_1")
        self.run.folder.evaluation({"step": 1, "when": "step_1", "version": 1, "lag": 1})
        self.run.folder.metrics(2, {"eval/calculator/pass_rate": 0.5})
        self.trackers.look()

    def status(self) -> None:
        """What the run does now."""
        engines: dict[str, int | None] = {"engine-0": 2, "engine-1": None}
        now = Status(
            time=time.time(),
            stage="training",
            step=2,
            steps=9,
            learner="waits",
            window=(1, 2),
            pending=None,
            engines=engines,
            in_flight=2,
            buffered=3,
            counts={"calculator": {"tool": 2}},
            waiting=(),
            ledger=LEDGER,
        )
        self.run.folder.status(now.as_json())

    def end(self) -> None:
        """The end of the run, and of its trackers."""
        self.run.folder.summary({"status": "finished", "steps": 2, "wall_s": 9.5})
        write_end(self.path, "finished", "")
        self.trackers.close()
        self.run.close()

    def process(self, name: str) -> psutil.Process:
        """The process of a tracker."""
        started = self.trackers.processes[name].process
        assert started is not None
        return psutil.Process(started.pid)

    def kill(self, name: str) -> None:
        """Kill a tracker's process. (psutil's wait would take its exit status from the run.)"""
        started = self.trackers.processes[name].process
        assert started is not None
        started.kill()
        started.wait(20)


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    """The first value of `true()` that is one."""
    give_up = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < give_up
        time.sleep(0.1)
    return value


def whole_run(runs: Path, *use: str, **more: Any) -> Played:
    """A run of two steps with an evaluation, and its end."""
    played = Played(runs, *use, **more)
    played.trackers.start()
    played.step(1)
    played.step(2)
    played.evaluation()
    played.status()
    played.end()
    assert played.said == []
    return played


def written_events(folder: Path) -> Any:
    """TensorBoard's own reader, over all that a run has written."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"histograms": 0, "tensors": 0})
    return events.Reload()


def test_tensorboards_reader_reads_back_scalars_histograms_and_tables(tmp_path):
    played = whole_run(tmp_path, "tensorboard")
    events = written_events(played.path / "tensorboard")
    rewards = events.Scalars("rollout/all/reward")
    assert [(e.step, e.value) for e in rewards] == [(1, 0.25), (2, 0.75)]
    written = [json.loads(line) for line in (played.path / "metrics.jsonl").open(encoding="utf-8")]
    assert [e.wall_time for e in rewards] == [pytest.approx(one["time"]) for one in written[:2]]
    [first, _] = events.Histograms("trained/all/reward")
    assert (first.step, first.histogram_value.num, first.histogram_value.sum) == (1, 2, 1)
    table = events.Tensors("evaluation/step_1/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| eval-step_1-0.0 | calculator |" in table and "6 times 7 ?" in table
    assert (
        '"wall_s": 9.5'
        in events.Tensors("summary/text_summary")[0].tensor_proto.string_val[0].decode()
    )


def test_of_a_run_that_goes_on_tensorboard_shows_each_step_once(tmp_path):
    played = whole_run(tmp_path, "tensorboard")

    folder = RunFolder(played.run.folder.config, resume=True)
    folder.go_on(1)
    trackers = Trackers(folder)
    trackers.start()
    folder.metrics(2, {"rollout/all/reward": 0.5})
    trackers.close()
    folder.close()
    events = written_events(played.path / "tensorboard")
    assert [(e.step, e.value) for e in events.Scalars("rollout/all/reward")] == [
        (1, 0.25),
        (2, 0.5),
    ]


def tensorboard(folder: Path, events: Path, *steps: dict[str, float], **order: Any) -> None:
    """One process of TensorBoard's tracker, without the process; lines of metrics.jsonl are its steps."""
    folder.mkdir(exist_ok=True)
    config = TrackersConfig.model_validate({"tensorboard": {"folder": str(events)}})
    told = Order("tensorboard", str(folder), **order)
    facts = RunFacts(folder, "demo", folder, {}, config, WandbConfig(), NotifyConfig(), told)
    tracker = TensorboardTracker(facts)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for line in steps:
            values = {key: value for key, value in line.items() if key != "step"}
            tracker.take(Line(int(line["step"]), 1.0, values))
            file.write(json.dumps(line) + "\n")
    tracker.end(Ended("finished", "", {}))


def test_an_evaluation_that_ends_first_takes_no_step_out_of_tensorboard(tmp_path):
    run, events = tmp_path / "run", tmp_path / "events"
    tensorboard(run, events, {"step": 1, "reward": 0.25}, {"step": 2, "reward": 0.5})
    begins = (run / "metrics.jsonl").stat().st_size
    tensorboard(run, events, {"step": 2, "eval": 0.5}, resumed=True, metrics=begins)
    tensorboard(run, events, {"step": 3, "reward": 0.75}, resumed=True, metrics=begins, read=0)
    found = written_events(events / "demo")
    assert [one.step for one in found.Scalars("reward")] == [1, 2, 3]
    assert [one.step for one in found.Scalars("eval")] == [2]


def test_a_run_of_the_same_name_has_an_event_folder_of_its_own(tmp_path):
    for folder in ("one", "two"):
        tensorboard(tmp_path / folder, tmp_path / "events", {"step": 1, "reward": 0.5})
    tensorboard(tmp_path / "two", tmp_path / "events", resumed=True, read=0)
    names = sorted(path.name for path in (tmp_path / "events").iterdir())
    assert names == ["demo", "demo-2"]
    assert len(list((tmp_path / "events" / "demo-2").iterdir())) == 2


def test_rewards_that_differ_in_their_last_bit_are_one_bin_and_end_no_tracker():
    for values in ([0.3, 0.1 + 0.2], [1e308, -1e308], [0.0, 5e-324], [1e16, 1e16 + 2]):
        made = _histogram([drawable(value) for value in values])
        assert made.num == 2 and sum(made.bucket) == 2


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("reward/a|b/odd (name)?", "reward/a_b/odd _name__"),
        ("/rollout//orders/./reward/", "rollout/orders/reward"),
        ("../up", "_/up"),
        ("..", "_"),
        ("", "_"),
        ("häufig", "häufig"),
    ],
)
def test_mlflow_takes_every_key(key, name):
    from mlflow.utils.validation import _validate_metric_name

    assert named(key) == name
    long = [named(f"reward/{'x' * 300}{end}") for end in "ab"]
    assert len(set(long)) == 2
    for one in (name, *long):
        _validate_metric_name(one)


def test_what_a_tracker_says_can_be_no_position_and_its_log_may_be_gone(tmp_path):
    played = Played(tmp_path, "tensorboard")
    said: list[str] = []
    process = tracker_process.TrackerProcess.__new__(tracker_process.TrackerProcess)
    process.order = Order("wandb", str(played.path))
    process.say, process._log, process._heard = said.append, tmp_path / "gone.log", 0
    process._warned, process.position, process._may_start_again = False, None, True
    lines = "print('at: {'); print('at: 3'); print('at: {\"metrics\": 5, \"evaluations\": 0, \"read\": 1}')"
    command = [sys.executable, "-c", f"{lines}; import sys; sys.stdin.read()"]
    process.process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0
    )
    assert process.process.stdout is not None
    os.set_blocking(process.process.stdout.fileno(), False)
    until(lambda: process.look() or process.position)
    assert process.position == Position(5, 0, 1) and said == []
    process._gone()
    played.trackers.close()


@pytest.mark.slow  # MLflow makes its data base, with all its migrations
def test_mlflows_client_reads_back_metrics_parameters_tables_and_the_end(tmp_path):
    played = whole_run(tmp_path, "mlflow")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.get_run((played.path / "mlflow.id").read_text(encoding="utf-8").strip())
    assert (run.info.run_name, run.info.status) == ("demo", "FINISHED")
    rewards = client.get_metric_history(run.info.run_id, "rollout/all/reward")
    assert [(m.step, m.value) for m in rewards] == [(1, 0.25), (2, 0.75)]
    assert run.data.params["env.0.id"] == "calculator"
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    table = json.loads((artifacts / "evaluation/step_1.json").read_text(encoding="utf-8"))
    assert table["columns"][:2] == ["id", "env"] and len(table["data"]) == 2
    summary = json.loads((artifacts / "summary.json").read_text(encoding="utf-8"))
    assert summary["wall_s"] == 9.5


def test_trackios_store_reads_back_metrics_histograms_and_tables(tmp_path):
    whole_run(tmp_path, "trackio")
    # Its folder is fixed as it is imported, so its own command reads.
    read = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as s; "
        "print('READ', json.dumps(s.get_logs('dorado', 'demo'), default=str)); "
        "print('CONFIG', s.get_run_config('dorado', 'demo')['name'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", read],
        env=os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio")},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert "CONFIG demo" in done.stdout, done.stderr
    [line] = [one for one in done.stdout.splitlines() if one.startswith("READ ")]
    logs = json.loads(line.removeprefix("READ "))
    rewards = [(e["step"], e["rollout/all/reward"]) for e in logs if "rollout/all/reward" in e]
    assert rewards == [(1, 0.25), (2, 0.75)]
    assert logs[0]["trained/all/reward"]["_type"] == "trackio.histogram"
    [table] = [e["evaluation/step_1"] for e in logs if "evaluation/step_1" in e]
    assert [row["id"] for row in table["_value"]] == ["eval-step_1-0.0", "eval-step_1-0.1"]


def test_prometheus_parser_reads_the_runs_metrics_and_those_of_its_engines(tmp_path):
    played = Played(tmp_path, "prometheus")
    played.trackers.start()
    engine = played.path / "prometheus" / "engine-0.prom"
    engine.parent.mkdir()
    engine.write_text(
        "# HELP vllm:num_requests_running n\n# TYPE vllm:num_requests_running gauge\n"
        'vllm:num_requests_running{engine="0",model_name="m"} 3.0\n',
        encoding="utf-8",
    )
    played.step(1)
    played.step(2)
    played.status()
    file = played.path / "prometheus.address"
    address = until(lambda: file.exists() and file.read_text(encoding="utf-8").strip())
    assert address.startswith("http://127.0.0.1:")

    def read() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        with urllib.request.urlopen(address, timeout=10) as answer:
            text = answer.read().decode()
        return {
            (one.name, tuple(sorted(one.labels.items()))): one.value
            for family in text_string_to_metric_families(text)
            for one in family.samples
        }

    def value(name: str, **labels: str) -> float | None:
        return samples.get((name, tuple(sorted(labels.items()))))

    samples = until(lambda: (s := read()) and ("dorado_step", ()) in s and s)
    assert value("dorado_step") == 2 and value("dorado_steps") == 9
    assert value("dorado_rollout_tokens_total") == 220
    assert value("dorado_buffered_trajectories") == 3
    assert value("dorado_engines") == 2 and value("dorado_engine_version", engine="engine-0") == 2
    assert value("dorado_engine_changing", engine="engine-1") == 1
    named = {"env": "calculator", "outcome": "filtered", "reason": "zero_variance"}
    assert value("dorado_trajectories_total", **named) == 2
    assert value("dorado_ledger_trajectories", env="calculator", state="in_flight") == 2
    assert value("dorado_in_flight_trajectories", env="calculator", phase="tool") == 2
    assert value("dorado_metric", key="rollout/all/reward") == 0.75
    labels = {"actor": "engine-0", "engine": "0", "model_name": "m"}
    assert value("vllm:num_requests_running", **labels) == 3
    played.end()
    assert played.said == [] and not file.exists()


def test_a_collector_is_sent_a_trace_of_each_episode_with_its_phases(tmp_path):
    server = HttpServer("answers")
    with listening(server):
        whole_run(tmp_path, "otel", otel={"endpoint": server.url})
    spans = []
    for path, body in server.posts:
        assert path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            assert (names["service.name"], names["dorado.run"]) == ("dorado", "demo")
            spans += [span for scope in resource.scope_spans for span in scope.spans]
    episodes = [span for span in spans if span.name == "episode"]
    assert len(episodes) == 6
    attributes = {a.key: a.value for a in episodes[0].attributes}
    assert attributes["dorado.trajectory"].string_value == "g1.0"
    assert attributes["dorado.split"].string_value == "train"
    inner = [span for span in spans if span.parent_span_id == episodes[0].span_id]
    assert [span.name for span in inner] == ["generate", "tool"]
    assert [span.end_time_unix_nano - span.start_time_unix_nano for span in inner] == [5e8, 2.5e8]
    assert {span.trace_id for span in inner} == {episodes[0].trace_id}
    assert episodes[0].start_time_unix_nano == 1001e9


def has_the_first_step(played: Played, use: str, server: HttpServer) -> bool:
    """True once what a tracker writes has step 1."""
    above = played.path.parent
    match use:
        case "tensorboard":
            files = (played.path / "tensorboard").glob("events*")
            return any(b"rollout/all/reward" in file.read_bytes() for file in files)
        case "mlflow":
            return rows(above / "mlflow.db", "select count(*) from metrics") > 0
        case "trackio":
            return rows(above / "trackio" / "dorado.db", "select count(*) from metrics") > 0
        case "prometheus":
            address = played.path / "prometheus.address"
            if not address.exists():
                return False
            with urllib.request.urlopen(address.read_text(encoding="utf-8")) as answer:
                return b"dorado_rollout_tokens_total 100.0" in answer.read()
        case _:
            return bool(server.posts)


def rows(database: Path, question: str) -> int:
    """A count in a database that may not be there yet."""
    if not database.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as store:
            [(count,)] = store.execute(question).fetchall()
        store.close()
    except sqlite3.Error:
        return 0
    return count


def settings_of(use: str, url: str) -> dict[str, Any]:
    """Settings with which a tracker sends to a server, where it can."""
    return {"otel": {"endpoint": url}} if use == "otel" else {}


@pytest.mark.parametrize("use", ALL)
def test_a_tracker_that_is_killed_is_started_again_and_the_second_time_it_is_not(tmp_path, use):
    server = HttpServer("answers")
    with listening(server):
        played = Played(tmp_path, use, **settings_of(use, server.url))
        played.trackers.start()
        played.step(1)
        until(lambda: has_the_first_step(played, use, server), 200)
        for _ in range(2):
            played.kill(use)
            began = time.monotonic()
            played.trackers.look()
        played.step(2)
        played.status()
        played.trackers.look()
        played.end()
        assert time.monotonic() - began < 5, "nobody waits for one that is gone"
    again, warning = played.said
    assert again.endswith(f"is started again (log: {played.path}/logs/{use}.log)")
    assert "its process has ended again; it gets nothing more" in warning
    assert (
        f"{played.path}/metrics.jsonl has every step (log: {played.path}/logs/{use}.log)" in warning
    )
    last = (played.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last)["step"] == 2


@pytest.mark.slow  # two processes of each tracker, one after the other
def test_a_tracker_that_was_started_again_has_every_step_once(tmp_path):
    server = HttpServer("answers")
    with listening(server):
        played = Played(tmp_path, *ALL, otel={"endpoint": server.url})
        played.trackers.start()
        played.step(1)
        processes = played.trackers.processes
        until(lambda: all(has_the_first_step(played, use, server) for use in ALL), 200)
        # Of a tracker that writes a log, the next process goes on behind what is told.
        until(lambda: played.trackers.look() or all(told_first_step(processes[u]) for u in ALL), 60)
        for use in ALL:
            played.kill(use)
        played.trackers.look()
        played.step(2)
        until(lambda: rows_of_both_steps(played), 200)
        played.end()
    assert len(played.said) == len(ALL) and all("is started again" in one for one in played.said)
    events = written_events(played.path / "tensorboard")
    assert [e.step for e in events.Scalars("rollout/all/reward")] == [1, 2]
    rewards = "select count(*) from metrics where key = 'rollout/all/reward'"
    assert rows(tmp_path / "mlflow.db", rewards) == 2
    episodes = [
        span.name
        for _, body in server.posts
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert episodes.count("episode") == 4


def told_first_step(process: tracker_process.TrackerProcess) -> bool:
    """True if a process has said that it is behind the first step."""
    at = process.position
    return process.order.tracker in STATES or (at is not None and bool(at.metrics or at.read))


def rows_of_both_steps(played: Played) -> bool:
    """True once Prometheus, which begins anew, shows the sum of both steps."""
    address = played.path / "prometheus.address"
    if not address.exists():
        return False
    try:
        with urllib.request.urlopen(address.read_text(encoding="utf-8"), timeout=5) as answer:
            return b"dorado_rollout_tokens_total 220.0" in answer.read()
    except OSError:  # the address is of the process before
        return False


@pytest.mark.parametrize("use", ALL)
def test_a_tracker_that_hangs_stalls_no_run_and_is_ended(tmp_path, monkeypatch, use):
    monkeypatch.setattr(trackers_module, "CLOSE_SECONDS", 0.5)
    played = Played(tmp_path, use)
    played.trackers.start()
    victim = played.process(use)
    victim.suspend()
    began = time.monotonic()
    played.step(1)
    played.step(2)
    played.end()
    assert time.monotonic() - began < 10
    [warning] = played.said
    assert "it did not take everything within 0.5 s, and was ended" in warning
    assert not victim.is_running()


def test_a_tracker_that_hangs_for_long_is_ended_while_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(tracker_process, "HANGS_SECONDS", -1.0)
    played = Played(tmp_path, "tensorboard")
    played.trackers.start()
    victim = played.process("tensorboard")
    played.step(1)
    until(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE)
    played.step(2)
    played.end()
    [warning] = played.said
    assert "its process has not moved for" in warning and "and is ended" in warning


def break_tensorboard(played: Played) -> None:
    (played.path / "tensorboard").write_text("a file where a folder is to be", encoding="utf-8")


def break_mlflow(played: Played) -> None:
    (played.path.parent / "mlflow.db").write_bytes(b"no database" * 100)


def break_trackio(played: Played) -> None:
    (played.path.parent / "trackio").write_text("a file", encoding="utf-8")


@pytest.mark.parametrize(
    ("use", "settings", "harm", "said"),
    [
        ("tensorboard", {}, break_tensorboard, "tensorboard"),
        ("mlflow", {}, break_mlflow, "not a database"),
        ("mlflow", {"mlflow": {"uri": "http://127.0.0.1:1"}}, None, "127.0.0.1"),
        ("trackio", {}, break_trackio, "trackio"),
        ("prometheus", {"prometheus": {"port": 1}}, None, "ermission denied"),
        ("otel", {"otel": {"endpoint": "http://127.0.0.1:1"}}, None, "does not take spans"),
    ],
    ids=["tensorboard", "mlflow store", "mlflow server", "trackio", "prometheus", "otel"],
)
def test_a_tracker_that_fails_is_one_warning_that_says_why(tmp_path, use, settings, harm, said):
    if use == "prometheus" and os.geteuid() == 0:
        with listening(other := HttpServer("answers")):
            taken = {"prometheus": {"port": other.server_port}}
            played = failing(tmp_path, use, taken, harm)
        said = "in use"
    else:
        played = failing(tmp_path, use, settings, harm)
    [warning] = played.said
    assert said in warning and "\n" not in warning and "Traceback" not in warning
    assert "metrics.jsonl has every step" in warning


def failing(tmp_path: Path, use: str, settings: dict[str, Any], harm: Any) -> Played:
    """A run of two steps whose tracker fails."""
    played = Played(tmp_path, use, **settings)
    if harm:
        harm(played)
    played.trackers.start()
    played.step(1)
    played.step(2)
    played.end()
    return played


def test_a_store_that_breaks_in_the_middle_is_one_warning_that_says_why(tmp_path):
    played = Played(tmp_path, "mlflow")
    played.trackers.start()
    played.step(1)
    until(lambda: rows(tmp_path / "mlflow.db", "select count(*) from metrics"), 200)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        store.execute("alter table metrics rename to gone")
    store.close()
    played.step(2)
    played.end()
    [warning] = played.said
    assert "no such table: metrics" in warning and "it gets nothing more" in warning
    assert rows(tmp_path / "mlflow.db", "select count(*) from gone") > 0, "step 1 stays"


@pytest.mark.parametrize("manner", ["hangs", "fails"])
def test_a_collector_that_hangs_or_fails_stalls_no_run(tmp_path, monkeypatch, manner):
    monkeypatch.setattr(trackers_module, "CLOSE_SECONDS", 3.0)
    server = HttpServer(manner)
    with listening(server):
        played = Played(tmp_path, "otel", otel={"endpoint": server.url})
        played.trackers.start()
        played.step(1)
        until(lambda: server.posts)
        began = time.monotonic()
        played.step(2)
        assert time.monotonic() - began < 2, "the run does not wait for it"
        played.end()
    assert len(played.said) == 1, played.said


@pytest.mark.slow  # MLflow makes its data base, with all its migrations
def test_a_metric_of_any_name_and_an_index_that_is_locked_lose_no_step(tmp_path):
    played = Played(tmp_path, "mlflow")
    played.trackers.start()
    with sqlite3.connect(played.path / "trajectories.sqlite") as index:
        index.execute("begin exclusive")
        played.run.folder.metrics(1, {"reward/a|b/odd (name)?": 1.0, "time/total_seconds": 1.0})
        played.trackers.look()
        until(lambda: (tmp_path / "mlflow.db").exists())
        index.rollback()
    index.close()
    played.end()
    assert played.said == []
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    id = (played.path / "mlflow.id").read_text(encoding="utf-8").strip()
    assert client.get_run(id).data.metrics["reward/a_b/odd _name__"] == 1.0
