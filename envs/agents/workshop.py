"""`Workshop`: one episode's workspace, and programs at work in it: an agent, then what judges it.

Flows in: files, and commands. Flows out: how each program ended, what it wrote, and the files that it left.
Who has one is the environment `agent`; what it is made of is a provider's matter: this machine
(`LocalWorkshop`), a container (`ContainerWorkshop`), another machine (`RemoteWorkshop`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from pydantic import ConfigDict

from envs.agents.access import ModelAccess

# Folders of an episode beside the workspace, by their names inside.
LOGS, TESTS = "/logs", "/tests"


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit code (128 + the signal's number), and what it wrote on both streams."""

    code: int
    output: str


@dataclass(frozen=True)
class Verdict:
    """A verifier's end, and what it wrote to `$LOGS_DIR/verifier`: reward.txt, or reward.json; None: not."""

    ended: Ended
    number: str | None
    named: str | None


@dataclass(frozen=True)
class ContainerConfig:
    """A container's image and limits: `ContainerConfig("python:3.12-slim", memory="2g")`.

    image: what it is made of; "" where a Dockerfile says. workspace: where the agent works; "": the image's
    own working directory, or `/app`. memory: as Docker writes it; processor cores; processes. network:
    "gateway" leaves the way to the policy and nothing else (the image needs python3 for that); any other
    is a network of the container engine, such as "bridge" or "host".
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    image: str = ""
    workspace: str = ""
    memory: str = "4g"
    cores: float = 2.0
    processes: int = 512
    network: str = "gateway"

    def __post_init__(self) -> None:
        if self.cores <= 0 or self.processes <= 0:
            raise ValueError("container: cores and processes have to be above 0")
        if self.workspace and not self.workspace.startswith("/"):
            raise ValueError(f"container.workspace {self.workspace!r} has to begin with /")
        if not self.network:
            raise ValueError('container.network: "gateway", or a network of the container engine')


@dataclass(frozen=True)
class Plan:
    """One workshop to make: `Plan("docker", container=ContainerConfig("python:3.12-slim"))`.

    sandbox: "bubblewrap", "none", "docker", "podman", or the address of a server of workshops. readable:
    paths of the workshop's machine that programs may read. scripts: files of ours that they may, too.
    context: files of a Dockerfile's folder (a tar archive) where the image is to be built from them.
    """

    sandbox: str
    readable: tuple[str, ...] = ()
    scripts: tuple[Path, ...] = ()
    container: ContainerConfig = field(default_factory=ContainerConfig)
    context: bytes = b""


class Workshop(Protocol):
    """The workspace of one episode. `open`, use, and `remove` it."""

    @property
    def python(self) -> str:
        """The Python that programs may be run with, as they see it."""
        ...

    def at(self, script: Path) -> str:
        """One of the plan's scripts, as programs see it."""
        ...

    async def open(self) -> None:
        """Make it. Raises HostFault where its machine cannot, RuntimeError where an image cannot be built."""
        ...

    async def put(self, archive: bytes) -> None:
        """Unpack a tar archive in the workspace. Raises ValueError for a name that leaves it."""
        ...

    async def read(self, name: str, most: int = 1_000_000) -> str | None:
        """The text of a file of the workspace, at most so many bytes; None where there is none.

        A link is none: an agent may point one anywhere.
        """
        ...

    async def run(
        self,
        argv: Sequence[str],
        *,
        access: ModelAccess | None = None,
        variables: Mapping[str, str] | None = None,
        stdin: str = "",
        seconds: float | None = None,
    ) -> Ended:
        """Run a program in the workspace to its end, and end all that it has begun.

        access: the policy's, for an agent. Raises TimeoutError after `seconds`, OSError where it cannot
        begin, HostFault where its machine fails.
        """
        ...

    async def judge(self, script: Path, variables: Mapping[str, str]) -> Verdict:
        """Run a script of ours in the workspace, with the folder that it lies in at `$TEST_DIR`.

        Raises as `run` does.
        """
        ...

    async def remove(self) -> None:
        """End what still runs and remove the workspace."""
        ...
