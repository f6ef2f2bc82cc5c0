"""Ray as Dorado starts it: an instance of this process's own on the loopback, or a cluster that is there."""

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import services, worker

from envs.text import encodable
from rl.nodes.cpus import usable_cpus
from rl.nodes.session_folder import guard_token, user_folder


def start_local_ray(*, object_store_mib: int, folder: Path | None = None) -> None:
    """An instance of our own, whatever else runs on this machine; `ray.shutdown` ends it.

    Raises what `ray.init` raises: ConnectionError, RayError, RuntimeError, ValueError.
    """
    # Ray takes 127.0.0.1 for a mistake, and puts an address in its place that other machines reach.
    resolve = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = _as_it_is
    try:
        _start(object_store_mib, folder or user_folder())
    finally:
        services.resolve_ip_for_localhost = resolve
        guard_token()


def _as_it_is(host: str) -> str:
    return host


def _start(object_store_mib: int, folder: Path) -> None:
    _init(
        address="local",
        num_cpus=usable_cpus(),
        include_dashboard=False,
        object_store_memory=object_store_mib * 2**20,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
    )


def join_ray(address: str) -> None:
    """The cluster at `address`. Raises as `start_local_ray` does."""
    _init(address=address)


def messages_to(log: Path) -> None:
    """Send what Ray says of its workers to a file: who needs to know of one that died hears it from us."""

    def write(data: dict[str, Any], ignore_prefix: bool) -> None:
        with suppress(OSError), log.open("a", encoding="utf-8") as file:
            file.writelines(f"{encodable(line)}\n" for line in data["lines"])

    worker.print_to_stdstream = write


def _init(**arguments: Any) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    # Ray puts a handler of its own there, which raises SystemExit.
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(configure_logging=True, **quiet, **arguments)
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)
