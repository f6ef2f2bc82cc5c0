"""Compiled code is kept when an engine has started, whole or not at all, and killed engines leave nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

from rollout import compile_cache
from rollout.compile_cache import CompileCache, check_compiler


def _write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _read(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text(encoding="utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_an_engine_compiled_is_kept_once_it_has_started(tmp_path):
    first = CompileCache(tmp_path)
    _write(first.folder, "ab/one.so", "code")
    _write(first.folder, "ab/one.so.lock", "")
    assert _read(first.kept) == {}, "half of a library, for all that anybody knows"
    assert first.keep() == 1
    first.close()
    assert _read(first.kept) == {"ab/one.so": "code"}

    second = CompileCache(tmp_path)
    assert _read(second.folder) == {"ab/one.so": "code"}
    _write(second.folder, "model", "graph")
    assert second.keep() == 0, "no library is new"
    second.close()
    assert _read(tmp_path) == {f"{second.kept.name}/{n}": t for n, t in _read(second.kept).items()}
    assert _read(second.kept) == {"ab/one.so": "code", "model": "graph"}


def test_what_an_engine_compiled_anew_takes_the_place_of_what_was_kept(tmp_path):
    first = CompileCache(tmp_path)
    _write(first.folder, "model", "old")
    first.keep()
    first.close()
    one, other = CompileCache(tmp_path), CompileCache(tmp_path)
    for cache, text in ((one, "new"), (other, "newer")):
        _write(cache.folder, "passing", text)
        (cache.folder / "passing").replace(cache.folder / "model")
        assert _read(other.kept)["model"] != text
        cache.keep()
        assert _read(other.kept) == {"model": text}
        cache.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from rollout.compile_cache import CompileCache
cache = CompileCache(Path(sys.argv[1]))
(cache.folder / "torn.so").write_text("ha", encoding="utf-8")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_engine_killed_while_it_compiles_leaves_nothing_to_the_next(tmp_path):
    living = CompileCache(tmp_path)
    _write(living.folder, "model", "graph")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    torn = list(tmp_path.rglob("torn.so"))
    assert len(torn) == 1, "it was killed in the middle"
    following = CompileCache(tmp_path)
    assert _read(following.folder) == {} and not torn[0].exists()
    assert _read(living.folder) == {"model": "graph"}, "of an engine that lives"
    living.close()
    following.close()
    assert [path.name for path in tmp_path.iterdir()] == [living.kept.name]


def test_a_file_system_without_links_has_copies(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(compile_cache.os, "link", refuse)
    first = CompileCache(tmp_path)
    _write(first.folder, "one.so", "code")
    assert first.keep() == 1
    first.close()
    second = CompileCache(tmp_path)
    assert _read(second.folder) == {"one.so": "code"} and second.keep() == 0
    second.close()


def test_no_compiler_is_one_sentence(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"^engine\.compile needs .* there is no no-such-compiler"):
        check_compiler()
