"""Text of plugins, policies and files made encodable: whatever holds it can be written as UTF-8.

A Python string may hold half of a surrogate pair, from a file's name, from JSON or from a codec's
`surrogateescape`. No file, table or wire takes one. Here it becomes its escape, such as `\\udce9`.
"""

import json
import re
from typing import TypeVar, cast

T = TypeVar("T")
# An exception or a value may print at any length; a sentence shows so much of it.
MOST_TOLD, MOST_SHOWN = 2000, 200
_HALVES = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """The text as a plain `str` that UTF-8 can hold; half a surrogate pair becomes its escape.

    Raises TypeError for what is no text."""
    given = cast(object, text)  # a plugin's: it may be anything
    if not isinstance(given, str):
        raise TypeError(f"it has to be text, not {shown(given)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")
    # A subclass, such as numpy's, would have to be unpickled by whoever gets it.
    return str.__str__(text)


def encodable_json(value: T) -> T:
    """A JSON value with every text in it encodable; what is no JSON is returned as it is."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return value
    if _HALVES.search(text) is None:
        return value
    return json.loads(_HALVES.sub(lambda half: rf"\\u{ord(half[0]):04x}", text))


def told(error: BaseException) -> str:
    """An exception in one line: its class and what it says, such as `ValueError: no such page`."""
    kind = type(error).__name__
    try:
        said = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    except BaseException:  # its author's code makes the text
        said = "its text cannot be read"
    return encodable(f"{kind}: {said}"[:MOST_TOLD] if said else kind)


def shown(value: object) -> str:
    """A value for a sentence: its `repr` as far as a reader needs it."""
    try:
        text = repr(value)
    except BaseException:  # its author's code makes the text
        text = f"an unprintable {type(value).__name__}"
    return encodable(text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}...")
