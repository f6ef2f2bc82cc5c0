"""The process of an engine's core, begun before vLLM is known here: both processes import vLLM at once.

In: nothing but the environment that `rollout.vllm_arguments.prepare_process` has set. Out: a process that has
vLLM's modules loaded and becomes the core of the engine that is made in `begun_early`.

vLLM begins its core once it has its configuration: one import of vLLM (many CPU seconds) waits for the other.
Where the environment has changed in what only a new process reads, vLLM begins its own core as ever.
"""

import gc
import importlib
import importlib.util
import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

# What a core of an engine on a CPU imports sooner or later.
_MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.executor.uniproc_executor",
    "rollout.vllm_rolling_worker",
)
# Read by the dynamic linker alone, and so when a process begins.
_PRELOAD = "LD_PRELOAD"
_END_SECONDS = 5.0


class EarlyCore:
    """A process that imports vLLM, then waits to be told which engine's core it is; ends with its parent."""

    def __init__(self) -> None:
        os.environ[_PRELOAD] = _with_openmp(os.environ.get(_PRELOAD, ""))
        self.preload = os.environ[_PRELOAD]
        spawn = multiprocessing.get_context("spawn")
        self.orders, theirs = spawn.Pipe()
        # By this name the plugin knows it for a core (`rollout.vllm_plugin`).
        self.process: BaseProcess = spawn.Process(target=_become, args=(theirs,), name="EngineCore")
        self.process.start()
        theirs.close()
        self.taken = False

    def start(self, arguments: dict[str, Any]) -> None:
        """Let it be the core with these arguments, in the environment of now. Raises OSError where it has
        died."""
        self.taken = True
        self.orders.send((dict(os.environ), arguments))
        self.orders.close()

    def end(self) -> None:
        """End it, if no engine has taken it."""
        if self.taken:
            return
        self.orders.close()
        self.process.kill()
        self.process.join(_END_SECONDS)


@contextmanager
def begun_early() -> Iterator[None]:
    """Begin a core's process now; the first core that vLLM begins in here is this one."""
    early = EarlyCore()
    try:
        _import("vllm.v1.engine.async_llm")
        utils: Any = importlib.import_module("vllm.v1.engine.utils")
        own = utils.get_mp_context
        utils.get_mp_context = lambda: _Context(early, own())
        try:
            yield
        finally:
            utils.get_mp_context = own
    finally:
        early.end()


class _Context:
    """Stands for a context of multiprocessing where vLLM makes its core's process."""

    def __init__(self, early: EarlyCore, own: Any) -> None:
        self.early = early
        self.own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def Process(self, **of: Any) -> BaseProcess:
        early = self.early
        arguments = of["kwargs"]
        fits = early.preload == os.environ.get(_PRELOAD, "") and early.process.is_alive()
        # A queue of multiprocessing's is handed to a process as it begins, or not at all.
        if early.taken or not fits or arguments.get("tensor_queue") is not None:
            return self.own.Process(**of)
        early.process.start = lambda: early.start(arguments)
        return early.process


def _become(orders: Connection) -> None:
    _import(*_MODULES)
    # None of what stands now is ever garbage.
    gc.freeze()
    from vllm.utils.system_utils import set_process_title

    core: Any = importlib.import_module("vllm.v1.engine.core")
    # The first title finds its room beside the environment, as long as that is as the process began.
    set_process_title("EngineCore")
    # Both vLLM and Python collect garbage at the end: seconds for objects that end with the process anyway.
    core.cleanup_dist_env_and_memory = _leave_groups
    try:
        environment, arguments = orders.recv()
    except EOFError:
        os._exit(0)  # an engine that could not be made wants no core
    orders.close()
    os.environ.update(environment)
    try:
        core.EngineCoreProc.run_engine_core(**arguments)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise
    # As multiprocessing does at the end: without it the parent's tracker tells of leaked semaphores.
    util._run_finalizers(0)  # pyright: ignore
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _import(*modules: str) -> None:
    """Import these without garbage collection, a seventh of the time for nothing that is garbage."""
    collects = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        if collects:
            gc.enable()


def _leave_groups() -> None:
    from vllm.distributed import destroy_distributed_environment, destroy_model_parallel

    destroy_model_parallel()
    destroy_distributed_environment()


def _with_openmp(preload: str) -> str:
    """With torch's OpenMP added as vLLM adds it (`vllm.platforms.cpu`), so that both come to the same."""
    if any(library in preload for library in ("libomp", "libgomp", "libiomp")):
        return preload
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return preload
    torch = Path(found.submodule_search_locations[0])
    libraries = [
        *(torch.parent / "torch.libs").glob("libgomp*.so*"),
        *(torch / "lib").glob("libgomp*.so*"),
    ]
    return ":".join(filter(None, (preload, *map(str, libraries[:1]))))
