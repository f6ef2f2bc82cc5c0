"""An image for tests, made of a shell, some commands and a Python of this machine: none has to be fetched."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

COMMANDS = (
    "bash",
    "sh",
    "cat",
    "ls",
    "mkdir",
    "rm",
    "chmod",
    "sleep",
    "id",
    "ln",
    "head",
    "setsid",
)
NAME = "dorado-test:1"


def engines() -> list[str]:
    """The container engines that answer here."""
    return [name for name in ("docker", "podman") if shutil.which(name) and _answers(name)]


def image_of(engine: str, folder: Path) -> str:
    """The image's name; it is made where the engine does not have it."""
    if subprocess.run([engine, "image", "inspect", NAME], capture_output=True).returncode:
        packed = folder / "image.tar"
        with tarfile.open(packed, "w") as archive:
            _fill(archive)
        subprocess.run([engine, "import", str(packed), NAME], check=True, capture_output=True)
    return NAME


def refusal(engine: str) -> str:
    """Why the engine, which answers, runs no container here (it may be one itself); "": it does."""
    asked = [engine, "run", "--rm", "--network", "none", "--entrypoint", "/bin/sh", NAME, "-c", ":"]
    tried = subprocess.run(asked, capture_output=True, encoding="utf-8", timeout=60)
    return tried.stderr.strip()[-300:] if tried.returncode else ""


def _answers(engine: str) -> bool:
    asked = [engine, "version", "--format", "{{.Server.Version}}"]
    return subprocess.run(asked, capture_output=True, timeout=60).returncode == 0


def _fill(archive: tarfile.TarFile) -> None:
    python = os.path.realpath(sys.executable)
    stdlib = Path(sysconfig.get_path("stdlib"))
    loaded = [str(path) for path in (stdlib / "lib-dynload").glob("*.so")]
    known: set[str] = set()
    for name in COMMANDS:
        path = shutil.which(name)
        assert path is not None, name
        _add(archive, os.path.realpath(path), f"/bin/{name}", known)
    _add(archive, python, python, known)
    link = tarfile.TarInfo("bin/python3")
    link.type, link.linkname = tarfile.SYMTYPE, python
    archive.addfile(link)
    threads = next(Path("/").glob("lib/*/libgcc_s.so.1"), None)  # for a thread that ends
    if threads is not None:
        _add(archive, str(threads), str(threads), known)
    for path in loaded:
        for library in _libraries(path):
            _add(archive, library, library, known)
    unwanted = re.compile(r"site-packages|dist-packages|__pycache__|/test/|idlelib|config-3")
    archive.add(stdlib, filter=lambda one: None if unwanted.search(one.name) else one)
    for name in ("tmp", "proc", "dev", "etc", "run", "home"):
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
        archive.addfile(info)


def _add(archive: tarfile.TarFile, path: str, inside: str, known: set[str]) -> None:
    """A program or library by a name inside, with the libraries that it needs."""
    for source, name in [(path, inside), *((one, one) for one in _libraries(path))]:
        if name not in known:
            known.add(name)
            archive.add(os.path.realpath(source), name)


def _libraries(path: str) -> list[str]:
    told = subprocess.run(["ldd", path], capture_output=True, encoding="utf-8").stdout
    return re.findall(r"(/\S+) \(0x", told)
