"""A ticket desk with rules: refund, ask for approval, or refuse; an act cannot be taken back.

user: refund within 30 days, else refuse. ticket 812     assistant: look(ticket=812)
tool: fig 40 eur 18 days     assistant: refund(ticket=812, amount=40)     tool: ok     assistant: done

The opening states the rules, and their numbers differ from task to task. Judged on what became of every
ticket and on the ledger; to refuse is an act too, and leaving a ticket open is none. With `user`, the number
of the ticket is left out, and the user tells it when they are asked.
"""

import random

from pydantic import Field

from envs.builtin.words import PEOPLE, THINGS
from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool
from envs.user import Fact


class DeskConfig(EnvConfig):
    """1: a window of days. 2: also ranks, and used goods at half price. 3: also approval; three tickets.

    user: there is one, who says which tickets only when asked.
    """

    difficulty: int = Field(default=1, ge=1, le=3)
    user: bool = False


class Desk(Env):
    """Close tickets by the rules: refund what they allow, refuse the rest."""

    name = "desk"
    reward_names = ("solved",)
    config_type = DeskConfig
    config: DeskConfig
    difficulties = 3

    def __init__(self, config: EnvConfig) -> None:
        super().__init__(config)
        self.has_user = self.config.user

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        rules = {"days": rng.randrange(10, 41, 5)}
        if level > 1:
            rules["gold_days"] = rules["days"] + rng.randrange(10, 41, 10)
        if level > 2:
            rules["limit"] = rng.randrange(60, 141, 20)
        numbers = rng.sample(range(100, 1000), 2 + level)
        tickets = {str(number): _sample_ticket(rng, rules) for number in numbers}
        asked = numbers[:1] if level < 3 else numbers[:3]
        return {"difficulty": level, "rules": rules, "asked": asked, "tickets": tickets}

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.tickets = {int(n): dict(ticket) for n, ticket in task.data["tickets"].items()}
        self.status = dict.fromkeys(self.tickets, "open")
        self.asked: dict[int, str] = {}
        self.ledger: list[tuple[int, int]] = []
        rules = task.data["rules"]
        lines = ["refund within {days} days, else refuse"]
        if "gold_days" in rules:
            lines += ["gold within {gold_days} days", "used: half the price"]
        if "limit" in rules:
            lines += ["a refund above {limit}: only this needs approval, if denied refuse"]
        numbers = " ".join(map(str, task.data["asked"]))
        if not self.has_user:
            text = ". ".join([*lines, f"ticket {numbers}"]).format(**rules)
            return [Message("user", text)]
        mine = "my ticket" if len(task.data["asked"]) == 1 else "my tickets"
        facts = [Fact("ticket", numbers, ("tickets", "number", "numbers"))]
        said = await self.user.open(". ".join([*lines, mine]).format(**rules), facts)
        return [said.message]

    @tool(read_only=True)
    async def look(self, ticket: int) -> str:
        """read a ticket"""
        found = self._ticket(ticket)
        words = [found["person"], found["thing"], f"{found['price']} eur", f"{found['days']} days"]
        if self.task["difficulty"] > 1:
            words += [found["rank"], found["state"]]
        return " ".join([*words, self.status[ticket]])

    @tool
    async def approval(self, ticket: int) -> str:
        """ask the boss"""
        self._open(ticket)
        self.asked[ticket] = "granted" if self._ticket(ticket)["granted"] else "denied"
        return self.asked[ticket]

    @tool
    async def refund(self, ticket: int, amount: int) -> str:
        """pay back and close"""
        self._open(ticket)
        if not 0 < amount <= self._ticket(ticket)["price"]:
            raise ToolError("the amount has to be above 0, and not above the price")
        self.ledger.append((ticket, amount))
        self.status[ticket] = "refunded"
        return "ok"

    @tool
    async def refuse(self, ticket: int) -> str:
        """refuse and close"""
        self._open(ticket)
        self.status[ticket] = "refused"
        return "ok"

    def _ticket(self, number: int) -> JsonObject:
        if number not in self.tickets:
            raise ToolError(f"no ticket {number}")
        return self.tickets[number]

    def _open(self, number: int) -> None:
        self._ticket(number)
        if self.status[number] != "open":
            raise ToolError(f"ticket {number} is {self.status[number]}")

    async def score(self) -> dict[str, float]:
        refunds = {n: due(self.tickets[n], self.task["rules"]) for n in self.task["asked"]}
        limit = self.task["rules"].get("limit")
        asked = {n for n, amount in refunds.items() if limit is not None and amount > limit}
        refunds |= {n: 0 for n in asked if not self.tickets[n]["granted"]}
        status = dict.fromkeys(self.tickets, "open")
        status |= {n: "refunded" if amount else "refused" for n, amount in refunds.items()}
        ledger = sorted((n, amount) for n, amount in refunds.items() if amount)
        found = (self.status, sorted(self.ledger), set(self.asked))
        return {"solved": float(self.answer is not None and found == (status, ledger, asked))}

    def expert(self, task: Task) -> Expert:
        rules, asked = task.data["rules"], task.data["asked"]
        if self.has_user:
            told = [""]
            while not all(
                word.isdecimal() for word in told
            ):  # until the question is put that was meant
                told = (yield say("which ticket?"))[0].split() or [""]
            asked = [int(word) for word in told]
        for number in asked:
            words: list[str] = []
            while "eur" not in words:  # until the call is made that was meant
                words = (yield call("look", ticket=number))[0].split()
            ticket = {"price": int(words[2]), "days": int(words[4])}
            rank, state = words[6:8] if task.data["difficulty"] > 1 else ("plain", "new")
            amount = due({**ticket, "rank": rank, "state": state}, rules)
            if "limit" in rules and amount > rules["limit"]:
                answer = (yield call("approval", ticket=number))[0]
                amount = amount if answer == "granted" else 0
            if amount:
                yield call("refund", ticket=number, amount=amount)
            else:
                yield call("refuse", ticket=number)
        yield say("done")


def due(ticket: JsonObject, rules: dict[str, int]) -> int:
    """Refund that the rules give for a ticket, in eur, before any approval; 0 is a refusal."""
    gold = ticket["rank"] == "gold" and "gold_days" in rules
    if ticket["days"] > rules["gold_days" if gold else "days"]:
        return 0
    used = ticket["state"] == "used" and "gold_days" in rules
    return ticket["price"] // 2 if used else ticket["price"]


def _sample_ticket(rng: random.Random, rules: dict[str, int]) -> JsonObject:
    """A ticket about as often within as out of every rule."""
    end = rules.get("gold_days", rules["days"])
    return {
        "person": rng.choice(PEOPLE),
        "thing": rng.choice(THINGS),
        "price": 2 * rng.randint(5, rules.get("limit", 49)),
        "days": rng.choice((rng.randint(1, end), rng.randint(rules["days"] + 1, end + 20))),
        "rank": rng.choice(("plain", "gold")),
        "state": rng.choice(("new", "used")),
        "granted": rng.random() < 0.5,
    }
