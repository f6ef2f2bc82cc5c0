"""What must not count in each built-in environment: damage elsewhere, half of the work, a wrong source."""

import itertools
from collections import deque
from typing import Any

import pytest
from fakes import play

from envs.builtin.adventure import Adventure, State, World, best_walk
from envs.builtin.agenda import Agenda
from envs.builtin.desk import Desk
from envs.builtin.flaky_api import FlakyApi
from envs.builtin.library import Library
from envs.builtin.memory import Memory, MemoryConfig
from envs.builtin.sensors import Sensors
from envs.builtin.shell import Shell
from envs.builtin.sql import MAX_ROWS, Sql
from envs.builtin.units import Units
from envs.env import Env, Task
from envs.message import ToolCall
from envs.session import Deadlines, EnvSession
from envs.tool import ToolError


def act(tool: str, **arguments: Any) -> ToolCall:
    return ToolCall(tool, arguments)


async def solved(env_class: type[Env], data: dict[str, Any], *moves: Any) -> bool:
    """Whether these moves and then `done` solve the task; moves may end the episode themselves."""
    _, rewards = await play_out(env_class, data, *moves, "done")
    return rewards == {"solved": 1.0}


async def play_out(
    env_class: type[Env], data: dict[str, Any], *moves: Any
) -> tuple[list[str], dict[str, float]]:
    session = EnvSession(env_class(env_class.config_type()), Deadlines())
    said = await play(session, Task(env_class.name, data), moves)
    rewards = await session.score()
    await session.close()
    return said, rewards


SHELL = {
    "difficulty": 2, "kind": "mv_about", "folders": ["barn", "den"], "to": "den", "new": "mill",
    "files": {"barn/fig": "ada", "barn/pen": "ben", "den/cup": "leo"}, "path": "barn/fig",
    "word": "ada", "other": "zoe",
}  # fmt: skip
MOVED = act("mv", path="barn/fig", to="den")


@pytest.mark.parametrize(
    ("moves", "counts"),
    [
        ([MOVED], True),
        ([act("mv", path="/barn/fig/", to="./den/fig")], True),
        ([act("cp", path="barn/fig", to="den"), act("rm", path="barn/fig")], True),
        ([act("write", path="den/fig", text="ada"), act("rm", path="barn/fig")], True),
        ([act("cp", path="barn/fig", to="den")], False),
        ([act("mv", path="barn/fig", to="den/cup")], False),
        ([MOVED, act("write", path="barn/pen", text="zoe")], False),
        ([MOVED, act("rm", path="den/cup")], False),
        ([MOVED, act("mkdir", path="attic")], False),
        ([MOVED, act("mkdir", path="attic"), act("rm", path="attic")], True),
    ],
    ids=[
        "moved", "other words for it", "copied and deleted", "written and deleted", "only copied",
        "over another file", "another file changed", "another file lost", "a folder left", "tidied",
    ],
)  # fmt: skip
async def test_shell_judges_the_whole_tree_and_no_way_to_it(moves, counts):
    assert await solved(Shell, SHELL, *moves) is counts


async def test_shell_has_no_way_out_of_its_tree_and_no_mixing_of_files_and_folders():
    said, _ = await play_out(
        Shell,
        SHELL,
        act("cat", path="../../etc/passwd"),
        act("cat", path="/etc/passwd"),
        act("cat", path="barn"),
        act("write", path="barn", text="x"),
        act("write", path="barn/fig/x", text="x"),
        act("mv", path="barn/fig", to="attic/fig"),
        act("mkdir", path="barn/fig"),
        act("rm", path="barn"),
        act("ls", path=""),
        act("grep", word="ad"),
    )
    assert said == [
        "error: no .. in a path",
        "error: no file 'etc/passwd'",
        "error: 'barn' is a folder",
        "error: 'barn' is a folder",
        "error: no folder 'barn/fig'",
        "error: no folder 'attic'",
        "error: 'barn/fig' is a file",
        "error: 'barn' is a folder",
        "barn den",
        "none",
    ]


SQL = {
    "difficulty": 2, "kind": "raise_below", "words": {"n": 5, "limit": 10},
    "tables": {"goods": [["fig", 20, 9], ["pen", 30, 10], ["cup", 40, 3]]},
}  # fmt: skip
RAISED = act("execute", sql="update goods set price=price+5 where stock<10")


@pytest.mark.parametrize(
    ("moves", "counts"),
    [
        ([RAISED], True),
        (
            [
                act("execute", sql="delete from goods where stock<10"),
                act("execute", sql="insert into goods values ('cup', '45', 3), ('fig', 25, 9)"),
            ],
            True,
        ),
        ([RAISED, RAISED], False),
        ([act("execute", sql="update goods set price=price+5")], False),
        ([RAISED, act("execute", sql="insert into goods values ('fig', 25, 9)")], False),
        ([RAISED, act("execute", sql="create table mine (x)")], False),
        ([RAISED, act("execute", sql="drop table goods")], False),
        ([act("query", sql="update goods set price=price+5 where stock<10 returning price")], False),
        ([RAISED, act("execute", sql="update goods set name=cast(x'ff' as text)")], False),
    ],
    ids=[
        "right", "deleted and inserted", "twice", "all rows", "a row twice", "a table left",
        "the table lost", "by a query", "no text at all",
    ],
)  # fmt: skip
async def test_sql_judges_every_row_of_every_table(moves, counts):
    assert await solved(Sql, SQL, *moves) is counts


ENDLESS = "with recursive n(x) as (select 1 union all select x+1 from n) select count(*) from n"


@pytest.mark.parametrize(
    ("tool", "sql"),
    [
        ("execute", "attach database '{file}' as other"),
        ("execute", "vacuum into '{file}'"),
        ("execute", "pragma writable_schema = 1"),
        ("execute", "create trigger t after insert on goods begin delete from goods; end"),
        ("execute", "create virtual table t using fts5(x)"),
        ("execute", "select load_extension('{file}')"),
        ("execute", "insert into goods select 'x', length(randomblob(100000000)), 1"),
        ("execute", "delete from goods; delete from goods"),
        ("query", "delete from goods"),
        ("query", "create table t (x)"),
        ("query", ENDLESS),
        ("execute", f"insert into goods {ENDLESS}, 1, 2"),
        ("query", "selec"),
        ("query", "select \x00"),
    ],
)
async def test_sql_refuses_what_leaves_the_tables_or_does_not_end(tmp_path, tool, sql):
    file = tmp_path / "other.db"
    said, _ = await play_out(Sql, SQL, act(tool, sql=sql.format(file=file)), RAISED)
    assert said[0].startswith("error: ")
    assert said[1] == "2 rows", "the tables are as they were"
    assert not file.exists()


async def test_sql_shows_so_many_rows_and_says_that_there_are_more():
    many = "select 1 from goods a, goods b, goods c"
    said, _ = await play_out(Sql, SQL, act("query", sql=many))
    assert said == ["\n".join(["1"] * MAX_ROWS + ["..."])]


AGENDA = {
    "difficulty": 2,
    "events": [[31, "mon", 9, ["ada", "ben"]], [32, "mon", 10, ["leo"]]],
    "asks": [{"day": "mon", "kind": "move", "who": "ada", "hour": 11}],
}
MEETING = act("move", event=31, hour=11)
TOLD = [act("mail", to="ada", text="now at 11"), act("mail", to="ben", text="11")]


@pytest.mark.parametrize(
    ("moves", "counts"),
    [
        ([MEETING, *TOLD], True),
        ([act("cancel", event=31), act("book", day="mon", hour=11, people="ben, ada"), *TOLD], True),
        ([MEETING, TOLD[0]], False),
        ([MEETING, *TOLD, act("mail", to="leo", text="11")], False),
        ([MEETING, *TOLD, TOLD[0]], False),
        ([MEETING, TOLD[0], act("mail", to="ben", text="at 112 or 1")], False),
        ([act("move", event=31, hour=12), *TOLD], False),
        ([MEETING, *TOLD, act("cancel", event=32)], False),
        ([act("book", day="mon", hour=11, people="ada ben"), *TOLD], False),
        (TOLD, False),
    ],
    ids=[
        "moved", "cancelled and booked", "one not told", "a stranger told", "told twice",
        "wrong hour told", "not the first free hour", "another meeting lost", "met twice",
        "told only",
    ],
)  # fmt: skip
async def test_agenda_judges_the_calendar_and_the_outbox(moves, counts):
    assert await solved(Agenda, AGENDA, *moves) is counts


async def test_agenda_refuses_taken_hours_and_unknown_people():
    said, _ = await play_out(
        Agenda,
        AGENDA,
        act("move", event=31, hour=10),
        act("book", day="mon", hour=17, people="ada"),
        act("book", day="mon", hour=12, people="nobody"),
        act("book", day="mon", hour=12, people=" "),
        act("mail", to="nobody", text="11"),
    )
    assert said == [
        "error: mon 10 is taken",
        "error: days are mon to fri, hours 9 to 16",
        "error: unknown people 'nobody'",
        "error: unknown people ' '",
        "error: unknown person 'nobody'",
    ]


def ticket(price: int, days: int, rank: str = "plain", state: str = "new", granted: bool = True):
    words = {"person": "ada", "thing": "fig", "rank": rank, "state": state}
    return {**words, "price": price, "days": days, "granted": granted}


DESK = {
    "difficulty": 3,
    "rules": {"days": 20, "gold_days": 40, "limit": 100},
    "asked": [1, 2, 3],
    "tickets": {
        "1": ticket(150, 30, rank="gold", granted=False),
        "2": ticket(140, 20, state="used"),
        "3": ticket(60, 21),
        "4": ticket(60, 1),
    },
}
ASKED, DENIED = act("approval", ticket=1), act("refuse", ticket=1)
HALF, LATE = act("refund", ticket=2, amount=70), act("refuse", ticket=3)


@pytest.mark.parametrize(
    ("moves", "counts"),
    [
        ([ASKED, DENIED, HALF, LATE], True),
        ([LATE, HALF, ASKED, DENIED], True),
        ([DENIED, HALF, LATE], False),
        ([ASKED, act("refund", ticket=1, amount=150), HALF, LATE], False),
        ([ASKED, DENIED, act("refund", ticket=2, amount=140), LATE], False),
        ([ASKED, DENIED, HALF, act("refund", ticket=3, amount=60)], False),
        ([ASKED, DENIED, HALF], False),
        ([ASKED, DENIED, HALF, LATE, act("refund", ticket=4, amount=60)], False),
        ([ASKED, DENIED, act("approval", ticket=2), HALF, LATE], False),
        ([ASKED, DENIED, HALF, HALF, LATE], True),
    ],
    ids=[
        "by the rules", "in another order", "refused unasked", "refunded though denied",
        "in full though used", "too late", "one left open", "one nobody asked for",
        "approval nobody needs", "a second refund is refused",
    ],
)  # fmt: skip
async def test_desk_judges_every_ticket_and_the_ledger(moves, counts):
    assert await solved(Desk, DESK, *moves) is counts


async def test_desk_acts_once_on_a_ticket_and_never_pays_more_than_the_price():
    said, _ = await play_out(
        Desk,
        DESK,
        act("refund", ticket=2, amount=141),
        act("refund", ticket=2, amount=0),
        HALF,
        HALF,
        act("refuse", ticket=2),
        act("approval", ticket=2),
        act("look", ticket=9),
    )
    amount = "error: the amount has to be above 0, and not above the price"
    closed = "error: ticket 2 is refunded"
    assert said == [amount, amount, "ok", closed, closed, closed, "error: no ticket 9"]


MEMORY = {
    "difficulty": 3,
    "store": {"ada": "31", "ben": "72", "leo": "11"},
    "lines": [
        ["change", "ada", "55"],
        ["forget", "ben", ""],
        ["ask", "ada", ""],
        ["ask", "ben", ""],
    ],
}
KEPT, FORGOTTEN = act("set", key="ada", value="55"), act("delete", key="ben")


@pytest.mark.parametrize(
    ("moves", "counts"),
    [
        ([KEPT, "ok", FORGOTTEN, "ok", "55", "?"], True),
        (["ok", "ok", KEPT, FORGOTTEN, "55", "?"], True),
        (["ok", "ok", "55", "?"], False),
        ([KEPT, "ok", "ok", "55", "?"], False),
        ([KEPT, "ok", FORGOTTEN, "ok", "31", "?"], False),
        ([KEPT, "ok", FORGOTTEN, "ok", "55", "72"], False),
        ([KEPT, "ok", FORGOTTEN, "ok", "55", act("delete", key="leo"), "?"], False),
        ([KEPT, "ok", FORGOTTEN, "ok", act("set", key="zoe", value="1"), "55", "?"], False),
    ],
    ids=[
        "kept", "kept late", "never kept", "not forgotten", "the old value", "of the forgotten",
        "another lost", "another invented",
    ],
)  # fmt: skip
async def test_memory_judges_every_answer_and_the_store(moves, counts):
    _, rewards = await play_out(Memory, MEMORY, *moves)
    assert rewards == {"solved": float(counts)}


async def test_memory_that_breaks_off_early_solves_nothing():
    moves = [KEPT, "ok", FORGOTTEN, "ok", "55"]
    said, rewards = await play_out(Memory, MEMORY, *moves)
    assert rewards == {"solved": 0.0}
    assert said[-3:] == ["ok", "ada ?", "ben ?"]


@pytest.mark.parametrize(
    ("moves", "solved", "by_turn"),
    [
        ([KEPT, "ok", FORGOTTEN, "ok", "55", "?"], 1.0, {4: 0.5, 5: 0.5}),
        ([KEPT, "ok", "ok", act("get", key="ada"), "55", "72"], 0.0, {4: 0.5, 5: 0.0}),
        (["ok", "ok", "31"], 0.0, {2: 0.0}),
    ],
    ids=["all right", "one right", "breaks off"],
)
async def test_memory_pays_each_right_answer_at_its_turn_where_it_is_asked_to(
    moves, solved, by_turn
):
    env = Memory(MemoryConfig(turn_rewards=True))
    session = EnvSession(env, Deadlines())
    await play(session, Task("memory", MEMORY), moves)
    found = await session.score()
    await session.close()
    assert env.reward_names == ("solved", "recalled") and Memory.reward_names == ("solved",)
    assert found == {"solved": solved, "recalled": sum(by_turn.values())}
    assert found.by_turn == {turn: {"recalled": part} for turn, part in by_turn.items()}


UNITS = {"difficulty": 2, "big": "km", "small": "m", "a": 3, "b": 40}


async def test_units_wants_a_number_that_a_tool_has_found():
    convert, add = act("convert", x="3", unit="km", to="m"), act("add", a="3000", b="40")
    for moves, counts in (
        ([convert, add, "3040"], True),
        ([act("times", a=2, b="1520"), " 3040\n"], True),
        (["3040"], False),
        ([convert, "3040"], False),
        ([convert, add, "3000"], False),
    ):
        _, rewards = await play_out(Units, UNITS, *moves)
        assert rewards == {"solved": float(counts)}, moves


async def test_units_refuses_to_mix_kinds_and_to_know_others():
    said, _ = await play_out(
        Units,
        UNITS,
        act("convert", x=3, unit="km", to="kg"),
        act("convert", x=3, unit="mile", to="m"),
        act("convert", x=90, unit="min", to="h"),
    )
    assert said == ["error: no way from 'km' to 'kg'", "error: no way from 'mile' to 'm'", "1.5"]


LIBRARY = {
    "difficulty": 3,
    "pages": {
        "p1": "people say that the mill is by a lake. the mill was built in 1834",
        "p2": "people say that the mill is by a lake. ada owns the mill",
        "p3": "people say that the barn is by a lake. the barn was built in 1834",
        "p4": "people say that the barn is by a lake. ben owns the barn",
    },
    "ask": "when was the place that ada owns built",
    "hops": [["owns", "ada"], ["built", "mill"]],
    "answer": "1834",
    "sources": ["p2", "p1"],
}


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        ("1834 [p2] [p1]", True),
        ("[p1, p2] 1834.", True),
        ("1834", False),
        ("1834 [p1]", False),
        ("1834 [p2] [p3]", False),
        ("1834 [p1] [p2] [p3]", False),
        ("1835 [p1] [p2]", False),
        ("not 1834 [p1] [p2]", False),
        ("1834 or 1835 [p1] [p2]", False),
    ],
)
async def test_library_judges_the_answer_and_exactly_the_pages_it_follows_from(answer, counts):
    _, rewards = await play_out(Library, LIBRARY, answer)
    assert rewards == {"solved": float(counts)}


async def test_library_ranks_pages_by_their_words_and_hides_the_end_of_long_ones():
    said, _ = await play_out(
        Library,
        LIBRARY,
        act("search", words="Ada OWNS"),
        act("search", words="nothing here"),
        act("read", page="p4"),
        act("read", page="p9"),
    )
    assert said[0].split("\n")[0] == "p2 people say that the mill is by ..."
    assert "p1" not in said[0], "a page without any of the words is none about them"
    assert said[1:] == ["none", LIBRARY["pages"]["p4"], "error: no page 'p9'"]


API = {
    "difficulty": 3, "goods": {"fig": "31", "pen": "32", "cup": "33", "hat": "34", "oar": "35"},
    "orders": {"fig": 3}, "failures": {"31": ["lost", "busy"]}, "busy_pages": [0, 1], "limit": 4,
    "pause": 5,
}  # fmt: skip


def order(item: str = "31", count: int = 3, key: str = "k") -> ToolCall:
    return act("order", item=item, count=count, key=key)


@pytest.mark.parametrize(
    ("moves", "counts"),
    [
        ([order(), order(), order()], True),
        ([order()], True),
        ([order(), order(key="l"), order(key="l")], False),
        ([order(), order(item="32", key="l")], False),
        ([order(), order(), order(), order(key="l")], False),
        ([order(count=4)], False),
        ([act("goods", page=1)], False),
    ],
    ids=[
        "again with the key", "placed, though the reply was lost", "again with another key",
        "another order too", "a second order", "wrong count", "none",
    ],
)  # fmt: skip
async def test_flaky_api_judges_the_orders_that_the_server_has(moves, counts):
    assert await solved(FlakyApi, API, *moves) is counts


async def test_flaky_api_fails_as_planned_limits_requests_and_turns_pages():
    said, _ = await play_out(
        FlakyApi,
        API,
        order(),
        order(),
        order(),
        order(count=4),
        order(),
        act("wait", seconds=4),
        act("wait", seconds=5),
        act("goods", page=1),
        act("goods", page=2),
        act("goods", page=2),
        act("goods", page=3),
    )
    assert said == [
        "error: 503",
        "error: 503",
        "ordered 3 31",
        "error: 409 this key had another order",
        "error: 429 wait 5",
        "error: wait 5",
        "ok",
        "fig 31; pen 32; cup 33; hat 34; next 2",
        "error: 503",
        "oar 35",
        "error: 404 pages are 1 to 2",
    ]


async def test_failures_of_one_item_are_not_used_up_by_another():
    said, _ = await play_out(FlakyApi, API, order(item="32", key="l"), order(), order(), order())
    assert said == ["ordered 3 32", "error: 503", "error: 503", "ordered 3 31"]


ADVENTURE = {
    "difficulty": 3, "ways": [["hall", "den"], ["hall", "vault"]], "locked": {"vault": "red"},
    "boxes": {"red box": "den"},
    "places": {"lamp": "vault", "red key": "red box", "pen": "den"},
    "start": "hall", "goal": "lamp", "target": "den",
}  # fmt: skip
WALK = best_walk(ADVENTURE)


def walked(*acts: tuple[str, str]) -> list[ToolCall]:
    argument = {"go": "room", "open": "what"}
    return [act(verb, **{argument.get(verb, "thing"): name}) for verb, name in acts]


@pytest.mark.parametrize(
    ("moves", "counts"),
    [
        (walked(*WALK), True),
        (walked(*WALK, ("drop", "red key")), True),
        (walked(*WALK[:-1]), False),
        (walked(*WALK[:-2], ("drop", "lamp")), False),
        (walked(*WALK, ("take", "pen")), False),
        (walked(*WALK, ("take", "pen"), ("go", "hall"), ("drop", "pen")), False),
    ],
    ids=["walked", "without the key", "still carried", "next door", "took more", "left more"],
)
async def test_adventure_judges_where_everything_lies(moves, counts):
    assert await solved(Adventure, ADVENTURE, *moves) is counts


async def test_adventure_wants_a_key_for_a_lock_and_a_way_for_a_walk():
    acts = [("go", "vault"), ("open", "vault"), ("go", "attic"), ("take", "red key")]
    acts += [("drop", "lamp"), ("open", "red box"), ("go", "den"), ("take", "red key")]
    said, _ = await play_out(Adventure, ADVENTURE, *walked(*acts), act("look"))
    assert said == [
        "error: vault is locked",
        "error: needs the red key",
        "error: no way to 'attic'",
        "error: no 'red key' here",
        "error: no 'lamp' in your hands",
        "error: no 'red box' to open here",
        "ok",
        "error: no 'red key' here",
        "den: pen, red box. ways: hall",
    ]


def test_the_best_walk_is_no_longer_than_any_that_solves_the_task():
    """Against a plain search over everything that can be done, things to be left alone included."""
    env = Adventure(Adventure.config_type(difficulty=2))
    for task in itertools.islice(env.tasks("train", 3), 10):
        assert len(best_walk(task.data)) == shortest(task.data), task


def shortest(data: dict[str, Any]) -> int:
    world = World(data)
    names = [*world.ways, *data["places"], *data["boxes"]]
    first = State(data["start"], tuple(data["places"].items()))
    lengths, waiting = {first: 0}, deque([first])
    while waiting:
        state = waiting.popleft()
        if world.is_solved(state):
            return lengths[state]
        for one in itertools.product(("go", "open", "take", "drop"), names):
            try:
                following = world.after(state, one)
            except ToolError:
                continue
            if following not in lengths:
                lengths[following] = lengths[state] + 1
                waiting.append(following)
    raise AssertionError("no way at all")


async def test_several_sensors_are_asked_for_one_value():
    data = {"difficulty": 2, "ask": "smallest", "sensors": [["a1", 300, 1], ["b2", 200, 0]]}
    reads = [act("read", sensor="a1"), act("read", sensor="a1"), act("read", sensor="b2")]
    said, rewards = await play_out(Sensors, data, *reads, "200")
    assert (said, rewards) == (["error: busy", "300", "200"], {"solved": 1.0})
    _, rewards = await play_out(Sensors, data, *reads, "300")
    assert rewards == {"solved": 0.0}
