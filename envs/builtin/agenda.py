"""A calendar and a mailbox: move meetings, tell people, answer what they ask for by mail.

user: mon: move the meeting with ada to 15     assistant: meetings(day=mon)     tool: 31 at 9 ada
assistant: move(event=31, hour=15)             tool: ok                       assistant: done

Judged on who meets when, whatever became of the events' numbers, and on the outbox: one mail to everybody who
has to know, with the hour in it, and none to others.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pydantic import Field

from envs.builtin.words import DAYS, PEOPLE
from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool

HOURS = range(9, 17)
KINDS = ("cancel", "move", "book")
# How many people the meetings of a day have; nobody is in two, on whatever day.
SIZES = {1: (1, 1), 2: (1, 1, 2, 2, 3), 3: (1, 2, 2)}


class AgendaConfig(EnvConfig):
    """1: one change. 2: in the first free hour, and tell all who are there. 3: three mails ask for it."""

    difficulty: int = Field(default=1, ge=1, le=3)


class Agenda(Env):
    """Change meetings in a calendar of hours and tell those concerned by mail."""

    name = "agenda"
    reward_names = ("solved",)
    config_type = AgendaConfig
    config: AgendaConfig
    difficulties = 3

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        people = rng.sample(PEOPLE, len(PEOPLE))
        numbers = rng.sample(range(10, 100), 15)
        events: list[list[Any]] = []
        asks: list[JsonObject] = []
        for day in rng.sample(DAYS, 3 if level == 3 else 1):
            sizes = rng.sample(SIZES[level], len(SIZES[level]))
            *hours, free = rng.sample(HOURS, len(sizes) + 1)
            kind, who = rng.choice(KINDS), people.pop()
            for hour, size in zip(sorted(hours), sizes, strict=True):
                events.append([numbers.pop(), day, hour, [people.pop() for _ in range(size)]])
            if kind != "book":
                who = rng.choice(rng.choice(events[-len(sizes) :])[3])
            hour = free if level == 1 else first_free(hours)
            asks.append({"day": day, "kind": kind, "who": who, "hour": hour})
        return {"difficulty": level, "events": events, "asks": asks}

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.events = {n: (day, hour, tuple(who)) for n, day, hour, who in task.data["events"]}
        self.outbox: list[tuple[str, str]] = []
        level = task.data["difficulty"]
        text = "do what the mails ask" if level == 3 else said(task.data["asks"][0], level)
        return [Message("user", text + (_TELL if level > 1 else ""))]

    @tool(read_only=True)
    async def meetings(self, day: str) -> str:
        """meetings of a day"""
        found = sorted((hour, n, who) for n, (d, hour, who) in self.events.items() if d == day)
        return "; ".join(f"{n} at {hour} {' '.join(who)}" for hour, n, who in found) or "none"

    @tool
    async def book(self, day: str, hour: int, people: str) -> str:
        """new meeting"""
        self._free(day, hour)
        who = people.replace(",", " ").split()
        if not who or not set(who) <= set(PEOPLE):
            raise ToolError(f"unknown people {people!r}")
        number = max(self.events, default=9) + 1
        self.events[number] = (day, hour, tuple(who))
        return str(number)

    @tool
    async def move(self, event: int, hour: int) -> str:
        """other hour, same day"""
        day, _, who = self._event(event)
        self._free(day, hour)
        self.events[event] = (day, hour, who)
        return "ok"

    @tool
    async def cancel(self, event: int) -> str:
        """delete a meeting"""
        self._event(event)
        del self.events[event]
        return "ok"

    @tool(read_only=True)
    async def inbox(self) -> str:
        """read mails"""
        asks: list[JsonObject] = self.task["asks"] if self.task["difficulty"] == 3 else []
        return "\n".join(f"from {ask['who']}: {said(ask, 3)}" for ask in asks) or "none"

    @tool
    async def mail(self, to: str, text: str) -> str:
        """send a mail"""
        if to not in PEOPLE:
            raise ToolError(f"unknown person {to!r}")
        self.outbox.append((to, text))
        return "ok"

    def _event(self, number: int) -> tuple[str, int, tuple[str, ...]]:
        if number not in self.events:
            raise ToolError(f"no meeting {number}")
        return self.events[number]

    def _free(self, day: str, hour: int) -> None:
        if day not in DAYS or hour not in HOURS:
            raise ToolError("days are mon to fri, hours 9 to 16")
        if any((day, hour) == event[:2] for event in self.events.values()):
            raise ToolError(f"{day} {hour} is taken")

    async def score(self) -> dict[str, float]:
        meetings, hours = wanted(self.task)
        found = Counter((day, hour, frozenset(who)) for day, hour, who in self.events.values())
        told = Counter(to for to, _ in self.outbox)
        right = all(str(hours.get(to)) in re.findall(r"\d+", text) for to, text in self.outbox)
        solved = self.answer is not None and found == meetings and told == Counter(hours.keys())
        return {"solved": float(solved and right)}

    def expert(self, task: Task) -> Expert:
        level = task.data["difficulty"]
        if level == 3:
            yield call("inbox")
        for ask in task.data["asks"]:
            listed = (yield call("meetings", day=ask["day"]))[0]
            events = [line.split() for line in listed.split("; ") if " at " in line]
            mine = next((e for e in events if ask["who"] in e[3:]), list[str]())
            hour = ask["hour"] if level == 1 else first_free([int(e[2]) for e in events])
            if not mine:
                mine = ["", "at", str(hour), ask["who"]]
                yield call("book", day=ask["day"], hour=hour, people=ask["who"])
            elif ask["kind"] == "move":
                yield call("move", event=int(mine[0]), hour=hour)
            else:
                hour = int(mine[2])
                yield call("cancel", event=int(mine[0]))
            for person in mine[3:] if level > 1 else ():
                yield call("mail", to=person, text=str(hour))
        yield say("done")


_TELL = ", and mail the hour to all in the meeting"


def first_free(taken: Iterable[int]) -> int:
    """The first hour of a day that no meeting has."""
    return next(hour for hour in HOURS if hour not in set(taken))


def said(ask: JsonObject, level: int) -> str:
    """Put into words the change that somebody wants."""
    meeting = "our meeting" if level == 3 else f"the meeting with {ask['who']}"
    hour = ask["hour"] if level == 1 else "the first free hour"
    text = {
        "cancel": f"cancel {meeting}",
        "move": f"move {meeting} to {hour}",
        "book": f"book {'me' if level == 3 else ask['who']} at {hour}",
    }
    return f"{ask['day']}: {text[ask['kind']]}"


def wanted(
    data: JsonObject,
) -> tuple[Counter[tuple[str, int, frozenset[str]]], dict[str, int]]:
    """The meetings (day, hour, people) that a task asks for, and who has to be told which hour."""
    asks = {(ask["day"], ask["who"]): ask for ask in data["asks"]}
    meetings: list[tuple[str, int, frozenset[str]]] = []
    hours: dict[str, int] = {}
    for _, day, hour, who in data["events"]:
        ask = next((asks.pop((day, person)) for person in who if (day, person) in asks), None)
        if ask is None or ask["kind"] == "move":
            meetings.append((day, ask["hour"] if ask else hour, frozenset(who)))
        if ask is not None:
            hours |= dict.fromkeys(who, ask["hour"] if ask["kind"] == "move" else hour)
    for (day, person), ask in asks.items():
        meetings.append((day, ask["hour"], frozenset([person])))
        hours[person] = ask["hour"]
    return Counter(meetings), hours if data["difficulty"] > 1 else {}
