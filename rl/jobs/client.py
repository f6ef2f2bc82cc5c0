"""Runs on a cluster as jobs of Ray's job server: submitted, listed, followed, stopped.

In: what is asked for (rl/jobs/request.py), a job's id, the server's address. Out: records of jobs, what a job
prints. Every question to the server has a deadline. What is wrong with the question (no server there, no such
job) is a ConfigError; what goes wrong at the server is a JobError.
"""

import asyncio
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast
from urllib.parse import urlsplit

from rich.table import Table

from rl.config_file import ConfigError
from rl.jobs.request import GRACE_VARIABLE, RAYS_GRACE_SECONDS, Request

T = TypeVar("T")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# Read by Ray's client in place of an address that it is given.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ANSWER_SECONDS = 30.0
UPLOAD_SECONDS = 300.0
# A log that says nothing for so long: ask whether the job is still there.
SILENT_SECONDS = 30.0
POLL_SECONDS = 0.5
FIRST_NODE_SECONDS = 15.0
ENDED = {"SUCCEEDED": 0, "FAILED": 1, "STOPPED": 130}


class JobError(Exception):
    """The job server or a job did not do what was asked; the message is one sentence for the user."""


class JobInfo(Protocol):
    """The part of `ray.job_submission.JobDetails` that is used. start_time, end_time: unix milliseconds."""

    @property
    def submission_id(self) -> str | None: ...
    @property
    def job_id(self) -> str | None: ...
    @property
    def status(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, str] | None: ...
    @property
    def runtime_env(self) -> Mapping[str, object] | None: ...
    @property
    def start_time(self) -> int | None: ...
    @property
    def end_time(self) -> int | None: ...


class NodeInfo(Protocol):
    """The part of `ray.util.state.common.NodeState` that is used."""

    @property
    def state(self) -> str: ...
    @property
    def resources_total(self) -> Mapping[str, float] | None: ...


class JobServer(Protocol):
    """The part of `ray.job_submission.JobSubmissionClient` that is used. Raises RuntimeError as Ray does."""

    def submit_job(
        self,
        *,
        entrypoint: str,
        submission_id: str,
        runtime_env: dict[str, object],
        metadata: dict[str, str],
        entrypoint_num_cpus: int,
    ) -> str: ...
    def stop_job(self, job_id: str) -> bool: ...
    def get_job_info(self, job_id: str) -> JobInfo: ...
    def list_jobs(self) -> Sequence[JobInfo]: ...
    def get_job_logs(self, job_id: str) -> str: ...
    def tail_job_logs(self, job_id: str) -> AsyncIterator[str]: ...


@dataclass(frozen=True)
class Job:
    """A submitted job, such as Job("quick-3f9a1c", "RUNNING", "quick", "ada", 1.7e9, 0, "/runs/quick", 180).

    began, ended: unix seconds, 0 where it has not yet. grace: seconds that it has to end when it is stopped.
    """

    id: str
    status: str
    config: str
    user: str
    began: float
    ended: float
    folder: str
    grace: float


def address_of(given: str | None) -> str:
    """Address of the job server: as given, else from Ray's variables, else here. Raises ConfigError."""
    sources = {"--address": given, **{name: os.environ.get(name) for name in ADDRESS_VARIABLES}}
    source, address = next(((s, a) for s, a in sources.items() if a), ("", DEFAULT_ADDRESS))
    try:
        parts = urlsplit(address)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise ConfigError(
            f"{source}: {address!r} has to be the address of Ray's job server, such as {DEFAULT_ADDRESS}"
        )
    return address.rstrip("/")


def connect(address: str) -> JobServer:
    """A client of the job server there. Raises ConfigError."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    unreachable = f"--address: no Ray job server answers at {address}"
    try:
        socket.create_connection((parts.hostname, port), timeout=10).close()
    except OSError as error:
        raise ConfigError(f"{unreachable}: {error.strerror or error}") from None
    for name in ADDRESS_VARIABLES:  # which the client would take in place of this address
        os.environ.pop(name, None)
    from ray.job_submission import JobSubmissionClient

    for module in ("dashboard_sdk", "job.sdk"):  # which tell of each upload and each socket
        logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
    try:
        return ask("connect", lambda: JobSubmissionClient(address))
    except JobError as error:
        if "Authentication" in str(error):
            raise ConfigError(
                f"--address: the job server at {address} did not accept the token: set RAY_AUTH_MODE=token, "
                "and the cluster's token as RAY_AUTH_TOKEN or in ~/.ray/auth_token"
            ) from None
        raise ConfigError(f"{unreachable}: {error}") from None


def nodes_of(address: str) -> list[Mapping[str, float]]:
    """Total resources of each living node of the cluster, by name. Raises JobError.

    The job server of a cluster that is starting answers before its first node is there.
    """
    from ray.util.state import list_nodes

    deadline = time.monotonic() + FIRST_NODE_SECONDS
    while True:
        found = ask("list nodes", lambda: list_nodes(address, detail=True, limit=10_000))
        nodes = cast("Sequence[NodeInfo]", found)  # Ray's own class hides its fields from a checker
        alive: list[Mapping[str, float]] = [
            node.resources_total or {} for node in nodes if node.state == "ALIVE"
        ]
        if alive or time.monotonic() > deadline:
            return alive
        time.sleep(POLL_SECONDS)


def ask(what: str, question: Callable[[], T], seconds: float = ANSWER_SECONDS) -> T:
    """The answer of a call that has no deadline of its own. Raises JobError.

    The call that is given up goes on in a thread that does not keep this process.
    """
    answers: queue.Queue[tuple[T | None, Exception | None]] = queue.Queue()

    def answer() -> None:
        try:
            answers.put((question(), None))
        except Exception as error:  # raised below, where somebody waits for it
            answers.put((None, error))

    threading.Thread(target=answer, daemon=True).start()
    try:
        value, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise JobError(f"{what}: the job server did not answer within {seconds:g} s") from None
    if error is not None:
        raise JobError(f"{what}: {_short(error)}") from error
    return value  # pyright: ignore[reportReturnType]


def _short(error: Exception) -> str:
    """An error of Ray as one line; a server's traceback is cut down to its last line."""
    text = str(error).replace("\\n", "\n").strip().rstrip('".')
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if "Traceback" in text else 0][:300]


def submit(server: JobServer, request: Request) -> str:
    """Send the project and start the job. Returns its id; raises JobError."""
    return ask(
        "submit",
        lambda: server.submit_job(
            entrypoint=request.entrypoint,
            submission_id=request.id,
            runtime_env=request.runtime_env,
            metadata=request.metadata,
            entrypoint_num_cpus=0,
        ),
        UPLOAD_SECONDS,
    )


def jobs(server: JobServer) -> list[Job]:
    """List the submitted jobs, the newest first. Raises JobError."""
    found = [_job(info) for info in ask("jobs", server.list_jobs) if info.submission_id]
    return sorted(found, key=lambda job: -job.began)


def find(server: JobServer, id: str) -> Job:
    """The job of that id. Raises ConfigError where there is none, JobError."""
    try:
        return _job(ask(id, lambda: server.get_job_info(id)))
    except JobError as error:
        if "404" in str(error) or "does not exist" in str(error):
            raise ConfigError(
                f"there is no job {id!r}; `dorado jobs` lists those there are"
            ) from None
        raise


def logs(server: JobServer, id: str) -> str:
    """Read the output of a job so far. Raises ConfigError, JobError."""
    find(server, id)
    return ask(f"logs {id}", lambda: server.get_job_logs(id))


def _job(info: JobInfo) -> Job:
    about = info.metadata or {}
    variables = (info.runtime_env or {}).get("env_vars")
    given = variables if isinstance(variables, dict) else {}
    return Job(
        id=info.submission_id or info.job_id or "",
        status=str(getattr(info.status, "value", info.status)),
        config=about.get("config", ""),
        user=about.get("user", ""),
        began=(info.start_time or 0) / 1000,
        ended=(info.end_time or 0) / 1000,
        folder=about.get("folder", ""),
        grace=float(given.get(GRACE_VARIABLE, RAYS_GRACE_SECONDS)),
    )


def follow(server: JobServer, id: str, write: Callable[[str], None]) -> Job:
    """Write what a job says until it has ended. Raises ConfigError, JobError."""
    find(server, id)
    asyncio.run(_tail(server, id, write))
    # The log closes a moment before the job's status changes.
    return wait(server, id, ANSWER_SECONDS)


async def _tail(server: JobServer, id: str, write: Callable[[str], None]) -> None:
    """Consumes the job's log until the server closes it.

    Waits for its next lines. Unblocked, where they do not come, by a look every SILENT_SECONDS: the job has
    ended, or the server does not answer.
    """
    lines = aiter(server.tail_job_logs(id))
    following = asyncio.ensure_future(anext(lines, None))
    try:
        while True:
            done, _ = await asyncio.wait({following}, timeout=SILENT_SECONDS)
            if not done:
                if find(server, id).status in ENDED:
                    return
                continue
            try:
                text = following.result()
            except Exception as error:  # whatever the connection breaks with
                raise JobError(f"{id}: the log broke off: {_short(error)}") from error
            if text is None:
                return
            write(text)
            following = asyncio.ensure_future(anext(lines, None))
    finally:
        following.cancel()


def stop(server: JobServer, id: str, write: Callable[[str], None]) -> tuple[Job, bool]:
    """Ask a run to end, wait until it has, and write what it says of that.

    Returns the job and whether it was still running. Raises ConfigError, JobError.
    """
    job = find(server, id)
    if job.status in ENDED:
        return job, False
    before = len(ask(f"logs {id}", lambda: server.get_job_logs(id)))
    ask(f"stop {id}", lambda: server.stop_job(id))
    write(
        f"{id}: asked to end, within {job.grace:g} s: a run that trains finishes its step and writes a "
        "checkpoint\n"
    )
    ended = wait(server, id, job.grace + ANSWER_SECONDS)
    write(ask(f"logs {id}", lambda: server.get_job_logs(id))[before:])
    return ended, True


def table(found: Sequence[Job]) -> Table:
    """Table of jobs for the terminal."""
    shown = Table(box=None, pad_edge=False)
    for column in ("job", "status", "user", "began", "took", "run folder"):
        shown.add_column(column, no_wrap=column != "run folder", overflow="fold")
    for job in found:
        began = time.strftime("%m-%d %H:%M", time.localtime(job.began)) if job.began else "-"
        seconds = round((job.ended or time.time()) - job.began) if job.began else 0
        took = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        shown.add_row(job.id, job.status, job.user or "-", began, took, job.folder or "-")
    return shown


def wait(server: JobServer, id: str, seconds: float) -> Job:
    """The job once it has ended. Raises JobError where it has not within `seconds`."""
    deadline = time.monotonic() + seconds
    while (job := find(server, id)).status not in ENDED:
        if time.monotonic() > deadline:
            raise JobError(f"{id}: still {job.status} after {seconds:g} s")
        time.sleep(POLL_SECONDS)
    return job
