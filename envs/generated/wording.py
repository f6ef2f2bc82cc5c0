"""Words of a task: a draft becomes the request of a user, with a rubric and what the user keeps to
themselves.

In: a `Draft`. Out: a `GeneratedTask`. Texts are made of the domain's own phrases, by templates with
variation; the points of a request are numbered, so that a later one can speak of a row that an earlier one
makes."""

from dataclasses import replace

from envs.generated.chain import Step, given, shifted_by, writes
from envs.generated.domain import Domain
from envs.generated.expression import Value
from envs.generated.names import draw
from envs.generated.rubric import Rubric, difference
from envs.generated.sampler import Draft
from envs.generated.task_data import GeneratedTask, shape_of

_OPENINGS = (
    "Hello, this is {user}.", "{user} here.", "Good day, my name is {user}.", "Hi! I am {user}.",
    "This is {user}, and I need some things done.",
)  # fmt: skip
_MANNERS = (
    "is in a hurry and says little", "is friendly and likes short answers",
    "is new here and follows what you say", "has asked for such things often",
)  # fmt: skip
_LEADS = (
    "Please do this for me:", "I would like you to do the following:", "Could you take care of this:",
    "Here is what I need:",
)  # fmt: skip
_QUESTIONS = (
    "At the end tell me the {field} of {row}; your last message has to be that value alone.",
    "When all is done, answer with nothing but the {field} of {row}.",
    "Then say what the {field} of {row} is: only the value.",
)  # fmt: skip
_CLOSINGS = (
    "Say done when it is done.",
    "Tell me when you have done it.",
    "Report back when finished.",
)


def finished(draft: Draft, seed: str) -> GeneratedTask:
    """The task of a draft, not verified yet."""
    rng, domain = draft.rng, draft.domain
    steps, facts, answer = _with_hidden(draft)
    user = draw("people", rng, set())
    points: list[str] = []
    for i, asked in enumerate(draft.asked, start=1):
        said = {name: asked.said[name] for name in asked.said}
        points.append(f"({i}) " + rng.choice(domain.tools[asked.tool].ask).format(**said))
    lead = rng.choice(_LEADS)
    request = f"{rng.choice(_OPENINGS).format(user=user)} {lead} {'; '.join(points)}."
    if draft.question:
        field, _, row = draft.question.partition("|")
        request += " " + rng.choice(_QUESTIONS).format(field=field, row=row)
    else:
        request += " " + rng.choice(_CLOSINGS)
    faults = _faults(draft)
    said_answer = str(draft.gave[draft.answer[0]][draft.answer[1]]) if draft.answer else ""
    offers = _offers(draft, steps)
    measures = _measures(draft, steps, facts, faults) | {"tools": len(offers or domain.tools)}
    return GeneratedTask(
        domain=domain.name, seed=seed, rows=draft.rows,
        system=system_text(domain, user, rng.choice(_MANNERS), offers), request=request, facts=facts,
        faults=faults, rubric=Rubric(difference(draft.world), said_answer), steps=tuple(steps),
        answer=answer, measures=measures, structure=shape_of(tuple(steps)), offers=offers,
    )  # fmt: skip


def body_and_end(request: str) -> tuple[str, str]:
    """A request in two: what is asked for, and the sentence that says how it is to be answered."""
    ends = [*_CLOSINGS, *(text.partition("{field}")[0] for text in _QUESTIONS)]
    at = max(request.rfind(f" {end}") for end in ends)
    return (request[:at], request[at + 1 :]) if at > 0 else (request, "")


def system_text(domain: Domain, user: str, manner: str, offers: tuple[str, ...] = ()) -> str:
    """Tell the agent of its place, its user and its rules; offers: its tools, () for all."""
    acts = [tool for tool in domain.acts if not offers or tool.name in offers]
    told = [
        f"You serve {domain.title}, with tools. Ids have to be looked up. Do what is asked, no more."
    ]
    rowless = any(tool.confirm and not tool.subject for tool in acts)
    listed = any(tool.confirm and spec.many for tool in acts for spec in tool.args.values())
    if sure := ", ".join(tool.name for tool in acts if tool.confirm):
        told.append(
            f"Rule: before each call of {sure} call confirm with its name and the id of its first row."
            + (" Of a list each row is confirmed by a call of its own." if listed else "")
            + (" An act on no row is confirmed as `-`." if rowless else "")
        )
    if any(tool.permission for tool in acts):
        told.append("Rule: request a permission only when an act needs it.")
    told.append(f"The user is {user}, who {manner}. What was not said, learn with ask_user.")
    return "\n".join(told)


def _offers(draft: Draft, steps: list[Step]) -> tuple[str, ...]:
    """The tools that the task offers, in the domain's order: those of its steps, what its rules name, and
    others until they are as many as asked for; () where that is all there are."""
    tools, most = draft.domain.tools, draft.difficulty.tools
    if not 0 < most < len(tools):
        return ()
    kept = {step.tool for step in steps} | {"ask_user"}
    others = [name for name in tools if name not in kept]
    for name in ["", *draft.rng.sample(others, len(others))]:
        more = kept | {name} - {""}
        if any(tools[one].confirm for one in more):
            more.add("confirm")
        if any(tools[one].permission for one in more):
            more.add("request_access")
        if not name or len(more) <= most:
            kept = more
    return tuple(name for name in tools if name in kept)


def _with_hidden(draft: Draft) -> tuple[list[Step], dict[str, Value], tuple[int, str] | tuple[()]]:
    """The steps, in which some values are asked for first; what the user tells; where the answer is."""
    acts = writes(draft.domain, draft.steps)
    chances: list[tuple[int, int, str]] = []
    for i, (asked, at) in enumerate(zip(draft.asked, acts, strict=True)):
        for name, spec in draft.domain.tools[asked.tool].args.items():
            if spec.kind in ("int", "choice", "text"):
                chances.append((i, at, name))
    draft.rng.shuffle(chances)
    facts: dict[str, Value] = {}
    hidden: list[tuple[int, str]] = []
    for i, at, name in chances:
        key = name.replace("_", " ")
        unique = sum(other == name for _, _, other in chances) == 1
        if len(hidden) < draft.difficulty.hidden and unique and not _overlaps(key, facts):
            facts[key] = draft.steps[at].args[name]
            draft.asked[i].said[name] = f"the {key} that I tell you when you ask"
            hidden.append((at, name))
    count = len(hidden)
    shifted = shifted_by(draft.steps, count)
    for place, (at, name) in enumerate(hidden):
        step = shifted[at]
        shifted[at] = replace(step, args={**step.args, name: given(place, "answer")})
    asks = [Step("ask_user", {"about": name.replace("_", " ")}) for _, name in hidden]
    answer = (draft.answer[0] + count, draft.answer[1]) if draft.answer else ()
    return [*asks, *shifted], facts, answer


def _overlaps(key: str, facts: dict[str, Value]) -> bool:
    return any(key in other or other in key for other in facts)


def _faults(draft: Draft) -> dict[str, int]:
    """How often acts of the chain are busy at first."""
    faults: dict[str, int] = {}
    for _ in range(draft.difficulty.noise):
        tool = draft.rng.choice(draft.asked).tool
        faults[tool] = min(3, faults.get(tool, 0) + 1)
    return faults


def _measures(
    draft: Draft, steps: list[Step], facts: dict[str, Value], faults: dict[str, int]
) -> dict[str, float]:
    """Count what makes the task hard."""
    kinds = [draft.domain.tools[step.tool].kind for step in steps]
    rows = {key for key in draft.touched if key not in draft.made}
    return {
        "steps": len(steps),
        "acts": kinds.count("act"),
        "lookups": sum(kind in ("find", "list", "get") for kind in kinds),
        "rows": sum(len(some) for some in draft.rows.values()),
        "roots": len(rows),
        "hidden": len(facts),
        "noise": sum(faults.values()),
    }
