"""Jobs: what the commands say and ask of a server written by hand."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serving import serving
from typer.testing import CliRunner

from rl.cli import app
from rl.config_file import ConfigError
from rl.jobs import client as jobs
from rl.jobs.client import JobError

CONFIG = 'name = "tiny"\n[model.init]\nfamily = "qwen3_moe"\n[[env]]\nid = "calculator"\n'
NODES = [{"CPU": 8.0}]


class FakeServer:
    """Jobs by id, as `[status, the log's pieces]`; a stopped one ends at the second look."""

    def __init__(self, **jobs: tuple[str, list[str]]) -> None:
        self.jobs = {id: list(job) for id, job in jobs.items()}
        self.submitted: list[dict[str, Any]] = []
        self.stopping: set[str] = set()
        self.looks = 0

    def submit_job(self, **request: Any) -> str:
        self.submitted.append(request)
        self.jobs[request["submission_id"]] = ["SUCCEEDED", ["step 1/1\n"]]
        return request["submission_id"]

    def stop_job(self, job_id: str) -> bool:
        self.stopping.add(job_id)
        return True

    def get_job_info(self, job_id: str) -> Any:
        if job_id not in self.jobs:
            raise RuntimeError(f"Request failed with status code 404: Job {job_id} does not exist.")
        self.looks += 1
        if job_id in self.stopping and self.looks > 2:
            self.jobs[job_id][0] = "STOPPED"
            self.jobs[job_id][1].append("interrupted after step 7\n")
        return self._info(job_id)

    def list_jobs(self) -> list[Any]:
        driver = SimpleNamespace(submission_id=None)
        return [*(self._info(id) for id in self.jobs), driver]

    def _info(self, id: str) -> Any:
        return SimpleNamespace(
            submission_id=id,
            job_id=None,
            status=self.jobs[id][0],
            metadata={"config": "tiny", "user": "ada", "folder": "/shared/runs/tiny"},
            runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "180"}},
            start_time=1000 * (1 + list(self.jobs).index(id)),
            end_time=None,
        )

    def get_job_logs(self, job_id: str) -> str:
        return "".join(self.jobs[job_id][1])

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        for piece in self.jobs[job_id][1]:
            if piece == "breaks":
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            if piece == "silence":
                await asyncio.Event().wait()
            yield piece


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> FakeServer:
    """Where every command finds a job that runs and one that failed."""
    fake = FakeServer(live=("RUNNING", ["a\n", "b\n"]), dead=("FAILED", ["error: no\n"]))
    monkeypatch.setattr(jobs, "connect", lambda address: fake)
    monkeypatch.setattr(jobs, "nodes_of", lambda address: NODES)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    for name in jobs.ADDRESS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return fake


def dorado(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def config_in(folder: Path) -> str:
    (folder / "tiny.toml").write_text(CONFIG, encoding="utf-8")
    return str(folder / "tiny.toml")


def test_submit_sends_the_run_with_no_cpu_for_its_driver(
    server: FakeServer, tmp_path: Path
) -> None:
    done = dorado("submit", config_in(tmp_path), "--runs_dir", "/shared/runs", "--steps", "3")
    assert done.exit_code == 0, done.output
    (sent,) = server.submitted
    assert sent["entrypoint_num_cpus"] == 0
    assert sent["entrypoint"].startswith("python -m rl train tiny.toml")
    assert "--steps 3" in sent["entrypoint"]
    assert done.stdout == f"job: {sent['submission_id']}\nrun folder: /shared/runs/tiny\n"


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k3y")
    (tmp_path / "note.txt").write_text("12345", encoding="utf-8")
    asked = ("--runs_dir", "/shared/runs", "--env", "WANDB_API_KEY", "--env", "A=b", "--dry-run")
    done = dorado("submit", config_in(tmp_path), *asked)
    assert (done.exit_code, server.submitted) == (0, []), done.output
    command, variables, total, *files = done.stdout.splitlines()
    assert command.startswith("command: python -m rl train tiny.toml")
    assert variables == "variables: WANDB_API_KEY, A, RAY_JOB_STOP_WAIT_TIME_S"
    assert total == f"2 files, 0.0 MiB, of {tmp_path}:"
    assert [one.split() for one in files] == [["5", "note.txt"], [str(len(CONFIG)), "tiny.toml"]]
    assert "k3y" not in done.output
    done = dorado("submit", config_in(tmp_path), *asked[:-1])
    (sent,) = server.submitted
    assert sent["runtime_env"]["env_vars"]["WANDB_API_KEY"] == "k3y"


def test_submit_and_follow_prints_the_log_and_ends_as_the_job(
    server: FakeServer, tmp_path: Path
) -> None:
    done = dorado("submit", config_in(tmp_path), "--runs_dir", "/shared/runs", "--follow")
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, "step 1/1")


def test_what_the_cluster_does_not_have_is_one_sentence_and_nothing_is_sent(
    server: FakeServer, tmp_path: Path
) -> None:
    done = dorado("submit", config_in(tmp_path), "--engine.count", "20")
    assert (done.exit_code, server.submitted) == (2, [])
    assert done.stderr.startswith("error: engine.count: the run asks for 20 CPUs")
    assert "the cluster has 8 on 1 node\n" in done.stderr


def test_a_bad_setting_is_one_sentence_and_nothing_is_sent(
    server: FakeServer, tmp_path: Path
) -> None:
    done = dorado("submit", config_in(tmp_path), "--stepz", "3")
    assert (done.exit_code, server.submitted) == (2, [])
    assert done.stderr == "error: command line: stepz: unknown key, did you mean 'steps'?\n"


def test_jobs_are_listed_the_newest_first_without_other_drivers(server: FakeServer) -> None:
    listed = json.loads(dorado("jobs", "--json").stdout)["jobs"]
    assert [job["id"] for job in listed] == ["dead", "live"]
    assert listed[1] == {
        "id": "live",
        "status": "RUNNING",
        "config": "tiny",
        "user": "ada",
        "began": 1.0,
        "ended": 0.0,
        "folder": "/shared/runs/tiny",
        "grace": 180.0,
    }
    assert "live" in dorado("jobs").stdout


def test_logs_are_what_the_job_printed(server: FakeServer) -> None:
    assert dorado("logs", "live").stdout == "a\nb\n"


def test_following_a_failed_job_fails(server: FakeServer) -> None:
    done = dorado("logs", "dead", "--follow")
    assert (done.exit_code, done.stdout, done.stderr) == (1, "error: no\n", "dead: FAILED\n")


def test_stop_asks_the_run_and_waits_until_it_has_ended(server: FakeServer) -> None:
    done = dorado("stop", "live")
    assert done.exit_code == 0
    asked, said, ended = done.stdout.splitlines()
    assert asked.startswith("live: asked to end, within 180 s: ")
    assert (said, ended) == ("interrupted after step 7", "live: STOPPED")
    assert server.stopping == {"live"}


def test_stopping_what_has_ended_says_so_and_asks_nothing(server: FakeServer) -> None:
    done = dorado("stop", "dead")
    assert (done.exit_code, done.stdout) == (0, "dead: had ended before, FAILED\n")
    assert server.stopping == set()


@pytest.mark.parametrize("command", [["logs"], ["logs", "--follow"], ["stop"]], ids=" ".join)
def test_an_unknown_id_is_one_sentence(server: FakeServer, command: list[str]) -> None:
    done = dorado(*command, "nobody")
    assert done.exit_code == 2
    assert done.stderr == "error: there is no job 'nobody'; `dorado jobs` lists those there are\n"


def test_a_cluster_whose_first_node_is_not_there_yet_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = SimpleNamespace(state="ALIVE", resources_total={"CPU": 4.0})
    answers = [[], [SimpleNamespace(state="DEAD", resources_total={"CPU": 9.0})], [node]]
    monkeypatch.setattr("ray.util.state.list_nodes", lambda *_, **__: answers.pop(0))
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.0)
    assert jobs.nodes_of("http://head:8265") == [{"CPU": 4.0}]
    monkeypatch.setattr("ray.util.state.list_nodes", lambda *_, **__: [])
    monkeypatch.setattr(jobs, "FIRST_NODE_SECONDS", 0.01)
    assert jobs.nodes_of("http://head:8265") == []


def test_a_job_that_does_not_end_is_named(server: FakeServer) -> None:
    with pytest.raises(JobError, match="live: still RUNNING after 0 s"):
        jobs.wait(server, "live", 0)


def test_a_log_that_breaks_off_is_a_sentence(server: FakeServer) -> None:
    server.jobs["live"][1] = ["a\n", "breaks"]
    done = dorado("logs", "live", "--follow")
    assert (done.exit_code, done.stdout) == (1, "a\n")
    assert done.stderr.startswith("error: live: the log broke off: WebSocket connection closed")


def test_a_silent_log_is_left_once_its_job_has_ended(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "SILENT_SECONDS", 0.01)
    server.jobs["dead"][1] = ["a\n", "silence"]
    said: list[str] = []
    assert jobs.follow(server, "dead", said.append).status == "FAILED"
    assert said == ["a\n"]


def test_a_server_that_never_answers_is_given_up() -> None:
    never = threading.Event()
    with pytest.raises(JobError, match=r"jobs: the job server did not answer within 0.01 s"):
        jobs.ask("jobs", never.wait, 0.01)
    never.set()


def test_a_servers_traceback_is_cut_down_to_its_last_line() -> None:
    def fails() -> None:
        raise RuntimeError(
            "Request failed with status code 500: Traceback (most recent call last):\n"
            '  File "x.py", line 1\nOSError: disk full\n.'
        )

    with pytest.raises(JobError, match=r"^submit: OSError: disk full$"):
        jobs.ask("submit", fails)


def test_an_address_where_nothing_listens_is_one_sentence(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    done = dorado("jobs", "--address", address)
    assert done.exit_code == 2
    assert done.stderr == (
        f"error: --address: no Ray job server answers at {address}: Connection refused\n"
    )


class Refusing(BaseHTTPRequestHandler):
    """A job server with token authentication, to somebody without one."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"Unauthorized: Missing authentication token")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_a_server_that_wants_a_token_says_where_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in jobs.ADDRESS_VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # what is given goes before
    refusing = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    with serving(refusing):
        address = f"http://127.0.0.1:{refusing.server_port}"
        with pytest.raises(ConfigError) as error:
            jobs.connect(address)
    assert str(error.value) == (
        f"--address: the job server at {address} did not accept the token: set RAY_AUTH_MODE=token, and the "
        "cluster's token as RAY_AUTH_TOKEN or in ~/.ray/auth_token"
    )


def test_the_address_given_goes_before_rays_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert jobs.address_of(None) == jobs.DEFAULT_ADDRESS
    monkeypatch.setenv("RAY_ADDRESS", "http://other:1")
    assert jobs.address_of(None) == "http://other:1"
    assert jobs.address_of("https://mine/") == "https://mine"


@pytest.mark.parametrize(
    "address", ["auto", "10.0.0.1:6379", "ray://head:10001", "http://", "http://h:x"]
)
def test_an_address_that_is_no_job_servers_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--address: .* such as http://127.0.0.1:8265"):
        jobs.address_of(address)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]
