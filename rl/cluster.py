"""Starts Ray and the actors, and ends everything this run started, and nothing else."""

import asyncio
import os
import re
import signal
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray.exceptions import RayActorError, RayError

from rl.actors import Controller, Engine, EnvHost, LearnerActor
from rl.config import RunConfig, usable_cpus
from rollout.renderer import Renderer


class StartError(Exception):
    """The run cannot start; the message is one sentence for the user."""


@dataclass
class Actors:
    """Handles of a run's actors."""

    learner: Any
    engines: dict[str, Any]
    controllers: dict[str, Any]
    hosts: list[Any]


class Cluster:
    """Ray and the actors of one run."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder.resolve()
        self.id = f"{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.weights = Path(config.cluster.weights_dir) / f"dorado-{self.id}"
        self.actors: Actors | None = None
        self._engines: dict[str, Any] = {}
        self._processes: list[psutil.Process] = []

    def connect(self) -> None:
        """Start Ray on this machine, or join a cluster. Raises StartError."""
        quiet = {"log_to_driver": False, "logging_level": "error", "configure_logging": True}
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        try:
            if self.config.cluster.address == "local":
                ray.init(
                    address="local",
                    num_cpus=usable_cpus(),
                    include_dashboard=False,
                    object_store_memory=512 * 2**20,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=f"/tmp/ray-{os.getuid()}",
                    **quiet,  # pyright: ignore[reportArgumentType]
                )
            else:
                ray.init(address=self.config.cluster.address, **quiet)  # pyright: ignore
        except (ConnectionError, RayError, RuntimeError, ValueError) as error:
            raise StartError(f"cluster.address: Ray did not start: {first_line(error)}") from None
        self._check_resources()
        self.weights.mkdir(parents=True, exist_ok=True)

    async def start(self, checkpoint: str) -> Actors:
        """Place the actors and wait until each can work. Raises StartError."""
        config, logs = self.config, self.folder / "logs"
        eos_ids = Renderer(checkpoint, config.episode.tool_format).eos_ids
        # The number of CPUs an actor asks for must not set how many threads it gets.
        threads = {"env_vars": {"OMP_NUM_THREADS": str(config.engine.threads)}}
        engine = ray.remote(Engine)
        for index in range(config.engine.count):
            name = f"engine-{index}"
            self._engines[name] = engine.options(
                num_cpus=config.engine.cpus,
                num_gpus=config.engine.gpus,
                max_concurrency=10_000,
                runtime_env=threads,
            ).remote(name, checkpoint, config, eos_ids, str(logs / f"{name}.log"))
        learner = (
            ray.remote(LearnerActor)
            .options(
                num_cpus=config.learner.cpus,
                num_gpus=config.learner.gpus,
                runtime_env={
                    "env_vars": {"OMP_NUM_THREADS": str(config.learner.threads or usable_cpus())}
                },
            )
            .remote(checkpoint, config, str(logs / "learner.log"))
        )
        hosts = [
            ray.remote(EnvHost)
            .options(num_cpus=0, max_restarts=-1, max_concurrency=10_000, runtime_env=threads)
            .remote(config.env, str(logs / f"host-{index}.log"))
            for index in range(config.rollout.hosts)
        ]
        controllers = {
            name: ray.remote(Controller)
            .options(num_cpus=0, max_restarts=-1, max_concurrency=10_000, runtime_env=threads)
            .remote(name, config, checkpoint, self._engines, hosts, str(self.folder))
            for name in (f"controller-{index}" for index in range(config.rollout.controllers))
        }
        seconds = config.timeouts.start_seconds
        await asyncio.gather(
            *(self._engine_ready(name) for name in self._engines),
            _ready(learner.ready, "learner", seconds, self.folder),
            *(_ready(host.ping, f"host-{i}", seconds, self.folder) for i, host in enumerate(hosts)),
            *(_ready(c.ready, name, seconds, self.folder) for name, c in controllers.items()),
        )
        self._processes = psutil.Process().children(recursive=True)
        self.actors = Actors(learner, self._engines, controllers, hosts)
        return self.actors

    def stop(self) -> None:
        """End the engines in order, then Ray, then whatever of ours is still there."""
        own = {p.pid: p for p in self._processes}
        own |= {p.pid: p for p in psutil.Process().children(recursive=True)}
        if ray.is_initialized():
            endings = [engine.shutdown.remote() for engine in self._engines.values()]
            ray.wait(endings, num_returns=len(endings), timeout=10) if endings else None
            ray.shutdown()
        end_processes(list(own.values()))
        for file in self.weights.glob("*") if self.weights.is_dir() else ():
            file.unlink()
        if self.weights.is_dir():
            self.weights.rmdir()

    async def _engine_ready(self, name: str) -> None:
        await _ready(self._engines[name].start, name, self.config.engine.start_seconds, self.folder)

    def _check_resources(self) -> None:
        config, there = self.config, ray.cluster_resources()
        for resource, asked in (
            ("CPU", config.engine.count * config.engine.cpus + config.learner.cpus),
            ("GPU", config.engine.count * config.engine.gpus + config.learner.gpus),
        ):
            if asked > there.get(resource, 0):
                raise StartError(
                    f"engine.count: engines and learner ask for {asked:g} {resource}s, "
                    f"the cluster has {there.get(resource, 0):g}"
                )


async def _ready(method: Any, name: str, seconds: float, folder: Path) -> None:
    log = folder / "logs" / f"{name}.log"
    try:
        await asyncio.wait_for(method.remote(), seconds)
    except TimeoutError:
        reason = f"not ready within {seconds:g} s"
    except (RayError, Exception) as error:
        reason = root_cause(log) or first_line(error)
    else:
        return
    raise StartError(f"{name} could not start: {reason} (log: {log})") from None


def root_cause(log: Path) -> str:
    """The first error that a log ends its traceback with: the one that caused the later ones."""
    if not log.is_file():
        return ""
    for line in log.read_text(errors="replace").splitlines():
        found = re.search(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception): .+)$", line)
        if found:
            return found.group(1)[:300]
    return ""


def first_line(error: BaseException) -> str:
    """An exception as one line; of a Ray error the last line, which holds the cause."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if isinstance(error, RayError | RayActorError) else 0].strip()[:300]


def end_processes(processes: Sequence[psutil.Process]) -> None:
    """SIGTERM, five seconds, SIGKILL; by process object, so a number used again is never hit."""
    alive = [p for p in processes if p.is_running()]
    for sign in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            try:
                process.send_signal(sign)
            except psutil.NoSuchProcess:
                continue
        _, alive = psutil.wait_procs(alive, timeout=5)
