"""The chat templates that the package `trl` ships: docs/formats.md says of each what Dorado makes of it."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_SPEC = importlib.util.spec_from_file_location("chat_templates", ROOT / "scripts/chat_templates.py")
chat_templates = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(chat_templates)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("trl") is None,
        reason="trl, whose chat templates are tried, is not installed (requirements/cpu.lock has it)",
    ),
]


def test_the_table_of_templates_is_what_they_are():
    page = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    table = page.split(chat_templates.BEGIN)[1].split(chat_templates.END)[0]
    assert list(chat_templates.lines()) == table.strip().splitlines()


def test_more_than_forty_templates_are_tried_and_every_reason_is_a_sentence():
    page = (ROOT / "docs/formats.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `\w+` \| \w+ \| ([\w ]+) \| (.*) \|$", page, re.M)
    assert len(rows) > 40 and {name for name, _, _ in rows} == set(chat_templates.templates())
    assert all(reason or plays == "system and tools" for _, plays, reason in rows)
