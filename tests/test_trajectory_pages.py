"""The pages about trajectories, as a user sees them, by NiceGUI's own simulation."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import scored, turn
from nicegui import ui
from nicegui.testing import User
from recorded_run import RecordedRun
from simulated_user import simulated_user

from envs.message import Message, ToolCall
from rl.dashboard.pages import frame, trajectory
from rl.dashboard.pages.frame import run_address
from rl.dashboard.pages.trajectories import trajectory_address
from rl.dashboard.pages.trajectory import replay_command
from rl.dashboard.trajectory_filter import TrajectoryFilter
from rl.dashboard.trajectory_index import find
from rl.env_tools.replay import find_record
from rollout.trajectory import Branch

pytestmark = pytest.mark.process

HOSTILE = "<img src=x onerror=alert(1)>"
LIST = "/run/demo/trajectories"


@pytest.fixture
def run(tmp_path):
    recorded = RecordedRun(tmp_path)
    yield recorded
    recorded.close()


@pytest.fixture
async def user(tmp_path, monkeypatch) -> AsyncIterator[User]:
    monkeypatch.setattr(frame, "LIVE_SECONDS", 0.05)
    async with simulated_user(tmp_path) as user:
        yield user


@pytest.fixture
def went(user, monkeypatch) -> list[str]:
    """Addresses that the page went to, or that it said it shows now."""
    addresses: list[str] = []
    for where, name in ((user.navigate, "to"), (user.navigate.history, "replace")):
        monkeypatch.setattr(where, name, lambda address: addresses.append(str(address)))
    return addresses


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.05)
    pytest.fail("it does not come")


def shown(user: User) -> list[str]:
    return [label.text for label in user.find(ui.label).elements]


def rows(user: User) -> list[dict]:
    try:
        found = user.find(ui.table).elements
    except AssertionError:
        return []
    return [row for table in found for row in table.rows]


def listed(user: User) -> list[str]:
    return [row["id"] for row in rows(user)]


def the(user: User, kind: type, label: str):
    """The one control of a kind with that label."""
    (found,) = [one for one in user.find(kind).elements if one.props.get("label") == label]
    return found


async def test_the_list_shows_the_newest_and_what_is_finished_meanwhile(user, run):
    await user.open(LIST)
    await user.should_see("No trajectories yet.")
    run.rewards("a", 0.0, 1.0)
    await until(lambda: listed(user) == ["a.1", "a.0"])
    run.group("b", [scored("b.0", stop="env_fault", fault="it broke")], env="units")
    await until(lambda: listed(user) == ["b.0", "a.1", "a.0"])
    await until(lambda: "3 trajectories" in shown(user))
    first = rows(user)[0]
    assert (first["reward"], first["fault"], first["stop"]) == ("", "it broke", "env_fault")
    assert first["address"] == "/run/demo/trajectory/b.0"
    assert first["group_address"] == "/run/demo/group/b"
    assert the(user, ui.select, "environment").options == {
        "": "any",
        "calculator": "calculator",
        "units": "units",
    }


async def test_an_address_opens_the_list_that_it_names(user, run):
    run.rewards("a", 0.0, 0.5, 1.0)
    run.rewards("b", 0.0, 0.5, 1.0, env="units")
    query = "env=units&reward_max=0.5&order=reward&stop=completed&tokens_min=x"
    await user.open(f"{LIST}?{query}")
    assert listed(user) == ["b.1", "b.0"]
    assert the(user, ui.select, "environment").value == "units"
    assert [field.value for field in user.find(ui.input).elements if field.value] == ["0.5"]
    (table,) = user.find(ui.table).elements
    assert (table.pagination["sortBy"], table.pagination["descending"]) == ("reward", True)
    assert rows(user)[0]["address"] == (
        "/run/demo/trajectory/b.1?env=units&stop=completed&reward_max=0.5&order=reward"
    )


async def test_filters_and_bars_narrow_the_list_and_the_address_follows(user, run, went):
    run.rewards("a", 0.0, 1 / 3, 1.0)
    run.rewards("b", 0.0, 0.5, 1.0, env="units")
    await user.open(LIST)
    the(user, ui.select, "environment").set_value("calculator")
    await until(lambda: listed(user) == ["a.2", "a.1", "a.0"])
    (chart,) = user.find(ui.echart).elements
    assert [one["value"] for one in chart.options["series"][0]["data"]] == [1, 1, 1]
    click(user, 1)
    await until(lambda: listed(user) == ["a.1"])
    bright = [one["itemStyle"]["opacity"] for one in chart.options["series"][0]["data"]]
    assert bright == [0.25, 1.0, 0.25]
    assert went[-1] == f"{LIST}?env=calculator&reward_min={1 / 3}&reward_max={1 / 3}"
    click(user, 1)
    await until(lambda: listed(user) == ["a.2", "a.1", "a.0"])
    user.find("clear").click()
    await until(lambda: len(listed(user)) == 6)
    assert went[-1] == LIST
    the(user, ui.input, "version").set_value("99")
    await user.should_see("No trajectory is like that.", retries=50)


def click(user: User, bar: int) -> None:
    """Choose a bar of the histogram."""
    others = ("seriesType", "seriesIndex", "seriesName", "name", "data", "value")
    args = {"componentType": "series", "dataIndex": bar, **dict.fromkeys(others)}
    user.find(ui.echart).trigger("componentClick", args)


async def test_the_table_sorts_and_pages_on_the_server(user, run, went):
    run.rewards("a", *(n / 100 for n in range(60)))
    await user.open(LIST)
    assert len(listed(user)) == 50
    wanted = {"page": 2, "rowsPerPage": 50, "sortBy": "reward", "descending": False}
    user.find(ui.table).trigger("request", {"pagination": wanted})
    await until(lambda: listed(user) == [f"a.{n}" for n in range(50, 60)])
    assert went[-1] == f"{LIST}?order=-reward&page=2"
    the(user, ui.input, "reward").set_value("0.55")
    await until(lambda: listed(user) == [f"a.{n}" for n in range(55, 60)])
    assert went[-1] == f"{LIST}?reward_min=0.55&order=-reward"


async def test_an_index_that_cannot_be_read_is_said(user, run):
    (run.path / "trajectories.sqlite-wal").unlink(missing_ok=True)
    (run.path / "trajectories.sqlite").write_bytes(b"no database" * 99)
    for address in (LIST, "/run/demo/group/a", "/run/demo/trajectory/a.0"):
        await user.open(address)
        await user.should_see("trajectories.sqlite cannot be read now")


async def test_a_group_is_side_by_side(user, run):
    wrote = [
        turn(text=text, observations=(Message("tool", f"to {text}"),)) for text in ("one", "two")
    ]
    run.group("a", [scored(f"a.{n}", float(n), turns=[wrote[n]]) for n in (0, 1)])
    await user.open("/run/demo/group/a")
    assert {"Group a", "6 times 7 ?", "reward 0", "reward 1", "one", "two", "to two"} <= set(
        shown(user)
    )
    links = {link.text: link.props["href"] for link in user.find(ui.link).elements}
    assert links["a.1"] == "/run/demo/trajectory/a.1"
    await user.open("/run/demo/group/nothing")
    await user.should_see("There is no group 'nothing' in the index.")


def conversation(id: str = "a.0"):
    """Two turns, the first with a call and its result; ended by a fault with its traceback."""
    calls = (ToolCall("add", {"a": "2", "b": "3"}),)
    first = turn(
        (1, 2), (3, 4), calls=calls, text="", observations=(Message("tool", "5", name="add"),)
    )
    one = scored(id, turns=[first, turn((5,), (6, 7), text="the answer")], fault="it broke")
    return replace(one, trajectory=replace(one.trajectory, trace="Traceback of it"))


async def test_a_trajectory_is_shown_turn_by_turn(user, run):
    run.group("a", [conversation()])
    await user.open("/run/demo/trajectory/a.0")
    said = shown(user)
    for text in ("6 times 7 ?", "add(a=2, b=3)", "tool add", "5", "the answer", "it broke"):
        assert text in said
    assert "Traceback of it" in said
    assert f"dorado env replay {run.path}/a.0" in said
    await user.open("/run/demo/trajectory/a.0?turn=2")
    assert "the answer" in shown(user) and "6 times 7 ?" not in shown(user)


async def test_segments_are_told_apart_and_thoughts_and_logs_are_folded(user, run):
    one = conversation()
    first, second = one.trajectory.turns
    turns = (replace(first, thought="a thought"), replace(second, segment=1, begins="branch"))
    branch = Branch(1, 0, 4, "user", "Summary: <b>")
    played = replace(one.trajectory, turns=turns, branches=(branch,), log="agent: done")
    run.group("a", [replace(one, trajectory=played)])
    await user.open("/run/demo/trajectory/a.0")
    said = shown(user)
    assert "segments: 2, each a sample of its own" in said
    head = "segment 1 (sample a.0~1): the agent rewrote its history; it branches from segment 0 at "
    assert f"{head}message 4, of user: Summary: <b>" in said
    folds = {one.props["label"]: one.value for one in user.find(ui.expansion).elements}
    assert folds == {
        "thought of turn 1, 9 characters": False,
        "the agent's own log, 11 characters": False,
    }
    assert {"a thought", "agent: done"} <= set(said)


async def test_tokens_are_coloured_by_what_is_chosen_and_the_address_follows(user, run, went):
    run.group("a", [conversation()])
    run.learned(
        "a.0",
        step=2,
        advantages=[0.5] * 4,
        learner_logprobs=[-1.0, -2.0, -3.0, -4.0],
        entropies=[0.1, 0.2, 0.3, 0.4],
    )
    await user.open("/run/demo/trajectory/a.0?view=entropy&turn=2&env=calculator")
    await user.should_see("Trained on in step 2.")
    await user.should_see("The run leads to no tokenizer, so these are ids.")
    assert [row["text"] for row in rows(user)] == ["5", "6", "7"]
    assert rows(user)[2]["style"] == "background: rgba(0,114,178,0.65)"
    assert "entropy 0.4" in rows(user)[2]["hover"]
    (toggle,) = user.find(ui.toggle).elements
    toggle.set_value("ids")
    await user.should_see("turn 2, completion_ids, 2", retries=50)
    await user.should_see("[6, 7]")
    assert went[-1] == "/run/demo/trajectory/a.0?turn=2&view=ids&env=calculator"


async def test_one_that_was_not_trained_on_says_why(user, run):
    run.rewards("a", 1.0, dropped="zero_variance")
    await user.open("/run/demo/trajectory/a.0?view=advantage")
    await user.should_see("It was not trained on (filtered:zero_variance).")
    assert {row["style"] for row in rows(user)} == {""}


async def test_keys_lead_through_the_filter_and_keep_the_view(user, run, went):
    run.rewards("a", 0.0, 1.0, 0.0, 1.0)
    await user.open("/run/demo/trajectory/a.3?view=ids&reward_min=1")
    press(user, "j")
    await until(lambda: went == ["/run/demo/trajectory/a.1?view=ids&reward_min=1"])
    press(user, "k")
    await user.should_see("This is the first one of the filter.", retries=50)
    press(user, "j", ctrl=True)
    press(user, "x")
    user.find("next (j)").click()
    await until(lambda: len(went) == 2)
    assert went[1] == went[0]


def press(user: User, key: str, *, ctrl: bool = False) -> None:
    held = {"ctrlKey": ctrl, "altKey": False, "metaKey": False, "shiftKey": False}
    args = {"action": "keydown", "repeat": False, "key": key, "code": key, "location": 0, **held}
    user.find(ui.keyboard).trigger("key", args)


async def test_one_that_is_not_finished_yet_shows_by_itself(user, run, monkeypatch):
    again: list[bool] = []
    monkeypatch.setattr(user.navigate, "reload", lambda: again.append(True))
    await user.open("/run/demo/trajectory/a.0")
    await user.should_see("There is no trajectory 'a.0' in the index.")
    assert not again
    run.rewards("a", 1.0)
    await until(lambda: bool(again))


async def test_a_record_that_is_gone_is_a_sentence_and_the_index_is_shown(user, run):
    run.rewards("a", 0.25)
    (run.path / "trajectories" / "controller-0.jsonl").unlink()
    await user.open("/run/demo/trajectory/a.0")
    await user.should_see("trajectories/controller-0.jsonl is not there; the index still names it.")
    assert "0.25" in shown(user)
    await user.open("/run/demo/group/a")
    await user.should_see("is not there; the index still names it.")


async def test_what_is_hostile_is_text_on_every_page(user, run):
    hostile = turn(
        text=HOSTILE + "x" * 2**20,
        calls=(ToolCall(HOSTILE, {HOSTILE: HOSTILE}),),
        observations=(Message("tool", HOSTILE, name=HOSTILE),),
        engine=HOSTILE,
    )
    one = scored(HOSTILE, turns=[hostile], stop=HOSTILE, fault=HOSTILE)  # pyright: ignore[reportArgumentType]
    changed = replace(one.trajectory, trace=HOSTILE, notes={HOSTILE: HOSTILE}, opening=())
    run.group(
        HOSTILE,
        [replace(one, trajectory=changed, rewards={HOSTILE: 1.0})],
        env=HOSTILE,
        split=HOSTILE,
    )
    views = [[("view", kind)] for kind in trajectory._VIEWS]
    addresses = [
        run_address("demo", "trajectories"),
        run_address("demo", "trajectories", TrajectoryFilter(env=HOSTILE, outcome=HOSTILE).query),
        run_address("demo", f"group/{HOSTILE}"),
        *(trajectory_address("demo", HOSTILE, view) for view in views),
        trajectory_address("demo", f"no {HOSTILE}", [("view", HOSTILE)]),
    ]
    for address in addresses:
        answer = await user.http_client.get(address)
        assert answer.status_code == 200
        assert "onerror" in answer.text and "<img" not in answer.text
        assert len(answer.text) < 2**19
    await user.open(trajectory_address("demo", HOSTILE, []))
    await user.should_see("characters more")


@pytest.mark.parametrize("page", ["trajectories", "group/a", "trajectory/a.0"])
async def test_a_run_that_is_not_there_says_so(user, page):
    await user.open(run_address("gone", page))
    await user.should_see("There is no run named 'gone'")


@pytest.mark.parametrize("id", ["a.0", "with/slash", "with space;rm"])
def test_the_command_finds_the_record_that_it_names(run, id):
    import shlex

    run.group("a", [scored(id)])
    hit = find(run.path, id)
    assert hit is not None
    *command, what = shlex.split(replay_command(run.path, hit))
    assert command == ["dorado", "env", "replay"]
    found, table, _ = find_record(what)
    assert (found.trajectory.id, table.id) == (id, "calculator")


def test_the_address_of_a_trajectory_is_quoted():
    assert (
        trajectory_address("a b", "x/y?z", [("env", "a&b")])
        == "/run/a%20b/trajectory/x%2Fy%3Fz?env=a%26b"
    )
    assert Path(trajectory_address("a", "b", [])).name == "b"
