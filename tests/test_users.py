"""Users of an episode: the script, what it tells and when, and environments that have to ask."""

import random
from itertools import islice

import pytest

from envs.builtin.desk import Desk
from envs.builtin.orders import Orders
from envs.message import Message
from envs.prompt import UnknownPrompt, prompt_in
from envs.session import EnvSession, demonstrate
from envs.user import THANKS, UNKNOWN, Fact, ScriptUser

FACTS = (
    Fact("customer", "mira", ("who", "name")),
    Fact("day", "mon", when="freely"),
    Fact("card number", "4711", when="never"),
)
WORDS = (
    "which",
    "who",
    "the",
    "customer",
    "is",
    "day",
    "card",
    "number",
    "4711",
    "mira?",
    "name?",
    "mon",
    "?",
    "done",
)


async def told(*texts: str) -> list[str]:
    user = ScriptUser()
    await user.open("move my order", FACTS)
    return [(await user.answer(text)).text for text in texts]


async def test_the_script_tells_what_it_is_asked_for_and_ends_where_nothing_is_asked():
    assert await told("Which customer?", "the WHO", "the name again?") == ["mira", THANKS, "mira"]
    assert await told("please tell me the name") == ["mira"]
    assert await told("who, and on which day?") == ["customer: mira, day: mon"]
    assert await told("which customers?", "your card number?", "what?") == [UNKNOWN] * 2 + [THANKS]
    user = ScriptUser()
    said = await user.open("move my order", FACTS)
    assert said.message == Message("user", "move my order", by="script")
    assert "by" not in said.message.as_chat()
    assert not (await user.answer("which?")).ended and (await user.answer("done")).ended


async def test_hidden_facts_are_told_only_when_asked_for():
    rng = random.Random(0)
    for _ in range(500):
        user = ScriptUser()
        asked, said = "", (await user.open("move my order", FACTS)).text
        assert not any(fact.told_in(said) for fact in FACTS)
        for _ in range(4):
            text = " ".join(rng.choices(WORDS, k=rng.randint(0, 6)))
            asked, answer = f"{asked} {text}", await user.answer(text)
            for fact in FACTS:
                named = fact.when != "never" and fact.named_in(text)
                assert named or not fact.told_in(answer.text), (text, answer)
            assert answer.ended is (answer.text == THANKS)


@pytest.mark.parametrize("kind", [Orders, Desk])
@pytest.mark.parametrize("difficulty", [1, 2, 3])
async def test_an_expert_that_asks_solves_and_one_that_does_not_cannot(kind, difficulty):
    config = kind.config_type(difficulty=difficulty, user=True)
    plain = kind(kind.config_type(difficulty=difficulty))
    for task, same in zip(
        islice(kind(config).tasks("train", 3), 8), plain.tasks("train", 3), strict=False
    ):
        assert task == same, "the tasks are those that it has without a user"
        opening, talked, rewards = await demonstrate(kind(config), task)
        assert rewards == {"solved": 1.0}
        [asked, answered] = [m for m in talked if m.by or "?" in m.content][:2]
        assert asked.content.endswith("?") and answered.by == "script"
        assert answered.content not in opening.messages[0].content
        assert talked[-1] == Message("user", THANKS, by="script")
        # The expert of the world without a user knows what this one has to ask for.
        _, _, rewards = await demonstrate(plain, task)
        assert rewards == {"solved": 1.0}


async def test_without_a_user_a_text_is_the_answer_and_with_one_it_is_what_they_end_on():
    env = Orders(Orders.config_type(user=True))
    session = EnvSession(env, env.deadlines)
    await session.open(next(env.tasks("train", 0)))
    assert not (await session.step("which customer?", ())).done and env.answer is None
    assert (await session.step("done", ())).done and env.answer == "done"
    await session.close()
    plain = Orders(Orders.config_type())
    assert not plain.has_user and (await plain.reply("which customer?")).done


def test_a_prompt_of_ones_own_that_is_no_utf_8_is_one_sentence(tmp_path):
    file = tmp_path / "part.md"
    file.write_bytes("\ufeffYou are {name}.".encode())
    assert prompt_in(tmp_path, "part", str(file)).text == "You are {name}."
    file.write_bytes(b"caf\xe9")
    with pytest.raises(UnknownPrompt, match="no UTF-8"):
        prompt_in(tmp_path, "part", str(file))
