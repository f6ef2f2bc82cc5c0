"""Questions over a small corpus: search (BM25), read, answer, and cite the pages that hold the answer.

user: when was the mill built ? answer, then [page] of each source
assistant: search(words=mill built)    tool: p3 the mill was built in 1834    assistant: 1834 [p3]

Judged on the answer and on the pages cited: all that it follows from, and no other.
"""

import random
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic import Field

from envs.builtin.words import PEOPLE, PLACES, THINGS
from envs.env import Env, EnvConfig, Expert, Task, call, say
from envs.message import JsonObject, Message
from envs.tool import ToolError, tool

if TYPE_CHECKING:
    from rank_bm25 import BM25Plus  # pyright: ignore[reportMissingTypeStubs]

# How many pages a search shows, and how many words of each.
SHOWN, SHOWN_WORDS = 3, 7
NUM_PLACES = {1: 3, 2: 8, 3: 6, 4: 6}
SIGHTS = ("a lake", "a hill", "the sea", "a road", "a wood", "a river")
# Each kind of question: how it is asked, the words to search for, and how a page answers it.
ASKED = {
    "built": "when was the {} built",
    "owner": "who owns the {}",
    "holds": "what does the {} hold",
}
WORDS = {
    "built": "built {}",
    "owner": "owns {}",
    "holds": "holds {}",
    "owns": "owns {}",
    "boss": "boss {}",
}
TOLD = {
    "built": "the {} was built in (.+)",
    "owner": "(.+) owns the {}",
    "holds": "the {} holds the (.+)",
    "owns": "{} owns the (.+)",
    "boss": "the boss of {} is (.+)",
}
CITATION = re.compile(r"\[([^\[\]]*)\]")


class LibraryConfig(EnvConfig):
    """1: one fact. 2: more pages, of places with alike names. 3: two facts, one after the other. 4: three."""

    difficulty: int = Field(default=1, ge=1, le=4)


class Library(Env):
    """Answer a question from a corpus, with the pages that say so."""

    name = "library"
    reward_names = ("solved",)
    config_type = LibraryConfig
    config: LibraryConfig
    difficulties = 4

    def sample(self, rng: random.Random) -> JsonObject:
        level = self.config.difficulty
        facts = _sample_facts(rng, level)
        rng.shuffle(facts)
        pages = {f"p{n}": _page(rng, fact, level) for n, fact in enumerate(facts, 1)}
        page_of = dict(zip(facts, pages, strict=True))
        kind = rng.choice(("built", "holds", "owner")[: 3 if level == 2 else 2])
        last = rng.choice([fact for fact in facts if fact[0] == kind])
        hops, sources, about = [[kind, last[1]]], [last], last[1]
        if level >= 3:
            owner = next(fact for fact in facts if fact[:2] == ("owner", last[1]))
            hops, sources = [["owns", owner[2]], *hops], [owner, *sources]
            about = f"place that {owner[2]} owns"
        if level == 4:
            boss = next(fact for fact in facts if fact[0] == "boss" and fact[2] == hops[0][1])
            hops, sources = [["boss", boss[1]], *hops], [boss, *sources]
            about = f"place that the boss of {boss[1]} owns"
        return {
            "difficulty": level,
            "pages": pages,
            "ask": ASKED[kind].format(about),
            "hops": hops,
            "answer": last[2],
            "sources": [page_of[fact] for fact in sources],
        }

    async def reset(self, task: Task) -> list[Message]:
        self.task = task.data
        self.pages: dict[str, str] = task.data["pages"]
        return [Message("user", f"{task.data['ask']} ? answer, then [page] of each source")]

    @cached_property
    def index(self) -> "BM25Plus":
        """The corpus, indexed at the first search: a library is loaded for it."""
        from rank_bm25 import BM25Plus  # pyright: ignore[reportMissingTypeStubs]

        return BM25Plus([_words(text) for text in self.pages.values()])

    # A plain function: loading the library blocks, so it runs in a thread.
    @tool(read_only=True)
    def search(self, words: str) -> str:
        """pages about words"""
        asked = _words(words)
        ranked: Any = self.index  # untyped
        scores = zip(ranked.get_scores(asked), self.pages.items(), strict=True)
        found = [
            (score, page, text) for score, (page, text) in scores if {*asked} & {*_words(text)}
        ]
        found.sort(key=lambda hit: -hit[0])
        return "\n".join(f"{page} {_cut(text)}" for _, page, text in found[:SHOWN]) or "none"

    @tool(read_only=True)
    async def read(self, page: str) -> str:
        """a whole page"""
        if page not in self.pages:
            raise ToolError(f"no page {page!r}")
        return self.pages[page]

    async def score(self) -> dict[str, float]:
        text = (self.answer or "").lower()
        cited = {page.strip() for part in CITATION.findall(text) for page in part.split(",")}
        answer = CITATION.sub("", text).strip(" .,\n").removeprefix("the ")
        solved = answer == self.task["answer"] and cited == set(self.task["sources"])
        return {"solved": float(solved)}

    def expert(self, task: Task) -> Expert:
        cited: list[str] = []
        found = ""
        for kind, about in task.data["hops"]:
            about = found or about  # what one page says is what the next is asked about
            hits = (yield call("search", words=WORDS[kind].format(about)))[0].split("\n")
            for hit in hits:
                page, _, text = hit.partition(" ")
                if text.endswith("..."):
                    text = (yield call("read", page=page))[0]
                told = re.fullmatch(TOLD[kind].format(about), text.split(". ")[-1])
                if told:
                    found = told[1]
                    cited.append(page)
                    break
        yield say(" ".join([found, *(f"[{page}]" for page in cited)]))


Fact = tuple[str, str, str]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _cut(text: str) -> str:
    words = text.split()
    return text if len(words) <= SHOWN_WORDS else " ".join(words[:SHOWN_WORDS]) + " ..."


def _sample_facts(rng: random.Random, level: int) -> list[Fact]:
    """(kind, about, value): every place has an owner, everybody's boss owns a place."""
    count = NUM_PLACES[level]
    places = rng.sample(PLACES, count)
    if level == 2:  # names that are easily mistaken for one another
        places = [f"{age} {place}" for place in places[: count // 2] for age in ("old", "new")]
    people, things = rng.sample(PEOPLE, 2 * count), rng.sample(THINGS, count)
    facts: list[Fact] = []
    for number, place in enumerate(places):
        facts.append(("built", place, str(rng.randint(1100, 1999))))
        facts.append(("holds", place, things[number]))
        if level > 1:
            facts.append(("owner", place, people[number]))
        if level == 4:
            facts.append(("boss", people[count + number], people[number]))
    return facts


def _page(rng: random.Random, fact: Fact, level: int) -> str:
    """A fact in words; from level 3 on what a place is comes after a sentence that hides it from a search."""
    kind, about, value = fact
    told = TOLD[kind].replace("(.+)", value).format(about)
    if level < 3 or kind == "boss":
        return told
    return f"people say that the {about} is by {rng.choice(SIGHTS)}. {told}"
