"""Prompts of judges and users: files with versions, filled in once, so that no text shown can fill in more.

`{{question}}` in a prompt is a place; what is put there is data. A text to be read stands between two marks
that its author cannot know, and a long one loses its middle.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PLACE = re.compile(r"\{\{(\w+)\}\}")
_VERSION = re.compile(r"(?P<name>[a-z_]+)\.v(?P<number>\d+)\.md")


@dataclass(frozen=True)
class Prompt:
    """A prompt and its version, such as "rubric.v1"."""

    version: str
    text: str

    @property
    def places(self) -> frozenset[str]:
        """Names of the places that are filled in."""
        return frozenset(_PLACE.findall(self.text))

    def filled(self, values: Mapping[str, str]) -> str:
        """The text with all places filled in, in one pass. Raises KeyError for a place without a value."""
        return _PLACE.sub(lambda found: values[found[1]], self.text)


class UnknownPrompt(ValueError):
    """No such prompt; the message says which there are."""


def prompt_in(folder: Path, name: str, wanted: str = "") -> Prompt:
    """The newest prompt of this name in a folder, the version that is wanted, or a file. Raises
    UnknownPrompt."""
    known = {
        int(found["number"]): file
        for file in folder.glob(f"{name}.v*.md")
        if (found := _VERSION.fullmatch(file.name))
    }
    if not wanted:
        file = known[max(known)]
    elif (file := folder / f"{wanted}.md") not in known.values():
        file = Path(wanted)
        try:
            text = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise UnknownPrompt(
                f"prompt {wanted}: it is no UTF-8: save the file as UTF-8"
            ) from None
        except OSError:
            versions = ", ".join(known[number].stem for number in sorted(known))
            raise UnknownPrompt(
                f"prompt {wanted!r} is none of {versions}, and no file of this name can be read"
            ) from None
        return Prompt(f"{file.name}@{hashlib.sha256(text.encode()).hexdigest()[:8]}", text)
    return Prompt(file.stem, file.read_text(encoding="utf-8"))


def marked(kind: str, text: str, most: int) -> str:
    """A text between marks, of at most so many characters."""
    shown = shortened(text, most)
    mark = hashlib.sha256(shown.encode()).hexdigest()[:8]
    return f"<{kind} {mark}>\n{shown}\n</{kind} {mark}>"


def shortened(text: str, most: int) -> str:
    """A text without its middle, where it is longer than that."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters left out …]\n{text[-half:]}"
