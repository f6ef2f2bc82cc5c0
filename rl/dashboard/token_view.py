"""A turn's tokens as plain data: text, colour by a chosen quantity, and what hovering says.

In: a turn, what the learner made of it, texts of ids. Out: rows that a page binds as text and style; every
style is made here, of numbers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rl.dashboard.charts import COLOURS
from rl.dashboard.learned_record import Choices, Learned, Numbers
from rl.dashboard.trajectory_record import TrajectoryView, TurnView

# Name in the address, and the name to choose by.
QUANTITIES = {
    "logprob": "rollout log-prob",
    "difference": "learner minus engine",
    "advantage": "advantage",
    "entropy": "entropy",
    "mask": "mask",
    "version": "policy version",
    "experts": "experts",
}
# Tokens of one turn that are drawn; a browser is slow with more.
MAX_TOKENS = 3000
_BLUE, _ORANGE, _GREEN = "0,114,178", "230,159,0", "0,158,115"
# At this log-prob, about one in 150, the colour is full.
_FULL_LOGPROB = 5.0
# More, and a text on it could not be read in the dark.
_STRONGEST = 0.65
# Whose experts hovering shows.
_MOST_LAYERS = 16


@dataclass(frozen=True)
class PolicyToken:
    """One token that the policy wrote, with what is known of it."""

    logprob: float | None
    version: int | None
    learner_logprob: float | None = None
    advantage: float | None = None
    entropy: float | None = None
    experts: Choices = ()
    trained: bool = False

    @property
    def difference(self) -> float | None:
        """The learner's log-prob minus the engine's."""
        if self.learner_logprob is None or self.logprob is None:
            return None
        return self.learner_logprob - self.logprob


def policy_tokens(view: TrajectoryView, learned: Learned | None) -> list[list[PolicyToken]]:
    """Numbers of the tokens that the policy wrote, turn by turn."""
    found, at = [], 0
    for turn in view.turns:
        end = at + len(turn.completion_ids)
        found.append(_of_turn(turn, learned, at, end))
        at = end
    return found


def _of_turn(turn: TurnView, learned: Learned | None, at: int, end: int) -> list[PolicyToken]:
    if learned is None:
        pairs = zip(turn.logprobs, turn.versions, strict=True)
        return [PolicyToken(logprob, version) for logprob, version in pairs]

    def part(values: Numbers) -> Sequence[float | None]:
        return values[at:end] or [None] * (end - at)

    columns = (
        turn.logprobs,
        turn.versions,
        part(learned.learner_logprobs),
        part(learned.advantages),
        part(learned.entropies),
        learned.experts[at:end] or [()] * (end - at),
    )
    return [PolicyToken(*one, trained=True) for one in zip(*columns, strict=True)]


def scale(tokens: Sequence[Sequence[PolicyToken]], quantity: str) -> float:
    """The size of the quantity at which its colour is full, the same in all turns."""
    if quantity == "logprob":
        return _FULL_LOGPROB
    if quantity not in ("difference", "advantage", "entropy"):
        return 1.0
    sizes = [abs(v) for turn in tokens for one in turn if (v := getattr(one, quantity)) is not None]
    return max(sizes, default=0.0) or 1.0


def legend(quantity: str, full: float) -> str:
    """Say in a sentence how to read the colours."""
    return {
        "logprob": f"Blue: the less likely the engine held the token to be, full at {-full:g}.",
        "difference": f"Blue: the learner held it to be likelier than the engine; orange: less likely; "
        f"full at {full:.3g}.",
        "advantage": f"Blue: above its group, to be made likelier; orange: below; full at {full:.3g}.",
        "entropy": f"Blue: the learner was uncertain, full at {full:.3g}.",
        "mask": "Green: written by the policy and trained on; orange: written by it, not trained on; without "
        "colour: what it was told.",
        "version": "One colour per policy version, again after eight.",
        "experts": "One colour per expert that the learner chose first in its first layer with a router, "
        "again after eight; hovering shows all layers.",
    }[quantity]


def token_rows(
    turn: TurnView,
    tokens: Sequence[PolicyToken],
    quantity: str,
    full: float,
    texts: Mapping[int, str],
) -> list[dict[str, object]]:
    """`MAX_TOKENS` tokens of a turn at most: its prompt, then what the policy wrote."""
    ids = (*turn.prompt_ids, *turn.completion_ids)[:MAX_TOKENS]
    told = len(turn.prompt_ids)
    rows = []
    for n, id in enumerate(ids):
        text = texts[id]
        one = tokens[n - told] if n >= told else None
        rows.append(
            {
                "n": n,
                "text": _visible(text),
                "style": "" if one is None else _style(one, quantity, full),
                "hover": _hover(id, text, one),
                "kind": "told" if one is None else "wrote",
            }
        )
    return rows


def _style(one: PolicyToken, quantity: str, full: float) -> str:
    match quantity:
        case "mask":
            return _ground(_GREEN if one.trained else _ORANGE, 0.5)
        case "version":
            if one.version is None:
                return ""
            return _underline(one.version)
        case "experts":
            return _underline(one.experts[0][0]) if one.experts and one.experts[0] else ""
        case "logprob":
            value, below = one.logprob, _BLUE
        case _:
            value, below = getattr(one, quantity), _ORANGE
    if value is None:
        return ""
    return _ground(below if value < 0 else _BLUE, _STRONGEST * min(1.0, abs(value) / full))


def _underline(number: int) -> str:
    return f"box-shadow: inset 0 -4px {COLOURS[number % len(COLOURS)]}"


def _ground(colour: str, strength: float) -> str:
    return f"background: rgba({colour},{strength:.2f})"


def _hover(id: int, text: str, one: PolicyToken | None) -> str:
    lines = [f"{text!r}", f"id {id}"]
    if one is None:
        return "\n".join([*lines, "told to the policy"])
    numbers = (
        ("rollout log-prob", one.logprob),
        ("learner's log-prob", one.learner_logprob),
        ("difference", one.difference),
        ("advantage", one.advantage),
        ("entropy", one.entropy),
        ("policy version", one.version),
    )
    lines += [f"{name} {value:.6g}" for name, value in numbers if value is not None]
    for layer, chosen in enumerate(one.experts[:_MOST_LAYERS]):
        lines.append(f"experts, layer {layer}: {' '.join(map(str, chosen))}")
    return "\n".join([*lines, "trained on" if one.trained else "not trained on"])


def _visible(text: str) -> str:
    """Spaces and ends of lines that can be seen."""
    return text.replace("\n", "↵\n").replace("\t", "⇥") or "∅"
