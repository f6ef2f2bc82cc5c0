"""Messages, turns and rewards of a trajectory drawn as labels, which show text as text whatever it holds."""

from collections.abc import Sequence

from nicegui import ui

from rl.dashboard.trajectory_record import Call, Said, TrajectoryView, TurnView

# Characters of one text that are shown: a browser is slow with more, and nobody reads them.
MAX_TEXT = 20_000
_BEGINS = {
    "thoughts": "the chat template drops the thoughts of the turns before",
    "summary": "the policy has summed up the segment before",
    "discard": "all but the opening was discarded",
    "branch": "the agent rewrote its history",
}
STYLE = """
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; }
.code { font-family: ui-monospace, monospace; font-size: 12px; }
.message { border-left: 3px solid #80879260; padding: 2px 0 2px 10px; width: 100%; }
.message.policy { border-left-color: #0072B2; }
.message.tool { border-left-color: #009E73; }
.message.fault { border-left-color: #D55E00; }
"""


def shortened(text: str, most: int = MAX_TEXT) -> str:
    """A text that a page can hold."""
    more = len(text) - most
    return text if more <= 0 else f"{text[:most]}\n… and {more:,} characters more"


def message(
    title: str, text: str, kind: str = "", calls: Sequence[Call] = (), most: int = MAX_TEXT
) -> None:
    """One message: who speaks, what, and the calls in it. kind: of ours, `policy`, `tool` or `fault`."""
    with ui.column().classes(f"message gap-0 {kind}"):
        ui.label(title).classes("quiet")
        if text:
            ui.label(shortened(text, most)).classes("text")
        for call in calls:
            said = ", ".join(f"{name}={shortened(value, most)}" for name, value in call.arguments)
            ui.label(f"{call.name}({said})").classes("text code")


def said(one: Said, most: int = MAX_TEXT) -> None:
    """A message of the record."""
    title = f"{one.role} {one.name}".strip()
    message(title[:200], one.text, "tool" if one.role == "tool" else "", one.calls, most)


def folded(title: str, text: str, kind: str = "", most: int = MAX_TEXT) -> None:
    """A text that a click opens."""
    with ui.expansion(title[:200]).classes(f"message {kind}").props("dense"):
        ui.label(shortened(text, most)).classes("text")


def segment_head(view: TrajectoryView, turn: TurnView) -> None:
    """A line above the turn that begins a segment: which one, and why."""
    if turn.begins:
        ui.separator()
        ui.label(segment_text(view, turn)).classes("text text-bold")


def segment_text(view: TrajectoryView, turn: TurnView) -> str:
    """Why a segment begins with this turn, e.g. "segment 1 of sample g0.0~1: a branch of segment 0 …"."""
    name = f"segment {turn.segment} (sample {view.id[:100]}~{turn.segment})"
    why = _BEGINS.get(turn.begins, turn.begins[:100])
    branch = next((b for b in view.branches if b.segment == turn.segment), None)
    if turn.begins != "branch" or branch is None:
        return f"{name}: {why}"
    if branch.message < 0:
        return f"{name}: {why}; it branches from segment {branch.parent}, with other tools"
    return (
        f"{name}: {why}; it branches from segment {branch.parent} at message {branch.message}, of "
        f"{branch.role[:40] or 'nobody'}: {shortened(branch.text, 200)}"
    )


def turn_messages(turn: TurnView, most: int = MAX_TEXT) -> None:
    """Draw one turn: the text of the policy, and what came back."""
    remarks = [f"turn {turn.number}", f"{len(turn.completion_ids):,} tokens"]
    if turn.finish_reason != "stop":
        remarks.append(f"ended by {turn.finish_reason}")
    if turn.begins:
        remarks.append(f"begins segment {turn.segment}")
    if turn.summary:
        remarks.append("a summary of its segment")
    if turn.malformed:
        remarks.append("a tool call that cannot be read")
    if turn.bad_calls:
        remarks.append(f"{turn.bad_calls} calls refused")
    if turn.rewards:
        remarks.append(f"reward: {numbers_text(turn.rewards)}")
    if turn.thought:
        title = f"thought of turn {turn.number}, {len(turn.thought):,} characters"
        folded(title, turn.thought, "policy", most)
    message(f"policy, {', '.join(remarks)}"[:300], turn.text, "policy", turn.calls, most)
    for one in turn.observations:
        said(one, most)


def rewards_text(view: TrajectoryView) -> str:
    """Rewards by name, such as "solved 1, format 0.5"."""
    return numbers_text(view.rewards) or "none"


def numbers_text(numbers: Sequence[tuple[str, float]]) -> str:
    """Numbers by name, such as "solved 1, format 0.5"; the first 40."""
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers[:40])
