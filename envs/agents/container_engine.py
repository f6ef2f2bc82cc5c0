"""Docker or Podman on this machine, by its command: what is asked of it beside the programs of an episode.

Flows in: a command line without the engine's own name. Flows out: what it wrote. A command that does not end
is given up after its seconds. Refuses an engine of another machine: workspaces need folders of this one.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from envs.agents.program import Process, begin, feed, kill
from envs.agents.workshop import ContainerConfig
from envs.session import HostFault
from envs.text import told

ENGINES = ("docker", "podman")
# Until the engine has answered; until an image is there, or built.
ANSWER_SECONDS, IMAGE_SECONDS = 60.0, 1800.0
# Bytes of a command's output that are read; a file that is asked for may have no end.
MOST_OUTPUT = 8_000_000
_INSTALL = {
    "docker": "Docker is not installed (https://docs.docker.com/engine/install)",
    "podman": "Podman is not installed (Debian, Ubuntu: apt-get install podman)",
}
_WORD = "dorado"
# One build of an image at a time; whoever gives it up does not end it for the others.
_builds: dict[str, asyncio.Task[str]] = {}


async def ask(
    engine: str, *arguments: str, stdin: bytes = b"", seconds: float = ANSWER_SECONDS
) -> tuple[int, bytes, str]:
    """Run one command of the engine. Returns its exit code, its output up to a limit, and the end of its
    complaint.

    Raises HostFault where it cannot be started or does not answer.
    """
    try:
        process = await begin((engine, *arguments), end=kill)
    except OSError as error:
        raise HostFault(f"{engine}: {told(error)}") from None
    try:
        async with asyncio.timeout(seconds):
            output, said, _ = await asyncio.gather(
                _read(process.stdout, process),
                _read(process.stderr, process),
                feed(process.stdin, stdin),
            )
            await process.wait()
    except TimeoutError:
        raise HostFault(f"{engine} {arguments[0]}: no answer within {seconds:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    code = process.returncode or 0
    return max(code, 0), output, said.decode(errors="replace").strip()[-2000:]


async def _read(pipe: asyncio.StreamReader | None, process: Process) -> bytes:
    """All that is written; whoever writes more than its most is ended."""
    assert pipe is not None, "it was asked for"
    found = bytearray()
    while part := await pipe.read(65536):
        found += part
        if len(found) > MOST_OUTPUT:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            break
    return bytes(found)


async def built(engine: str, context: bytes) -> str:
    """The image of a Dockerfile's folder (a tar archive), built where it is not there yet.

    Its name is made of the folder's content. Raises RuntimeError with the end of what the build said.
    """
    name = f"dorado-task:{hashlib.sha256(context).hexdigest()[:24]}"
    key = f"{engine} {name}"
    if key not in _builds or (_builds[key].done() and _failed(_builds[key])):
        _builds[key] = asyncio.create_task(_build(engine, name, context))
    return await asyncio.shield(_builds[key])


def _failed(build: asyncio.Task[str]) -> bool:
    return build.cancelled() or build.exception() is not None


async def _build(engine: str, name: str, context: bytes) -> str:
    code, _, _ = await ask(engine, "image", "inspect", name)
    if code == 0:
        return name
    code, output, said = await ask(
        engine, "build", "--tag", name, "-", stdin=context, seconds=IMAGE_SECONDS
    )
    if code:
        last = f"{output.decode(errors='replace')[-1000:]}\n{said}".strip()
        raise RuntimeError(f"the task's Dockerfile cannot be built by {engine}: {last}")
    return name


def obstacle(engine: str, config: ContainerConfig) -> str:
    """Why an episode cannot have a container here, in a sentence; "" where it can. May fetch the image."""
    if shutil.which(engine) is None:
        return _INSTALL[engine]
    try:
        answer = _do(engine, "version", "--format", "{{.Server.Version}}")
        if answer.returncode:
            return f"{engine} does not answer: {_last(answer.stderr)}"
        if not config.image:
            return ""
        if _do(engine, "image", "inspect", config.image).returncode:
            pulled = _do(engine, "pull", config.image, seconds=IMAGE_SECONDS)
            if pulled.returncode:
                return f"{engine} has no image {config.image!r}: {_last(pulled.stderr)}"
        return _image_obstacle(engine, config)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{engine}: {told(error)}"


def _image_obstacle(engine: str, config: ContainerConfig) -> str:
    """Try the image, with a folder of ours."""
    with tempfile.TemporaryDirectory(prefix="dorado-container-") as folder:
        os.chmod(folder, 0o755)
        (Path(folder) / "word").write_text(_WORD, encoding="utf-8")
        look = 'read -r word < /dorado/word; echo "$word"; command -v python3'
        mount = ("--volume", f"{folder}:/dorado:ro", "--security-opt", "label=disable")
        answer = _do(
            engine, "run", "--rm", "--network", "none", *mount,
            "--entrypoint", "/bin/sh", config.image, "-c", look,
        )  # fmt: skip
    found = answer.stdout.split()
    if answer.returncode > 1 and not found:
        return f"{engine} cannot run the image {config.image!r}: {_last(answer.stderr)}"
    if found[:1] != [_WORD]:
        return (
            f"{engine} runs containers on another machine, which sees no folder of this one; run "
            "`dorado sandbox serve` there, and name its address as the sandbox"
        )
    if config.network == "gateway" and not any("python3" in one for one in found):
        return (
            f"the image {config.image!r} has no python3, which the way to the policy needs; name "
            'another image, or container.network = "host" (the agent then reaches all that you do)'
        )
    return ""


def _do(engine: str, *arguments: str, seconds: float = ANSWER_SECONDS):
    return subprocess.run(
        [engine, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )


def _last(text: str) -> str:
    return text.strip().rpartition("\n")[2][:300]
