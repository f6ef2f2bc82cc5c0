"""The request of a run to Ray's job server: a command, the project that it runs in, a name to find it by.

In: a configuration file and its overrides. Out: a `Request`, for `python -m rl train` in a copy of the
project. Code travels; folders (`runs_dir`, `model.path`) do not: as absolute paths they are the cluster's.
Refused with one sentence, before anything is sent: a run that cannot work, a project too large to send, an
environment's file outside it, secrets in it, CPUs or GPUs that the cluster does not have. Left out on
purpose: installing packages, which the cluster's nodes have to have, and variables not asked for by name.
"""

import getpass
import math
import os
import re
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.registry import split_file
from rl.config import RunConfig, load_config
from rl.config_file import ConfigError
from rl.jobs.shipped import check_secrets, shipped
from rl.loop.resume import find_resume, split_step
from rl.preflight.check import check_run

# Seconds that a stopped run has after `timeouts.stop_seconds`, to end its actors and write its summary.
END_SECONDS = 60
# In which a job carries how long it has in all; without it Ray gives `RAYS_GRACE_SECONDS`.
GRACE_VARIABLE, RAYS_GRACE_SECONDS = "RAY_JOB_STOP_WAIT_TIME_S", 3
SHIPPED_MIB = 100
# Names of files and folders, wherever they lie; what .gitignore names stays behind too.
EXCLUDES = (
    ".git", ".venv", "venv", "__pycache__", "*.pyc", "*.egg-info", ".pytest_cache", ".ruff_cache",
    ".mypy_cache", ".hypothesis", "node_modules", "wandb",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One request to the job server; the id is such as quickstart-3f9a1c. files: those that travel."""

    id: str
    entrypoint: str
    runtime_env: dict[str, object]
    metadata: dict[str, str]
    files: tuple[Path, ...] = ()

    @property
    def shown(self) -> str:
        """The request in lines for a reader; of variables the names alone."""
        project = Path(str(self.runtime_env["working_dir"]))
        variables = self.runtime_env["env_vars"]
        assert isinstance(variables, dict)
        sizes = {file.relative_to(project): file.stat().st_size for file in self.files}
        files = [f"{size:>12,} {name}" for name, size in sizes.items()]
        total = f"{len(files)} files, {sum(sizes.values()) / 2**20:.1f} MiB, of {project}:"
        return "\n".join(
            [f"command: {self.entrypoint}", f"variables: {', '.join(variables)}", total, *files]
        )


def prepare(
    file: Path,
    overrides: Sequence[str],
    resume: str | None = None,
    variables: Sequence[str] = (),
) -> tuple[RunConfig, Request]:
    """Check the run, and say what is to be submitted for it. Raises ConfigError.

    resume: the run to go on with, as for `train`. variables: of the job, KEY=VALUE, or KEY for one set here.
    """
    given = env_vars(variables)
    cluster = [*overrides, "--cluster.address", "auto"]
    config = load_config(file, cluster)
    going_on: list[str] = []
    if resume is not None:
        config, resume = _run_to_resume(resume, config)
        going_on = ["--resume", resume]
    # An absolute folder is the cluster's, and need not be here.
    here = {"runs_dir": "."} if Path(config.runs_dir).is_absolute() else {}
    check_run(config.model_copy(update=here))
    file = Path(os.path.abspath(file))
    project = project_of(file)
    paths = ["--runs_dir", os.path.abspath(config.runs_dir)]
    if config.model.path is not None:
        paths += ["--model.path", os.path.abspath(config.model.path)]
    paths += _env_files(config, project)
    excludes = [*EXCLUDES, *_runs_in(project, Path(config.runs_dir))]
    files = check_size(project, excludes)
    check_secrets(project, files)
    command = ["python", "-m", "rl", "train", str(file.relative_to(project)), *going_on]
    grace = math.ceil(config.timeouts.stop_seconds) + END_SECONDS
    return config, Request(
        id=f"{config.name}-{uuid.uuid4().hex[:6]}",
        entrypoint=shlex.join([*command, *cluster, *paths]),
        runtime_env={
            "working_dir": str(project),
            "excludes": excludes,
            "env_vars": {**given, GRACE_VARIABLE: str(grace)},
        },
        metadata={
            "config": config.name,
            "folder": os.path.abspath(config.folder),
            "user": _user(),
        },
        files=tuple(files),
    )


def env_vars(given: Sequence[str]) -> dict[str, str]:
    """Variables for the job, of KEY=VALUE, or KEY for the one that is set here. Raises ConfigError."""
    found: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        # Only the name is said: the rest may be a secret.
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", key):
            shown = repr(key) if equals else f"a text of {len(text)} characters"
            raise ConfigError(f"--env: {shown} is no name of a variable; write KEY or KEY=VALUE")
        if not equals and key not in os.environ:
            raise ConfigError(
                f"--env {key}: it is not set here; set it, or write --env {key}=VALUE"
            )
        if key == GRACE_VARIABLE:
            raise ConfigError(f"--env {key}: it follows from timeouts.stop_seconds; set that")
        found[key] = value if equals else os.environ[key]
        if "\0" in found[key]:
            raise ConfigError(f"--env {key}: its value holds a NUL, which no variable can")
    return found


def _run_to_resume(what: str, config: RunConfig) -> tuple[RunConfig, str]:
    """The settings with the name of the run to go on with, and where the job finds it. Raises ConfigError.

    A run that is here is looked into. An absolute folder may be the cluster's alone; the job then says
    whether it can go on.
    """
    if Path(what).is_absolute() and not Path(what).exists():
        run, step = split_step(Path(what))
        config = config.model_copy(update={"name": run.name, "runs_dir": str(run.parent)})
        return config, str(run if step is None else run / f"step_{step}")
    config, resume = find_resume(what, config)
    run, step = os.path.abspath(resume.run), split_step(Path(what))[1]
    return config, run if step is None else f"{run}/step_{step}"


def _env_files(config: RunConfig, project: Path) -> list[str]:
    """Overrides that name environments' files as the job sees them: from the project's folder, its own."""
    overrides: list[str] = []
    keyed = [(f"env.{index}", table) for index, table in enumerate(config.env)]
    keyed += [(f"eval.env.{index}", table) for index, table in enumerate(config.eval.env)]
    for key, table in keyed:
        source = split_file(table.id)
        if source is None:
            continue
        if not _inside(source[0], project):
            raise ConfigError(
                f"env {table.label!r}: its file {source[0]} lies outside {project}, and only what lies "
                "inside is sent to the cluster"
            )
        file = os.path.relpath(os.path.abspath(source[0]), project)
        overrides += [f"--{key}.id", f"{file}:{source[1]}"]
    return overrides


def project_of(file: Path) -> Path:
    """The folder that is sent: the nearest one with a pyproject.toml or a .git, else the file's own."""
    for folder in file.parents:
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder
    return file.parent


def check_size(project: Path, excludes: Sequence[str]) -> list[Path]:
    """The files that would be sent, sorted. Raises ConfigError where they are too large."""
    files, sizes = sorted(shipped(project, excludes)), dict[str, int]()
    for file in files:
        first = file.relative_to(project).parts[0]
        sizes[first] = sizes.get(first, 0) + file.stat().st_size
    total = sum(sizes.values())
    if total > SHIPPED_MIB * 2**20:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"{project}: {total / 2**20:,.0f} MiB of files would be sent to the cluster, of which {largest} "
            f"has {sizes[largest] / 2**20:,.0f}; the limit is {SHIPPED_MIB} MiB: name it in .gitignore, or "
            "move it to a folder that the cluster sees"
        )
    return files


def check_resources(config: RunConfig, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises ConfigError where actors of the run fit no node, or all of them not the cluster."""
    for resource in ("CPU", "GPU"):
        actors, asked = config.actors_asking(resource), config.asked(resource)
        there = [node.get(resource, 0.0) for node in nodes]
        if asked > sum(there):
            parts = " and ".join(f"{n} of {each:g} ({name})" for name, (n, each) in actors.items())
            on = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
            raise ConfigError(
                f"engine.count: the run asks for {asked:g} {resource}s, {parts}; the cluster has "
                f"{sum(there):g} on {on}"
            )
        for name, (_, each) in actors.items():
            if each > max(there, default=0.0):
                key = f"{name}.{resource.lower()}s"
                raise ConfigError(
                    f"{key}: one {name} asks for {each:g} {resource}s, the largest node of the cluster has "
                    f"{max(there, default=0.0):g}"
                )


def _runs_in(project: Path, runs: Path) -> list[str]:
    runs = Path(os.path.abspath(runs))
    found = {"/runs"}
    if _inside(runs, project) and runs != project:
        found.add(f"/{runs.relative_to(project)}")
    return sorted(found)


def _inside(path: Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(folder)


def _user() -> str:
    try:
        return getpass.getuser()
    except (
        KeyError,
        OSError,
    ):  # no variable names one, and the system knows no name for the number
        return str(os.getuid())
