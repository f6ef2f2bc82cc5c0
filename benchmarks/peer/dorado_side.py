"""Dorado's side of the comparison: one job played by `dorado train`, and where its CPU seconds went."""

import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import tomli_w

from . import arithmetic, work
from .cpu_seconds import CpuSeconds
from .work import Job, Outcome

BENCHMARKS = Path(__file__).parent.parent
# An opening is 20 to 60 tokens here, tools included.
OPENING_TOKENS = 80
_ENVIRONMENTS = {"single": "Digits", "instant": "Chain", "slow": "SlowChain"}


class SideFailed(Exception):
    """A side did not end well; the message is one sentence and the end of what it printed."""


class Cost(TypedDict):
    """CPU seconds of a run's steps by part, and the wall seconds that they took."""

    parts: dict[str, float]
    wall: float


def environment(kind: str) -> str:
    """The id of a kind's environment."""
    return f"peer.arithmetic:{_ENVIRONMENTS[kind]}"


def run(command: Sequence[str], log: Path, *, watch: bool = False) -> CpuSeconds | None:
    """Run a command to its end, with `benchmarks` importable. Raises SideFailed."""
    variables = {**os.environ, "PYTHONPATH": str(BENCHMARKS), "TOKENIZERS_PARALLELISM": "false"}
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=variables, cwd=log.parent
        )
        seconds = CpuSeconds(process.pid) if watch else None
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            if seconds is not None:
                seconds.stop()
    if code:
        end = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise SideFailed(f"{' '.join(command[:4])} … ended with exit code {code}:\n{end}")
    return seconds


def policy(kind: str, cache: Path, folder: Path) -> Path:
    """Return the policy that both sides start from; the first call makes it, and it is kept in the cache.

    For one turn it has random weights, for several turns a cold start, so that it calls tools.
    """
    name = "digits" if kind == "single" else "chain"
    values: dict[str, object] = {
        "name": "policy",
        "runs_dir": str(folder),
        "model": {"init": {"family": "qwen3_moe", "preset": "tiny"}},
        "env": [{"id": "peer.arithmetic:Chain"}],
    }
    if kind != "single":
        optim = {"lr": 2e-3, "warmup_steps": 20, "decay_steps": 260}
        values["sft"] = {
            "demonstrations": 600,
            "steps": 240,
            "batch_size": 32,
            "slip": 0.25,
            "optim": optim,
        }
    sources = "".join(Path(str(m.__file__)).read_text(encoding="utf-8") for m in (arithmetic, work))
    key = hashlib.sha256((json.dumps(values["model"]) + str(values.get("sft")) + sources).encode())
    made = cache / f"policy-{name}-{key.hexdigest()[:12]}"
    if made.exists():
        return made
    what = "random weights" if kind == "single" else "a cold start: minutes"
    print(f"making the first policy of {kind} ({what}, once)", file=sys.stderr)
    cache.mkdir(parents=True, exist_ok=True)
    partial = folder / made.name
    config = folder / f"{made.name}.toml"
    config.write_text(tomli_w.dumps(values), encoding="utf-8")
    command = [sys.executable, "-m", "rl", "sft", str(config), "--out", str(partial)]
    if kind == "single":
        command = [sys.executable, "-m", "rl", "model", "init", str(partial)]
        command += ["--family", "qwen3_moe", "--preset", "tiny"]
    run(command, folder / "policy.log")
    shutil.move(partial, made)
    return made


def settings(job: Job, name: str, runs_dir: Path) -> dict[str, object]:
    """Dorado's settings of a job: what is equal on both sides, and what suits so small a machine.

    Its batches are a version old, and GRPO's clip leaves out what the update in between has moved: CISPO has
    the same gradient on policy, and no clip (docs/objectives.md).
    """
    most = OPENING_TOKENS + job["completion_tokens"]
    return {
        "name": name,
        "runs_dir": str(runs_dir),
        "seed": job["seed"],
        "steps": job["updates"],
        "mode": "in_flight",
        "model": {"path": job["policy"]},
        "env": [
            {
                "id": environment(job["kind"]),
                "name": "work",
                "judges": ["peer.arithmetic:digits"] if job["kind"] == "single" else [],
            }
        ],
        "batch": {
            "groups": job["groups"],
            "group_size": job["group_size"],
            "filter_zero_variance": False,
        },
        "episode": {
            "max_turns": job["turns"],
            "max_completion_tokens": job["completion_tokens"],
            "max_tokens": most,
        },
        "engine": {"dtype": job["dtype"], "max_model_len": most, "count": 1, "compile": True},
        "learner": {
            "dtype": job["dtype"],
            "micro_batch_tokens": max(4096, most),
            "threads": 1,
            "compile": True,
            "loss": {"kind": "cispo"},
            "optim": {"lr": job["lr"]},
        },
        "eval": {"tasks": len(job["heldout"]), "before": False},
        "wandb": {"enabled": False},
    }


def play(job: Job, name: str, folder: Path, overrides: Sequence[str]) -> tuple[Outcome, Cost]:
    """Train for the job's updates, then play its held-out tasks once each. Raises SideFailed."""
    config = folder / f"{name}.toml"
    config.write_text(tomli_w.dumps(settings(job, name, folder)), encoding="utf-8")
    command = [sys.executable, "-m", "rl", "train", str(config), *overrides]
    seconds = run(command, folder / f"{name}.log", watch=True)
    assert seconds is not None
    return read_run(folder / name, job, seconds)


def read_run(run_folder: Path, job: Job, seconds: CpuSeconds) -> tuple[Outcome, Cost]:
    """Read off a run folder, and the samples of its processes, how its steps went."""
    events = _lines(run_folder / "events.jsonl")
    learner = [e for e in events if e["lane"] == "learner"]
    start, end = min(e["start"] for e in learner), max(e["end"] for e in learner)
    steps = [m for m in _lines(run_folder / "metrics.jsonl") if "learner/policy_tokens" in m]
    with sqlite3.connect(run_folder / "trajectories.sqlite") as index:
        ask = "select avg(turns), avg(reward) from trajectories where split = ?"
        turns = index.execute(ask, ("train",)).fetchone()[0]
        reward = index.execute(ask, ("heldout-after",)).fetchone()[1]
    parts = seconds.between(start, end)
    spans = [(e["start"], e["end"]) for e in learner if e["name"].startswith("step ")]
    parts |= _learner_parts(parts.pop("learner", 0.0), seconds.within("learner", spans), steps)
    outcome: Outcome = {
        "seconds": end - start,
        "trajectories": len(steps) * job["groups"] * job["group_size"],
        "policy_tokens": sum(m["learner/policy_tokens"] for m in steps),
        "turns": turns,
        "reward_after": reward,
        "cpu_seconds": sum(parts.values()),
    }
    return outcome, {"parts": parts, "wall": end - start}


def _learner_parts(
    total: float, stepping: float, steps: list[dict[str, float]]
) -> dict[str, float]:
    """Split the learner's CPU seconds, some of them in its steps, by what its metrics of wall seconds say."""
    wall = sum(m["time/step_seconds"] for m in steps)
    behaviour = stepping * sum(m["time/behaviour_seconds"] for m in steps) / wall
    return {
        "learner: behaviour": behaviour,
        "learner: rest of the step": stepping - behaviour,
        "learner: between steps": total - stepping,
    }


def _lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
