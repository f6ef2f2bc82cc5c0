"""Starts Ray and the actors, and ends everything this run started, and nothing else."""

import asyncio
import itertools
import os
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar, cast

import psutil
import ray
from ray.actor import ActorClass
from ray.exceptions import RayError

from rl.actors.actor_method import Handle, end_actor
from rl.actors.controller import ControllerActor
from rl.actors.engine import EngineActor
from rl.actors.env_host import EnvHost
from rl.actors.handles import Actors, StartError
from rl.actors.learner import LearnerActor
from rl.actors.learner_ranks import LearnerRanks
from rl.actors.model_client import PREFIX as MODEL
from rl.actors.model_service import ModelActor
from rl.actors.node_store import NodeStore
from rl.config import RunConfig
from rl.models.http_wire import key_of
from rl.nodes.cpus import usable_cpus
from rl.nodes.deadline import in_daemon, within
from rl.nodes.local_ray import join_ray, messages_to, start_local_ray
from rl.nodes.node_folder import PREFIX, claim, node_folder, tidy
from rl.nodes.nodes import alive_nodes, node_of, on_node, own_node, probe
from rl.nodes.process import end_processes, first_line
from rl.nodes.session_folder import (
    close_session,
    note_shared_memory,
    open_session,
    remove_shared_memory,
    shared_memory,
    user_folder,
)
from rl.preflight.tokenizer import check_rendering
from rollout.renderer import Renderer
from trainer.cpu import allocator

# Calls an actor may have in progress: above whatever a run has in flight, for beyond it Ray lets a call wait
# until another ends, and `interrupt` or `load` would wait behind the requests that wait for them.
MAX_CALLS = 100_000
# Bytes. An actor that asks for nothing at all Ray puts on any node, whatever the strategy says.
LEAST_MEMORY = 2**20

T = TypeVar("T")


class Cluster:
    """Ray and the actors of one run."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder.resolve()
        self.id = f"{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.weights = Path(config.cluster.weights_dir) / f"{PREFIX}{self.id}"
        self.actors: Actors | None = None
        # Checkpoint and end-of-sequence ids, of every engine.
        self._policy: tuple[str, tuple[int, ...]] = ("", ())
        self._engines: dict[str, Handle[EngineActor]] = {}
        self._starting: dict[str, Handle[EngineActor]] = {}
        self._models: dict[str, Handle[ModelActor]] = {}
        self._stores: dict[str, Handle[NodeStore]] = {}
        self._placing = asyncio.Lock()
        self._store_numbers = itertools.count()
        self._processes: list[psutil.Process] = []
        # Set where nothing can be asked of Ray any more.
        self.control_lost = False
        # Of a local run.
        self.session: Path | None = None

    def connect(self) -> None:
        """Start Ray on this machine, or join a cluster. Raises StartError."""
        # Ray and vLLM want room in memory too; other nodes are tidied when they get their folders.
        tidy(self.weights.parent)
        messages_to(self.folder / "logs" / "ray.log")
        try:
            if self.config.cluster.address == "local":
                self.session = open_session(user_folder())
                start_local_ray(object_store_mib=512, folder=self.session)
            else:
                join_ray(self.config.cluster.address)
        except Exception as error:  # Ray raises bare ones too
            raise StartError(f"cluster.address: Ray did not start: {first_line(error)}") from None
        self._check_resources()

    async def start(self, checkpoint: str) -> Actors:
        """Place the actors and wait until each can work. Raises StartError."""
        config, seconds = self.config, self.config.timeouts.start_seconds
        renderer = Renderer(checkpoint, config.model.format)
        try:
            check_rendering(config.all_envs, config.episode, renderer)
        except ValueError as error:
            raise StartError(f"model: {error}") from None
        self._policy = (checkpoint, renderer.eos_ids)
        # Actors are placed in threads: Ray waits for its control service meanwhile, and whoever notices that
        # it is gone could not say so.
        # The learner first: where engines spread over the nodes before it, its ranks might not find one.
        ranks = await in_daemon(lambda: self._place_learner(checkpoint))
        await in_daemon(self._place_engines)
        await self._probe(checkpoint, seconds)
        hosts = await in_daemon(self._place_hosts)
        await in_daemon(self._place_models)
        # Controllers look engines and hosts up by name, so those have to be known first.
        await asyncio.gather(
            *(self._ready(h.ping.remote(), name, seconds) for name, h in hosts.items())
        )
        controllers = await in_daemon(lambda: self._place_controllers(checkpoint, list(hosts)))
        await asyncio.gather(
            *(
                self._ready(engine.start.remote(), name, config.engine.start_seconds)
                for name, engine in self._engines.items()
            ),
            *(
                self._ready(
                    self._models[m.name].start.remote(),
                    f"{MODEL}{m.name}",
                    seconds + m.serve.start_seconds,
                )
                for m in config.models
            ),
            self._ready_learner(ranks, seconds),
            *(self._ready(c.ready.remote(), name, seconds) for name, c in controllers.items()),
        )
        self._note_processes()
        learner = LearnerRanks(list(ranks.values())) if len(ranks) > 1 else ranks["learner"]
        models = {f"{MODEL}{name}": model for name, model in self._models.items()}
        where = await self._where({**ranks, **self._engines, **hosts, **controllers, **models})
        home = where[next(iter(ranks))]
        await self._place_stores(home, {where[name] for name in self._engines})
        self.actors = Actors(
            learner,
            self._engines,
            hosts,
            controllers,
            ranks=ranks,
            node_of=where,
            addresses=await in_daemon(alive_nodes),
            home=home,
            stores=self._stores,
            models=self._models,
        )
        return self.actors

    async def _probe(self, checkpoint: str, seconds: float) -> None:
        """Check that the other nodes can do their part; engines start meanwhile."""
        folders = {"runs_dir": str(self.folder)}
        if os.path.isdir(checkpoint):
            folders["model.path"] = os.path.abspath(checkpoint)
        if said := await probe(self.config.all_envs, folders, seconds):
            raise StartError(said[0])

    async def _where(self, actors: Mapping[str, Handle[object]]) -> dict[str, str]:
        seconds = self.config.timeouts.start_seconds
        try:
            return await node_of(actors, seconds)
        except TimeoutError:
            raise StartError(f"an actor did not tell its node within {seconds:g} s") from None
        except RayError as error:
            raise StartError(f"an actor ended while others started: {first_line(error)}") from None

    async def _place_stores(self, home: str, nodes: set[str]) -> None:
        """Start a store on each node that has none; a run on this node alone makes the folder itself."""
        async with self._placing:
            if not self._stores and {home, *nodes} == {own_node()}:
                claim(node_folder(self.weights, own_node()))
                return
            stores = {
                node: self._place(
                    NodeStore,
                    f"store-{next(self._store_numbers)}",
                    (str(node_folder(self.weights, node)),),
                    max_concurrency=8,
                    scheduling_strategy=on_node(node),
                )
                for node in {home, *nodes} - self._stores.keys()
            }
            try:
                await self._where(stores)
            except StartError:
                for store in stores.values():
                    end_actor(store, restart=False)
                raise
            self._stores |= stores

    async def add_engine(self, name: str) -> str:
        """Start one more engine on whichever node has room, or will have: without a deadline.

        Returns its node's address; it has no part in the run yet. Raises StartError.
        """
        assert self.actors is not None, "the cluster has to be started"
        # A handle that nobody holds would end the engine, and leave what it has started to itself.
        engine = self._starting[name] = self._place_engine(name)
        try:
            await self._ready(engine.start.remote(), name, None)
            node = (await self._where({name: engine}))[name]
            await self._place_stores(self.actors.home, {node})
        except StartError:
            end_actor(self._starting.pop(name), restart=False)
            raise
        self.actors.engines[name] = self._starting.pop(name)
        self.actors.node_of[name] = node
        self._note_processes()
        self.actors.addresses |= await asyncio.to_thread(alive_nodes)
        return self.actors.addresses.get(node, node)

    def _note_processes(self) -> None:
        """Note what this process has started, for its end, or for the next run's start."""
        self._processes += psutil.Process().children(recursive=True)
        if self.session is not None:
            note_shared_memory(self.session, shared_memory(self._processes))

    def _place_engines(self) -> None:
        for name in (f"engine-{index}" for index in range(self.config.engine.count)):
            self._engines[name] = self._place_engine(name)

    def _place_engine(self, name: str) -> Handle[EngineActor]:
        config, (checkpoint, eos_ids) = self.config, self._policy
        # Requests move where engines serve different versions.
        caches = str(self.weights) if config.rules.live > 1 else ""
        return self._place(
            EngineActor,
            name,
            (name, checkpoint, config, eos_ids, self._log(name), caches),
            threads=config.engine.threads,
            num_cpus=config.engine.cpus,
            num_gpus=config.engine.gpus,
            scheduling_strategy="SPREAD",
        )

    def _place_learner(self, checkpoint: str) -> dict[str, Handle[LearnerActor]]:
        """Start the learner's ranks; returns them by name, rank 0 first."""
        config = self.config.learner
        names = [f"learner-{rank}" for rank in range(config.ranks)]
        return {
            name: self._place(
                LearnerActor,
                name,
                (checkpoint, self.config, self._log(name), str(self.folder), rank),
                threads=config.threads or max(1, usable_cpus() // config.ranks),
                num_cpus=config.cpus,
                num_gpus=config.gpus,
                max_concurrency=1,
                beside={"publish": 1, "heartbeat": 1},
                variables=allocator.VARIABLES,
            )
            for rank, name in enumerate(names if config.ranks > 1 else ["learner"])
        }

    def _place_hosts(self) -> dict[str, Handle[EnvHost]]:
        names = [f"host-{index}" for index in range(self.config.rollout.hosts)]
        # Over as many nodes as there are: an environment's work wants CPUs, whichever.
        nodes = itertools.cycle(sorted(alive_nodes(), key=lambda node: node != own_node()))
        return {
            name: self._place(
                EnvHost,
                name,
                (self.config.all_envs, self._log(name)),
                max_restarts=-1,
                scheduling_strategy=on_node(next(nodes), or_elsewhere=True),
            )
            for name in names
        }

    def _place_models(self) -> None:
        for table in self.config.models:
            name = f"{MODEL}{table.name}"
            self._models[table.name] = self._place(
                ModelActor,
                name,
                (table, key_of(table.key_env), self._log(name)),
                num_cpus=table.serve.cpus,
                num_gpus=table.serve.gpus,
                max_restarts=-1,
            )

    def _place_controllers(
        self, checkpoint: str, hosts: list[str]
    ) -> dict[str, Handle[ControllerActor]]:
        names = [f"controller-{index}" for index in range(self.config.rollout.controllers)]
        rest = (self.config, checkpoint, list(self._engines), hosts, self.id, str(self.folder))
        return {
            name: self._place(ControllerActor, name, (name, *rest), max_restarts=-1)
            for name in names
        }

    def _place(
        self,
        kind: type[T],
        name: str,
        arguments: tuple[object, ...],
        *,
        threads: int = 1,
        beside: Mapping[str, int] | None = None,
        variables: Mapping[str, str] | None = None,
        **options: object,
    ) -> Handle[T]:
        """Start an actor. The CPUs it asks for do not decide how many threads it gets.

        beside: groups of methods that run beside the others, and how many calls of each at once.
        variables: further ones of its environment.
        """
        options = {"num_cpus": 0, "memory": LEAST_MEMORY, "max_concurrency": MAX_CALLS, **options}
        # Threads that spin while they wait take the cores that the other processes need.
        own = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        environment = {"env_vars": own | dict(variables or {})}
        placed = ray.remote(concurrency_groups=dict(beside or {}))  # pyright: ignore[reportCallIssue]
        remote = cast(Callable[[type[T]], ActorClass[T]], placed)(kind).options(
            name=name, namespace=self.id, runtime_env=environment, **options
        )
        return cast(type[T], remote.remote(*arguments))

    def _log(self, name: str) -> str:
        return str(self.folder / "logs" / f"{name}.log")

    async def _ready_learner(self, ranks: dict[str, Handle[LearnerActor]], seconds: float) -> None:
        """Load the policy; several ranks meet at the first one."""
        first, *others = ranks
        meeting = ""
        if others:
            meeting = await self._ready(ranks[first].meeting.remote(), first, seconds)
        await asyncio.gather(
            *(self._ready(rank.ready.remote(meeting), n, seconds) for n, rank in ranks.items())
        )

    async def _ready(self, call: Awaitable[T], name: str, seconds: float | None) -> T:
        """Await an actor's first call and return its answer. seconds: None: however long it takes. Raises
        StartError."""
        try:
            return await within(call, seconds)
        except TimeoutError:
            reason = (
                f"not ready within {seconds:g} s; a busy machine may need more {_limit_of(name)}"
            )
        except Exception as error:
            reason = root_cause(Path(self._log(name))) or first_line(error)
        raise StartError(f"{name} could not start: {reason} (log: {self._log(name)})") from None

    def stop(self) -> None:
        """End the engines in order, then Ray, then whatever of ours is still there."""
        own = {p.pid: p for p in (*self._processes, *psutil.Process().children(recursive=True))}
        if ray.is_initialized() and not self.control_lost:
            endings = [engine.shutdown.remote() for engine in self._engines.values()]
            ray.wait(endings, num_returns=len(endings), timeout=10) if endings else None
            endings = [model.close.remote() for model in self._models.values()]
            ray.wait(endings, num_returns=len(endings), timeout=15) if endings else None
            endings = [store.clear.remote() for store in self._stores.values()]
            ray.wait(endings, num_returns=len(endings), timeout=10) if endings else None
            # An engine that was about to start has gone on with it.
            own |= {p.pid: p for p in psutil.Process().children(recursive=True)}
            ray.shutdown()
        shared = shared_memory(own.values())
        end_processes(list(own.values()))
        if self.session is not None:
            remove_shared_memory(shared)
            close_session(self.session)
        shutil.rmtree(self.weights, ignore_errors=True)

    def _check_resources(self) -> None:
        there = ray.cluster_resources()
        for resource in ("CPU", "GPU"):
            asked = self.config.asked(resource)
            if asked > there.get(resource, 0):
                raise StartError(
                    f"engine.count: engines and learner ask for {asked:g} {resource}s, "
                    f"the cluster has {there.get(resource, 0):g}"
                )


def root_cause(log: Path) -> str:
    """The first error that a log ends its traceback with: the one that caused the later ones."""
    if not log.is_file():
        return ""
    for line in log.read_text(errors="replace", encoding="utf-8").splitlines():
        found = re.search(r"(?:^|\s)((?:\w+\.)*\w*(?:Error|Exception): .+)$", line)
        if found:
            return found.group(1)[:300]
    return ""


def _limit_of(name: str) -> str:
    """The setting by which an actor's start is limited."""
    if name.startswith(MODEL):
        return "serve.start_seconds"
    return "engine.start_seconds" if name.startswith("engine-") else "timeouts.start_seconds"
