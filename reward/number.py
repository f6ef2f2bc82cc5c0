"""Numbers as people write them, read exactly: a text in, a `Number` out, or None where it is no number.

Reads thousands marks, mixed numbers, fractions, repeating decimals, powers of ten, percent, a currency or a
unit. Leaves expressions ("2+3", a root, a letter) to whoever knows algebra.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

# 1/3 is 0.333333, to six places; a tiny number is not 0.
_PLACES, _SHARE = Fraction(1, 2_000_000), Fraction(1, 10_000)
# More digits than any answer has; a power of ten beyond it is no number that anybody checks.
_MOST_DIGITS = 400

_GROUPED = r"\d{1,3}(?:[, ]\d{3})+(?!\d)"
_DECIMAL = rf"(?:(?:{_GROUPED}|\d+)(?:\.\d+)?\.?|\.\d+)"
_POWER = (
    r"(?:[eE]\s*(?P<e>[+-]?\d+)|\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{?\s*(?P<t>[+-]?\d+)\s*\}?)"
)
_SLASH = rf"(?:(?P<up>{_DECIMAL})\s*/\s*(?P<low>{_DECIMAL}))"
_BRACES = rf"\{{\s*(?P<fup>[+-]?{_DECIMAL})\s*\}}\s*\{{\s*(?P<flow>{_DECIMAL})\s*\}}"
_FRAC = rf"\\frac\s*(?:{_BRACES}|(?P<two>\d\s*\d)(?!\d))"
_MIXED = r"(?:(?P<whole>\d+)(?:\s+(?:and\s+)?|(?=\s*\\frac))\s*)?"
_REPEATING = r"(?:(?P<before>\d*)\.(?P<fixed>\d*)\\overline\s*\{?\s*(?P<again>\d+)\s*\}?)"
_CURRENCY = r"(?:\\?\$|€|£|¥|₹)"
_UNIT = r"[A-Za-z°][A-Za-z°. ]*(?:\^\{?[23]\}?|[²³])?(?:\s*/\s*[A-Za-z]+(?:\^\{?[23]\}?)?)?"
_NUMBER = (
    rf"(?P<sign>[+-]?)\s*(?P<money>{_CURRENCY}?)\s*(?P<sign2>[+-]?)\s*"
    rf"(?:{_REPEATING}|{_MIXED}(?:{_SLASH}|{_FRAC})|(?P<plain>{_DECIMAL}){_POWER}?)"
    r"(?:\s*(?P<percent>\\?%|percent\b|per cent\b|percentage points?\b))?"
)
_WHOLE = re.compile(
    rf"{_NUMBER}(?:\s*(?P<unit>{_UNIT}|\^\s*\{{?\s*\\circ\s*\}}?|_\s*\{{?\s*\d+\s*\}}?))?"
)
_ANYWHERE = re.compile(rf"(?<![\w.^_\\/]){_NUMBER}(?![\w^])")

_SAME_UNIT = {
    "centimeter": "cm", "centimetre": "cm", "meter": "m", "metre": "m", "kilometer": "km", "kilometre": "km",
    "millimeter": "mm", "millimetre": "mm", "gram": "g", "kilogram": "kg", "second": "s", "sec": "s",
    "minute": "min", "hour": "h", "hr": "h", "inch": "in", "inche": "in", "foot": "ft", "feet": "ft",
    "yard": "yd", "mile": "mi", "liter": "l", "litre": "l", "degree": "°", "$": "dollar", "usd": "dollar",
    "€": "euro", "eur": "euro", "£": "pound", "cent": "cent",
}  # fmt: skip


# Units of one and two letters; other letters beside a number are variables: 5x, 5ab.
_SHORT_UNITS = {
    "m", "g", "s", "h", "l", "L", "V", "W", "N", "J", "K", "C", "F", "A", "°", "cm", "mm", "km", "kg", "mg",
    "ml", "mL", "cL", "dm", "nm", "ft", "in", "yd", "mi", "hr", "lb", "oz", "pt", "qt", "sq", "Hz", "kW",
    "kV", "kJ", "mA", "am", "pm", "AM", "PM", "°C", "°F",
}  # fmt: skip


@dataclass(frozen=True)
class Number:
    """A number with what is written beside it: `Number(Fraction(1, 2), decimal=True)` is "0.5".

    value: percent not divided out. unit: "" where none is written.
    """

    value: Fraction
    decimal: bool = False
    percent: bool = False
    unit: str = ""


def read_number(text: str) -> Number | None:
    """The number that `text` is, as a whole."""
    found = _WHOLE.fullmatch(text.strip())
    return _number(found) if found else None


def last_number(text: str) -> Number | None:
    """The last number in a text of words."""
    numbers = [number for found in _ANYWHERE.finditer(text) if (number := _number(found))]
    return numbers[-1] if numbers else None


def same_number(wanted: Number, said: Number) -> bool:
    """True if `said` is `wanted`: a unit may be left out and not be another one; a percentage may be written
    as its share, and a wanted whole number with a percent sign."""
    if wanted.unit and said.unit and wanted.unit != said.unit:
        return False
    decimal = wanted.decimal or said.decimal
    share = close(
        wanted.value / (100 if wanted.percent else 1),
        said.value / (100 if said.percent else 1),
        decimal=decimal,
    )
    if wanted.percent == said.percent or share:
        return share
    at_face_value = wanted.percent or wanted.value.denominator == 1
    return at_face_value and close(wanted.value, said.value, decimal=decimal)


def close(wanted: Fraction, said: Fraction, *, decimal: bool) -> bool:
    """True if two values are equal: exactly, or to six places where one is written as a decimal."""
    tolerance = min(_PLACES, _SHARE * abs(wanted)) if decimal else 0
    return abs(wanted - said) <= tolerance


def _number(found: re.Match[str]) -> Number | None:
    part = {key: value for key, value in found.groupdict().items() if value}
    if sum(map(len, part.values())) > _MOST_DIGITS:
        return None
    try:
        value, decimal = _value(part)
    except ZeroDivisionError:
        return None
    unit = (part.get("unit") or "").strip()
    if value is None or _is_variable(unit):
        return None
    minus = (part.get("sign") == "-") != (part.get("sign2") == "-")
    return Number(
        -value if minus else value,
        decimal=decimal,
        percent="percent" in part,
        unit=_unit(unit or part.get("money") or ""),
    )


def _value(part: dict[str, str]) -> tuple[Fraction | None, bool]:
    """The value without its sign, and True if it is written as a decimal."""
    if "again" in part:
        fixed, again = part.get("fixed", ""), part["again"]
        scale = 10 ** len(fixed)
        whole = Fraction(int(part.get("before", "0") + fixed), scale)
        return whole + Fraction(int(again), scale * (10 ** len(again) - 1)), False
    if "plain" in part:
        exponent = int(part.get("e") or part.get("t") or 0)
        if abs(exponent) > _MOST_DIGITS:
            return None, False
        value = _decimal(part["plain"]) * Fraction(10) ** exponent
        return value, "." in part["plain"].rstrip(".") or exponent < 0
    if "two" in part:
        up, low = Fraction(part["two"][0]), Fraction(part["two"][-1])
    else:
        up, low = _decimal(part.get("up") or part["fup"]), _decimal(part.get("low") or part["flow"])
    return Fraction(part.get("whole", "0")) + up / low, False


def _is_variable(unit: str) -> bool:
    letters = re.match(r"[A-Za-z°]+", unit)
    return bool(letters) and len(letters[0]) <= 2 and letters[0] not in _SHORT_UNITS


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[,\s]", "", text).rstrip("."))


def _unit(text: str) -> str:
    """One spelling for a unit: "centimeters" and "cm." are "cm"."""
    if "circ" in text:
        return "°"
    # The base of a numeral, as in 12_8, is a unit too.
    name = (
        re.sub(r"[{}\s]", "", text).rstrip(".").replace("²", "^2").replace("³", "^3").lstrip("\\")
    )
    base, mark, power = name.partition("^")
    for form in (base, base.lower(), base.lower().removesuffix("s")):
        base = _SAME_UNIT.get(form, base)
    if len(base) > 2:
        base = base.lower().removesuffix("s")
    return base + mark + power
