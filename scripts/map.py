"""Makes docs/map.md: one line per file, out of the first sentence of its docstring (`make map`)."""

import ast
import re
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAP = ROOT / "docs" / "map.md"
FOLDERS = ("envs", "rollout", "reward", "trainer", "rl", "benchmarks", "scripts")
HEAD = """\
# Map of the files

Every Python file of the packages, with the first sentence of its docstring. `make map` writes this page.
How the parts work together is in [architecture.md](architecture.md).
"""


def file_map(root: Path = ROOT) -> str:
    """The page: a heading per folder with its package's sentence, and a line per file."""
    files = [
        path for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"), key=_order)
    ]
    page = [HEAD]
    for folder, inside in groupby(files, key=lambda path: path.parent):
        paths = list(inside)
        page.append(f"## {folder.relative_to(root).as_posix()}/\n")
        lines = [f"- `{p.name}`: {sentence(p)}" for p in paths if p.name != "__init__.py"]
        package = [f"{sentence(p)}\n" for p in paths if p.name == "__init__.py"]
        page += package
        page.append("\n".join(lines) + "\n" if lines else "")
    return "\n".join(part for part in page if part)


def sentence(path: Path) -> str:
    """The first sentence of a file's docstring, on one line; empty where it has none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s+(?=[A-Z])", first)[0].rstrip(".:")


def _order(path: Path) -> tuple[str, str]:
    """Folder by folder, a package's own files before its rooms'."""
    return path.parent.as_posix(), path.name


if __name__ == "__main__":
    MAP.write_text(file_map(), encoding="utf-8")
    print(f"wrote {MAP.relative_to(ROOT)}")
