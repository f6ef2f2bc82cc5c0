"""Task folders, in the form that terminal benchmarks use: an instruction, an environment, tests.

    TASK/instruction.md (or task.yaml with `instruction`)   what the agent is asked
    TASK/environment/   files that lie in its workspace (or, without one, in TASK/workspace/)
    TASK/tests/test.sh (or TASK/run-tests.sh)   runs afterwards, in the workspace, and says what it is worth

Flows in: a folder of such folders. Flows out: plain data of a task. A Dockerfile in `environment` is not
built: a folder that has one is refused, unless its settings say that it may be left out.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

TESTS = ("tests/test.sh", "run-tests.sh", "tests/run-tests.sh")


@dataclass(frozen=True)
class TaskFolder:
    """One task: its folder, what is asked, and the script that judges."""

    path: Path
    instruction: str
    test: Path

    @property
    def files(self) -> Iterator[tuple[str, bytes]]:
        """The files of its workspace, by their names there."""
        for name in ("environment", "workspace"):
            root = self.path / name
            for path in sorted(root.rglob("*")) if root.is_dir() else ():
                if path.is_file() and path.name != "Dockerfile":
                    yield path.relative_to(root).as_posix(), path.read_bytes()


def read_tasks(root: Path, *, without_docker: bool) -> list[TaskFolder]:
    """All tasks of a folder, by name. Raises ValueError with one sentence."""
    found = [one for path in sorted(root.iterdir()) if (one := _task(path, without_docker))]
    if not found:
        raise ValueError(
            f"{root} has no task: a folder with instruction.md and tests/test.sh is one"
        )
    return found


def _task(path: Path, without_docker: bool) -> TaskFolder | None:
    instruction = _instruction(path)
    if not path.is_dir() or instruction is None:
        return None
    test = next((path / name for name in TESTS if (path / name).is_file()), None)
    if test is None:
        raise ValueError(
            f"task {path} has no {TESTS[0]}: nothing would say what an agent did is worth"
        )
    if (path / "environment" / "Dockerfile").exists() and not without_docker:
        raise ValueError(
            f"task {path} has a Dockerfile, and no image is built here: dockerfile = "
            '"ignore" takes the other files of its environment alone'
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
