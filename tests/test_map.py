"""docs/map.md is what the docstrings say, and every path that the documents name exists."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "AGENTS.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = "envs|rollout|reward|trainer|rl|configs|benchmarks|docs|tests|requirements|scripts"
# A path of this repository, in backticks, as a command's argument or as a link's target.
PATH = re.compile(rf"(?<![\w/.~-])(?:{FOLDERS})/[\w./-]*\w(?![\w*<])/?")
TEST = re.compile(r"\btest_\w+\.py\b")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#([\w-]+))?\)|\]\(#([\w-]+)\)")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_map_is_made_of_the_docstrings_and_every_file_has_one():
    module = script("map")
    made = module.file_map()
    assert module.MAP.read_text(encoding="utf-8") == made, (
        "docs/map.md is out of date: run make map"
    )
    assert [line for line in made.splitlines() if line.endswith("`: ")] == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_every_path_that_a_document_names_exists(page):
    text = page.read_text(encoding="utf-8")
    missing = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    missing += [test for test in TEST.findall(text) if not (ROOT / "tests" / test).exists()]
    assert missing == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_every_link_of_a_document_leads_somewhere(page):
    for target, anchor, here in LINK.findall(page.read_text(encoding="utf-8")):
        goal = page.parent / target if target else page
        assert goal.exists(), f"{target} does not exist"
        if (wanted := anchor or here) and goal.suffix == ".md":
            assert wanted in anchors(goal), f"{name_of(goal)} has no heading #{wanted}"


@pytest.mark.parametrize(("page", "most"), [("README.md", 180), ("docs/architecture.md", 150)])
def test_the_first_pages_stay_short(page, most):
    assert len((ROOT / page).read_text(encoding="utf-8").splitlines()) <= most
