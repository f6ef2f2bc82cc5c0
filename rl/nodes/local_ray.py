"""Ray as Dorado starts it: an instance of this process's own on the loopback, or a cluster that is there."""

import os
import signal
import threading
from typing import Any

import ray

from rl.nodes.cpus import usable_cpus


def start_local_ray(*, object_store_mib: int) -> None:
    """An instance of our own, whatever else runs on this machine; `ray.shutdown` ends it.

    Raises what `ray.init` raises: ConnectionError, RayError, RuntimeError, ValueError.
    """
    _init(
        address="local",
        num_cpus=usable_cpus(),
        include_dashboard=False,
        object_store_memory=object_store_mib * 2**20,
        _node_ip_address="127.0.0.1",
        _temp_dir=f"/tmp/ray-{os.getuid()}",
    )


def join_ray(address: str) -> None:
    """The cluster at `address`. Raises as `start_local_ray` does."""
    _init(address=address)


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
