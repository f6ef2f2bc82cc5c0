"""Prints figures of the five packages and of the tests: sizes, `Any`, comments, assertions.

python scripts/code_figures.py [CHECKOUT]
"""

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("envs", "rollout", "reward", "trainer", "rl")
LONG = 60
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Source:
    """A file, read and parsed."""

    name: str
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        """How many lines it has, blank ones included."""
        return self.text.count("\n")

    @property
    def functions(self) -> Iterator[tuple[int, str]]:
        """(lines, where and name) of every function, nested ones included."""
        for node in ast.walk(self.tree):
            if isinstance(node, Function):
                assert node.end_lineno is not None, "a parsed function has an end"
                yield node.end_lineno - node.lineno + 1, f"{self.name}:{node.lineno} {node.name}"

    @property
    def comment_lines(self) -> int:
        """Lines with a comment on them; docstrings are counted apart."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return len({t.start[0] for t in tokens if t.type == tokenize.COMMENT})

    @property
    def docstring_lines(self) -> int:
        """Lines of docstrings."""
        found = 0
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node):
                said = node.body[0]
                found += (said.end_lineno or said.lineno) - said.lineno + 1
        return found

    def count(self, *, expression: str) -> int:
        """How often an expression of this form occurs, e.g. `Any` or `dict[str, Any]`."""
        wanted = ast.dump(ast.parse(expression, mode="eval").body)
        return sum(
            isinstance(node, ast.expr) and ast.dump(node) == wanted for node in ast.walk(self.tree)
        )


def sources(root: Path, folders: tuple[str, ...]) -> list[Source]:
    """Every Python file below these folders of a checkout."""
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    return [Source(p.relative_to(root).as_posix(), t, ast.parse(t)) for p, t in texts.items()]


def package_figures(files: list[Source]) -> dict[str, str]:
    """Figures of the packages, as they are printed."""
    lines = sum(f.lines for f in files)
    functions = sorted((found for f in files for found in f.functions), reverse=True)
    over = [name for length, name in functions if length > LONG]
    largest = max(files, key=lambda f: f.lines)
    longest, where = functions[0]

    def per_thousand(expression: str) -> str:
        found = sum(f.count(expression=expression) for f in files)
        return f"{1000 * found / lines:.1f} ({found})"

    return {
        "files": f"{len(files)}",
        "lines": f"{lines:,}",
        "Any per 1,000 lines": per_thousand("Any"),
        "dict[str, Any] per 1,000 lines": per_thousand("dict[str, Any]"),
        "longest function": f"{longest} lines ({where})",
        "longest file": f"{largest.lines} lines ({largest.name})",
        f"functions over {LONG} lines": f"{len(over)}" + "".join(f"\n    {name}" for name in over),
        "lines with a comment": f"{sum(f.comment_lines for f in files) / lines:.1%}",
        "lines of docstrings": f"{sum(f.docstring_lines for f in files) / lines:.1%}",
    }


def test_figures(files: list[Source]) -> dict[str, str]:
    """Figures of the tests, as they are printed. A parametrised test counts once."""
    nodes = [node for f in files for node in ast.walk(f.tree)]
    raises = ast.dump(ast.parse("pytest.raises", mode="eval").body)
    tests = [
        n
        for f in files
        if Path(f.name).name.startswith("test_")
        for n in ast.walk(f.tree)
        if isinstance(n, Function) and n.name.startswith("test_")
    ]
    return {
        "test files": f"{sum(Path(f.name).name.startswith('test_') for f in files)}",
        "test functions": f"{len(tests):,}",
        "assert statements": f"{sum(isinstance(n, ast.Assert) for n in nodes):,}",
        "pytest.raises": f"{sum(isinstance(n, ast.Call) and ast.dump(n.func) == raises for n in nodes):,}",
    }


if __name__ == "__main__":
    checkout = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    figures = package_figures(sources(checkout, PACKAGES)) | test_figures(
        sources(checkout, ("tests",))
    )
    for figure, value in figures.items():
        print(f"{figure:<32}{value}")
