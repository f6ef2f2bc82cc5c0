"""Task folders, in the form that terminal benchmarks use: an instruction, an environment, tests.

    TASK/instruction.md (or task.yaml with `instruction`)   what the agent is asked
    TASK/environment/   files that lie in its workspace (or, without one, in TASK/workspace/)
    TASK/tests/test.sh (or TASK/run-tests.sh)   runs afterwards, in the workspace, and says what it is worth

Flows in: a folder of such folders. Flows out: what is asked, the archives of its files. A Dockerfile in
`environment` makes of that folder what an image is built from.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from envs.agents.archive import archive_folder, archive_of

DOCKERFILE = "environment/Dockerfile"
TESTS = ("tests/test.sh", "run-tests.sh", "tests/run-tests.sh")


@dataclass(frozen=True)
class TaskFolder:
    """One task: its folder, what is asked, and the script that judges."""

    path: Path
    instruction: str
    test: Path

    @property
    def files(self) -> bytes:
        """The archive of its workspace's files."""
        root = next(
            (r for r in (self.path / "environment", self.path / "workspace") if r.is_dir()), None
        )
        if root is None:
            return archive_of({})
        return archive_folder(root, lambda path: path != self.path / DOCKERFILE)

    @property
    def context(self) -> bytes:
        """The archive of a Dockerfile's folder; empty where there is no Dockerfile."""
        found = self.path / DOCKERFILE
        return archive_folder(found.parent) if found.is_file() else b""


def read_tasks(root: Path) -> list[TaskFolder]:
    """All tasks of a folder, by name. Raises ValueError with one sentence."""
    found = [one for path in sorted(root.iterdir()) if (one := _task(path))]
    if not found:
        raise ValueError(
            f"{root} has no task: a folder with instruction.md and tests/test.sh is one"
        )
    return found


def read_task(path: Path) -> TaskFolder:
    """One task. Raises ValueError where the folder has none any more."""
    found = _task(path)
    if found is None:
        raise ValueError(f"task {path} has no instruction any more")
    return found


def _task(path: Path) -> TaskFolder | None:
    instruction = _instruction(path)
    if not path.is_dir() or instruction is None:
        return None
    test = next((path / name for name in TESTS if (path / name).is_file()), None)
    if test is None:
        raise ValueError(
            f"task {path} has no {TESTS[0]}: nothing would say what an agent did is worth"
        )
    return TaskFolder(path, instruction, test)


def _instruction(path: Path) -> str | None:
    """The instruction of a task; None where it has none. Raises ValueError."""
    for name in ("instruction.md", "instruction.txt"):
        if (path / name).is_file():
            return (path / name).read_text(encoding="utf-8").strip()
    if (path / "task.toml").is_file():
        told = tomllib.loads((path / "task.toml").read_text(encoding="utf-8")).get("instruction")
        return told.strip() if isinstance(told, str) else None
    if (path / "task.yaml").is_file():
        import yaml  # comes with many packages; only the older form needs it

        told = yaml.safe_load((path / "task.yaml").read_text(encoding="utf-8"))
        known = cast(dict[str, object], told) if isinstance(told, dict) else {}
        text = known.get("instruction")
        return text.strip() if isinstance(text, str) else None
    return None
