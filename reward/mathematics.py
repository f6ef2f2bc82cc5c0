"""Decides whether an answer is mathematically the reference: two texts in, True or False out.

A reference is one of four kinds, each compared in its own way: a number (exactly, `reward.number`), a letter
of a choice, words (as text), or an expression (the library math-verify). The answer is what stands in the
last `\\boxed{}`, else after the last "answer is", else in the last formula, else the last number or line.

Refuses a reference that nothing could equal. Keeps no time: sympy can take for ever, which is the caller's.
"""

import logging
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from reward.number import last_number, read_number, same_number

if TYPE_CHECKING:
    from sympy import Expr


class UnreadableReference(ValueError):
    """Nothing can be compared with this reference, not even itself; the message says why."""


# The end of a text holds its answer.
MOST_LETTERS = 20_000
_SIGNS = {
    "\N{MINUS SIGN}": "-", "\N{EN DASH}": "-", "\N{MULTIPLICATION SIGN}": r"\times ",
    "\N{DOT OPERATOR}": r"\cdot ", "·": r"\cdot ", "÷": "/", "\N{FRACTION SLASH}": "/", "π": r"\pi ",
    "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "\N{UNION}": r"\cup ", "∩": r"\cap ", "±": r"\pm ",
    "∈": r"\in ",
    "∅": r"\emptyset ", r"\varnothing": r"\emptyset", "²": "^2", "³": "^3", "{,}": ",", r"\!": "",
    r"\left": "", r"\right": "", r"\;": " ", r"\:": " ", r"\ ": " ", "~": " ", r"\dfrac": r"\frac",
    r"\tfrac": r"\frac", r"\cfrac": r"\frac", "**": "^",
}  # fmt: skip
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|mathit|mathsf|operatorname)\s*\{([^{}]*)\}"
)
_CUE = re.compile(r"(?:\banswer\s*(?:is|:|=)|####)\s*:?\s*(?:\*\*)?\s*", re.I)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<!\\)\$(.+?)(?<!\\)\$", re.S)
_REASON = re.compile(r"[.;!]\s|\s(?:because|since|as|for|which|so|where|when|not|but|if)\b", re.I)
_BETWEEN_BOXES = re.compile(r"[\s$,;&.]*(?:and|or)?[\s$,;&]*", re.I)
_CHOICE = re.compile(r"\(?([A-J])\)?")
_CHOSEN = re.compile(r"(?:option|choice)?\s*(?:\(([A-J])\)|([A-J])(?=[.:),]|$))", re.I)
_CHOSEN_LAST = re.compile(r"\s\(?(?:([A-H])|([A-H])\))$")
# Dates, addresses and versions: algebra would read a sum or a quotient.
_LABEL = re.compile(r"\d+([-/.])\d+(?:\1\d+)+")
# Numbers such as XIV: a product of letters would not mind their order.
_ROMAN = re.compile(r"(?=..)X{0,3}(?:IX|IV|V?I{0,3})")
_LETTERS = re.compile(r"[A-Za-z]{2,}")
_NAMES = {"sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "arcsin", "arccos", "arctan",
          "min", "max", "gcd", "lcm", "det", "mod", "and", "or", "in"}  # fmt: skip
_SYMBOLS = {"pi", "infinity", "infty", "inf", "alpha", "beta", "gamma", "delta", "theta", "lambda", "phi",
            "omega", "sigma", "mu", "tau", "rho"}  # fmt: skip
# Words of two letters; any other two letters may be a product.
_SHORT_WORDS = {"no", "on", "so", "if", "is", "at", "to", "up", "we", "he", "me", "my", "by", "do", "go",
                "it", "as", "us", "of", "an", "am", "ok"}  # fmt: skip


@lru_cache(maxsize=4096)
def read_reference(reference: str) -> str:
    """The reference in one spelling. Raises UnreadableReference unless it is equal to itself."""
    wanted = _clean(reference)
    if not wanted:
        raise UnreadableReference("it is empty")
    if is_expression(wanted) and not _same_expression(wanted, wanted):
        raise UnreadableReference("it is not equal to itself")
    return wanted


def is_expression(reference: str) -> bool:
    """True for a reference that is neither a number nor words, and so is math-verify's to read."""
    wanted = _clean(reference)
    return read_number(_unwrapped(wanted)) is None and not (wanted and _is_text(wanted))


def equal(reference: str, answer: str) -> bool:
    """True if `answer`, a policy's whole text, gives the reference. Raises UnreadableReference."""
    wanted = read_reference(reference)
    final, marked = _final(answer[-MOST_LETTERS:])
    said = _clean(final)
    if choice := _CHOICE.fullmatch(_unwrapped(wanted)):
        found = _CHOSEN.match(_unwrapped(said)) or _CHOSEN_LAST.search(_unwrapped(said))
        # A lone letter can be a variable as well: "A = 5" is no choice.
        return (found[1] or found[2]).upper() == choice[1] if found else False
    if _spelled(wanted) == _spelled(said):
        return True
    number = read_number(_unwrapped(wanted))
    if number is not None:
        given = read_number(_unwrapped(said))
        if given is None and not marked:
            given = last_number(_unwrapped(said))
        if given is not None:
            return same_number(number, given)
    if number is None and _is_text(wanted):
        return False
    return _same_expression(wanted, said)


def answer_key(answer: str) -> str:
    """Equal for answers that say the same, as a vote counts them: the part that is the answer, a number by
    its value. Expressions that are equal and written otherwise have keys of their own."""
    final, marked = _final(answer)
    said = _unwrapped(_clean(final))
    number = read_number(said)
    if number is None and not marked:
        number = last_number(said)
    if number is None:
        return " ".join(said.split()).casefold()
    return f"{number.value} {number.unit}{'%' if number.percent else ''}".strip()


def _final(answer: str) -> tuple[str, bool]:
    """The part of a text that is the answer, and True if it is marked as such."""
    boxes = list(_boxes(answer))
    if boxes:
        first = len(boxes) - 1
        while first and _BETWEEN_BOXES.fullmatch(answer, boxes[first - 1][1], boxes[first][0]):
            first -= 1
        return ", ".join(text for *_, text in boxes[first:]), True
    cues = list(_CUE.finditer(answer))
    rest = answer[cues[-1].end() :].strip() if cues else answer.strip()
    whole = rest.rstrip(" .")
    if read_number(_unwrapped(_clean(whole))) is not None:
        return whole, True
    formulas = [next(filter(None, found.groups())) for found in _FORMULA.finditer(rest)]
    if formulas:
        joined = _joined(rest)
        return (joined or formulas[0 if cues else -1]), True
    lines = [line for line in rest.splitlines() if line.strip()]
    line = (_REASON.split(lines[0])[0] if cues else lines[-1]) if lines else ""
    return line, not _LETTERS.search(line)


def _joined(text: str) -> str:
    """Formulas that a text ends with, where only "and", "or" or a comma is between them: a set's elements."""
    found = list(_FORMULA.finditer(text))
    first = len(found) - 1
    while first and _BETWEEN_BOXES.fullmatch(text, found[first - 1].end(), found[first].start()):
        first -= 1
    if first == len(found) - 1:
        return ""
    return ", ".join(next(filter(None, part.groups())) for part in found[first:])


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """(start, end, content) of every `\\boxed{...}`; one that is cut off ends with the text."""
    end = 0
    for found in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        if found.start() < end:
            continue
        depth, end = 1, found.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0) * (text[end - 1] != "\\")
            end += 1
        yield found.start(), end, text[found.end() : end - (depth == 0)]


def _clean(text: str) -> str:
    """One spelling for signs, spaces and brackets; formulas' own marks and a sentence's end taken off."""
    for sign in text:
        if unicodedata.category(sign) == "No" and "\N{FRACTION SLASH}" in unicodedata.normalize(
            "NFKC", sign
        ):
            text = text.replace(sign, f" {unicodedata.normalize('NFKC', sign)}")
    text = text.strip().removeprefix("**").removesuffix("**")
    for sign, plain in _SIGNS.items():
        text = text.replace(sign, plain)
    text = re.sub(r"(?<=\d)\\,(?=\d{3}(?!\d))", "", text).replace(r"\,", " ")
    text = re.sub(r"√\s*(\w+)", r"\\sqrt{\1}", text).replace("√", r"\sqrt")
    text = text.strip().rstrip(".,;").strip()
    whole = _FORMULA.fullmatch(text)
    if whole and text.count("$") in (0, 2, 4):
        text = next(filter(None, whole.groups())).strip().rstrip(".,;").strip()
    boxes = list(_boxes(text))
    return boxes[-1][2].strip() if boxes else text


def _unwrapped(text: str) -> str:
    """Text marks of LaTeX taken off, their content left."""
    return " ".join(_TEXT.sub(r" \1 ", text).split())


def _spelled(text: str) -> str:
    """Words in one spelling."""
    return _unwrapped(text).casefold().strip(" .,;:!?\"'“”`*")


def _is_text(wanted: str) -> bool:
    """True for a reference that is compared as it is spelled."""
    bare = _unwrapped(wanted)
    return _is_words(wanted) or any(one.fullmatch(bare) for one in (_LABEL, _ROMAN))


def _is_words(text: str) -> bool:
    """True for a text with a word in it, which algebra would read as a product of letters."""
    bare = re.sub(r"\\(?:begin|end)\s*\{\w+\}|\\[A-Za-z]+", " ", _unwrapped(text))
    return any(map(_is_word, _LETTERS.findall(bare)))


def _is_word(letters: str) -> bool:
    low = letters.lower()
    if low in _NAMES or low in _SYMBOLS:
        return False
    return low in _SHORT_WORDS if len(low) == 2 else not set(low) <= set("abcxyz")


def _same_expression(wanted: str, said: str) -> bool:
    """Compare by math-verify. Raises UnreadableReference where it reads nothing in `wanted`."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    if {_bracket(wanted), _bracket(said)} == {"set", "ordered"}:
        return False
    gold, given = (
        [
            found
            for found in parse(f"${_as_latex(text)}$", parsing_timeout=0)
            if not isinstance(found, str)
        ]
        for text in (wanted, said)
    )
    if not gold:
        raise UnreadableReference("no expression can be read in it")
    return bool(given) and verify(gold, given, timeout_seconds=0) and not _apart(gold[0], given[0])


def _apart(gold: "Expr", given: "Expr") -> bool:
    """True for two numbers that differ, where math-verify's six places call both of them 0."""
    try:
        if not (gold.is_number and given.is_number):
            return False
        size = abs(gold.doit().evalf(20))
        return bool(abs((gold - given).doit().evalf(20)) > min(5e-7, 1e-4 * size))
    except (TypeError, AttributeError, ValueError):  # sets, matrices, relations
        return False


def _bracket(text: str) -> str:
    """Kind of what stands in brackets: a "set", "ordered" (a tuple or an interval), or "" without any."""
    if text.startswith(("{", r"\{")):
        return "set"
    return "ordered" if text[:1] in ("(", "[") and text[-1:] in (")", "]") and "," in text else ""


def _as_latex(text: str) -> str:
    """Names that LaTeX would read letter by letter, and numbers that it cannot read, in its own form."""
    text = re.sub(r"(?<![\w.])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.])", r"(\1+\\frac{\2}{\3})", text)
    text = re.sub(r"(?<![\w.])(\d+\.?\d*)[eE]([+-]?\d+)(?!\w)", r"(\1\\cdot 10^{\2})", text)
    text = re.sub(r"^[A-Za-z]\s*\\in\b", "", text)
    text = re.sub(r"(?<![A-Za-z\\])sqrt\s*(\d+|[a-z])\b", r"\\sqrt{\1}", text)
    text = re.sub(r"(?<![A-Za-z\\])(infinity|inf)(?![A-Za-z])", r"\\infty ", text)
    names = "|".join(
        sorted((_SYMBOLS - {"infinity", "inf"}) | (_NAMES - {"and", "or", "in", "sqrt"}), key=len)
    )
    return re.sub(rf"(?<![A-Za-z\\])({names})(?![A-Za-z])", r"\\\1 ", text)
