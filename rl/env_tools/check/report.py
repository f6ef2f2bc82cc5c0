"""The report of a check: a line per promise an environment makes, and a sentence for each it breaks."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from envs.message import JsonObject

if TYPE_CHECKING:
    from rich.console import RenderableType

CheckName = Literal[
    "tools", "tasks", "splits", "acts", "deadlines", "blocking", "close", "pickle",
    "expert", "idle", "range", "determinism", "clock", "leaks", "agent",
]  # fmt: skip
PROMISES: dict[CheckName, str] = {
    "tools": "tools are typed and described",
    "tasks": "tasks are plain JSON and never run out",
    "splits": "no task is in both splits",
    "acts": "reset, tools, reply and score do not raise",
    "deadlines": "every act ends at its deadline",
    "blocking": "nothing blocks the event loop over 50 ms",
    "close": "close works twice, and after a failed reset",
    "pickle": "tasks and state can be pickled",
    "expert": "the expert scores in full",
    "idle": "doing nothing does not",
    "range": "rewards are inside reward_range",
    "determinism": "a seed and a task give the same everywhere",
    "clock": "nothing depends on the wall clock",
    "leaks": "no process, thread, port or file is left",
}
# Further ones of an environment that an agent plays.
AGENT_PROMISES: dict[CheckName, str] = {"agent": "its agent starts, asks the policy, and ends"}
Outcome = Literal["pass", "fail", "skip"]
MARKS: dict[Outcome, str] = {
    "pass": "[green]pass[/]",
    "fail": "[bold red]FAIL[/]",
    "skip": "[yellow]skip[/]",
}


@dataclass(frozen=True)
class Finding:
    """How one check ended, e.g. `Finding("idle", "fail", "doing nothing scores ...")`.

    detail: a stack or a traceback, where there is one.
    """

    check: CheckName
    outcome: Outcome
    sentence: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """All checks of an environment, in the order of `PROMISES`, then the agent's."""

    environment: str
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.outcome == "fail")

    @property
    def passed(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        """The text that a failing test prints."""
        lines = [f"{one.check}: {one.sentence}\n{one.detail}".rstrip() for one in self.failures]
        return "\n".join([f"dorado env check {self.environment}", *(lines or ["passed"])])

    def as_json(self) -> JsonObject:
        return {
            "environment": self.environment,
            "passed": self.passed,
            "seconds": round(self.seconds, 2),
            "checks": [asdict(one) for one in self.findings],
        }


def filled(environment: str, found: Iterable[Finding], seconds: float) -> Report:
    """Make the report of what was found; a check that was not reached is skipped, and says why. Those of
    agents are left out where nothing was found of them.

    Of several findings of one check the first failure stands.
    """
    by_check: dict[CheckName, Finding] = {}
    for one in found:
        held = by_check.get(one.check)
        if held is None or (one.outcome == "fail" and held.outcome != "fail"):
            by_check[one.check] = one
    failed = [
        check
        for check in PROMISES | AGENT_PROMISES
        if check in by_check and by_check[check].outcome == "fail"
    ]
    because = f"not reached: {failed[0]} failed" if failed else "not reached"
    return Report(
        environment,
        tuple(
            by_check.get(check, Finding(check, "skip", because))
            for check in PROMISES | AGENT_PROMISES
            if check in by_check or check in PROMISES
        ),
        seconds,
    )


def rendered(report: Report) -> "RenderableType":
    """Render the report for a terminal."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"check of {escape(report.environment)}", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("promise", ratio=1)
    for one in report.findings:
        told = f"\n{escape(one.sentence)}" if one.sentence else ""
        table.add_row(MARKS[one.outcome], one.check, (PROMISES | AGENT_PROMISES)[one.check] + told)
    details = [Text(f"{one.check}\n{one.detail.rstrip()}") for one in report.failures if one.detail]
    kept = sum(one.outcome == "pass" for one in report.findings)
    end = f"{kept} of {len(report.findings)} promises kept, {len(report.failures)} broken"
    return Group(table, *details, Text(f"{end} ({report.seconds:.1f} s)"))
