"""Regular expressions of visitors, searched in time linear in the text: none can hold the dashboard up.

In: an expression in the syntax of RE2, which is Python's without look-around and back-references, and texts.
Out: those in which it is found.
"""

from collections.abc import Iterable

import re2

MOST_CHARACTERS = 500
# A text is looked at as far as this.
MOST_TEXT = 1000
# Instructions of the expression times characters of the texts: under a second where RE2 is at its slowest.
MOST_WORK = 10_000_000


def found_in(expression: str, texts: Iterable[str]) -> list[str]:
    """Texts in which the expression is found, sorted. Raises ValueError with one sentence."""
    shown = repr(expression if len(expression) <= 80 else f"{expression[:80]}…")
    if len(expression) > MOST_CHARACTERS:
        raise ValueError(f"{shown} is too long: {MOST_CHARACTERS} characters at most")
    options = re2.Options()
    options.log_errors = False
    try:
        pattern = re2.compile(expression, options)
    except (re2.error, UnicodeError) as error:
        said = error.args[0] if error.args else error
        reason = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise ValueError(f"{shown} is no regular expression: {reason[:100]}") from None
    looked_at = [(text, text[:MOST_TEXT]) for text in texts]
    if pattern.programsize * sum(len(start) for _, start in looked_at) > MOST_WORK:
        raise ValueError(f"{shown} takes too long to search for; ask for fewer repetitions")
    return sorted(text for text, start in looked_at if pattern.search(start))
