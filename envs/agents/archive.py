"""Tar archives of a task's files: what goes into a workspace, a tests' folder, a Dockerfile's folder."""

import io
import os
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath


def archive_of(files: Mapping[str, str | bytes]) -> bytes:
    """Files by name, which whoever works there may change."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
                raise ValueError(f"the file {name!r} has to be a path below the workspace")
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(str(path))
            info.size, info.mode = len(data), 0o666
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def archive_folder(root: Path, wanted: Callable[[Path], bool] = lambda path: True) -> bytes:
    """All wanted files of a folder, executable ones as such; its links as links."""

    def taken(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not wanted(root / info.name) or not (info.isreg() or info.isdir() or info.issym()):
            return None
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        # Whoever works there may not be whoever made them.
        info.mode = 0o777 if info.isdir() or info.mode & 0o100 else 0o666
        info.mtime = int(info.mtime)
        return info

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in sorted(os.listdir(root)):
            archive.add(root / name, name, filter=taken)
    return packed.getvalue()


def unpack(archive: bytes, folder: Path) -> None:
    """Unpack an archive. Raises ValueError for what would lie outside of the folder."""
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r") as packed:
            packed.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise ValueError(f"the files of a workspace cannot be unpacked: {error}") from None
