"""Generated worlds: domains as data, tasks from verified chains."""

import random
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from envs.env import Task
from envs.generated.books import BUSY, Refused
from envs.generated.chain import Step, play
from envs.generated.domain_file import (
    FOLDER,
    DomainMistake,
    builtin,
    builtin_names,
    load,
    read_domain,
)
from envs.generated.environment import Generated, GeneratedConfig, domain_called
from envs.generated.generator import Tally, make_task
from envs.generated.mutations import mutated
from envs.generated.population import populate
from envs.generated.rubric import difference, plain
from envs.generated.task_data import Difficulty, GeneratedTask
from envs.generated.tool_graph import structure
from envs.generated.verification import Rejected, said, satisfies, verified
from envs.generated.wording import system_text
from envs.generated.world import World
from envs.session import demonstrate

CLINIC = builtin("clinic")


def a_world(**rows):
    """A clinic with one row of each entity, changed as said: `a_world(patient={"owed": 40})`."""
    known = {
        "doctor": {"id": "D1", "name": "Ada Berg", "field": "eyes", "on_duty": "yes"},
        "patient": {
            "id": "P1", "name": "Ben Falk", "phone": 1234, "doctor": "D1", "state": "active",
            "owed": 0,
        },
        "slot": {"id": "S1", "doctor": "D1", "day": 3, "hour": 9, "state": "free"},
        "visit": {
            "id": "V1", "patient": "P1", "slot": "S1", "reason": "pain", "state": "booked", "fee": 0
        },
        "prescription": {"id": "R1", "patient": "P1", "drug": "zinc", "days": 5, "state": "open"},
    }  # fmt: skip
    return World(CLINIC, {name: [row | rows.get(name, {})] for name, row in known.items()})


def test_a_call_checks_what_it_needs_and_changes_what_it_says():
    world = a_world()
    assert world.call("book_visit", {"patient": "P1", "slot": "S1", "reason": "check"})["ok"]
    assert difference(world) == (
        "new visit: patient = P1, slot = S1, reason = check, state = booked, fee = 0",
        "slot S1: state = taken",
    )
    with pytest.raises(Refused, match=r"slot.state = free, and there it is taken"):
        world.call("book_visit", {"patient": "P1", "slot": "S1", "reason": "check"})
    with pytest.raises(Refused, match="no patient 'P9'"):
        world.call("book_visit", {"patient": "P9", "slot": "S1", "reason": "check"})


def test_a_refused_call_changes_nothing():
    world = a_world(visit={"state": "arrived"}, patient={"owed": 880})
    with pytest.raises(Refused):
        world.call("end_visit", {"visit": "V1", "fee": 30})
    assert difference(world) == ()


def test_time_brings_what_a_call_began():
    world = a_world()
    world.call("send_prescription", {"prescription": "R1"})
    with pytest.raises(Refused, match="sent"):
        world.call("hand_out", {"prescription": "R1"})
    world.call("wait", {"hours": 6})
    world.call("hand_out", {"prescription": "R1"})
    assert difference(world) == ("prescription R1: state = collected",)


def test_a_permission_has_to_be_granted_and_a_rule_is_seen_to_be_broken():
    world = a_world(patient={"owed": 50})
    with pytest.raises(Refused, match="403"):
        world.call("waive_debt", {"patient": "P1"})
    world.call("request_access", {"permission": "manager"})
    world.call("waive_debt", {"patient": "P1"})
    assert "waive_debt P1: not confirmed" in difference(world)
    assert "permission manager: granted" in difference(world)


def test_a_busy_tool_does_nothing_and_half_a_list():
    rows = {name: a_world().rows(name) for name in CLINIC.entities}
    rows["visit"].append(rows["visit"][0] | {"id": "V2", "reason": "check"})
    world = World(CLINIC, rows, faults={"check_in": 1, "cancel_visits": 1})
    assert world.call("check_in", {"visit": "V1"}) == {"error": BUSY}
    found = world.call("cancel_visits", {"visits": ["V1", "V2"]})
    assert found == {"done": ["V1"], "not_done": {"V2": BUSY}}


def test_what_was_rewound_has_not_been():
    world = a_world()
    books = world.mark()
    world.call("send_prescription", {"prescription": "R1"})
    world.call("create_patient", {"name": "Nora Berg", "phone": 2000, "doctor": "D1"})
    world.rewind(books)
    assert difference(world) == ()
    assert len(world.rows("patient")) == 1


@pytest.mark.heavy
@pytest.mark.parametrize("name", builtin_names())
def test_every_domain_makes_tasks_that_hold_what_they_promise(name):
    domain, tally = builtin(name), Tally()
    assert len(domain.tools) >= 20
    for chain in (1, 3):
        task = make_task(domain, "test", Difficulty(chain=chain, hidden=1, noise=1), tally)
        world = task.world(domain)
        assert satisfies(world, task, task.steps)
        assert not task.rubric.holds(world, "done")
        assert not any(satisfies(world, task, task.steps, absent=i) for i in range(len(task.steps)))
        assert GeneratedTask.of_json(domain, task.as_json()) == task


def test_no_domain_is_another_one_renamed():
    assert len({structure(builtin(name)) for name in builtin_names()}) == len(builtin_names())
    renamed = (FOLDER / "clinic.toml").read_text(encoding="utf-8").replace("patient", "guest")
    assert structure(read_domain(tomllib.loads(renamed))) == structure(CLINIC)


def test_the_same_seed_makes_the_same_task():
    level = Difficulty(chain=2)
    assert make_task(CLINIC, "7", level) == make_task(CLINIC, "7", level)
    assert make_task(CLINIC, "7", level) != make_task(CLINIC, "8", level)


async def test_a_task_can_offer_a_part_of_the_tools_with_which_it_was_verified():
    level = Difficulty(chain=2, tools=9, hidden=1)
    some = [make_task(CLINIC, str(seed), level) for seed in range(6)]
    assert len({task.offers for task in some}) > 1
    for task in some:
        needed = {step.tool for step in task.steps} | {"ask_user"}
        assert needed <= set(task.offers)
        assert len(task.offers) <= 9
        # What its rules name is there, and no rule speaks of what is not.
        tools = [CLINIC.tools[name] for name in task.offers]
        assert ("confirm" in task.offers) >= any(tool.confirm for tool in tools)
        assert ("request_access" in task.offers) >= any(tool.permission for tool in tools)
        assert not [
            a.name for a in CLINIC.acts if a.name not in task.offers and a.name in task.system
        ]
        world = task.world(CLINIC)
        assert satisfies(world, task, task.steps)
        missing = next(name for name in CLINIC.tools if name not in task.offers)
        with pytest.raises(Refused, match=f"there is no tool '{missing}'"):
            world.call(missing, {})
        assert GeneratedTask.of_json(CLINIC, task.as_json()) == task
    env = Generated(GeneratedConfig(domains=("clinic",), task=level))
    task = next(env.tasks("train", 0))
    opening, _, rewards = await demonstrate(env, task)
    assert rewards == {"solved": 1.0}
    assert tuple(tool.name for tool in opening.tools) == env.generated(task).offers
    # A chain that needs more has more, and a number beyond the domain's offers all.
    assert len(make_task(CLINIC, "0", Difficulty(chain=3, tools=1)).offers) > 3
    assert make_task(CLINIC, "0", Difficulty(tools=200)).offers == ()


def test_mutations_of_a_verified_task_are_rejected():
    task = make_task(CLINIC, "m", Difficulty(chain=3))
    world = task.world(CLINIC)
    found = list(mutated(world, task, random.Random(1), 10))
    assert len(found) == 10
    assert not any(passes for _, passes in found)
    assert task.rubric.holds(world, said(task, play(world, task.steps)))


def test_a_task_is_not_accepted_for_a_reason():
    task = make_task(CLINIC, "m", Difficulty(chain=3))
    rubric, steps = task.rubric, task.steps
    twice = next(row for row in task.rows["doctor"]) | {"id": "D1"}
    wrong = {
        "nothing to do": replace(task, rubric=replace(rubric, changes=())),
        "gold fails": replace(task, rubric=replace(rubric, changes=rubric.changes[1:])),
        "step not needed": replace(task, steps=(*steps, Step("list_doctors", {"page": 1}))),
        "ambiguous words": replace(
            task, rows=task.rows | {"doctor": [*task.rows["doctor"], twice]}
        ),
    }
    for reason, one in wrong.items():
        with pytest.raises(Rejected, match=reason):
            verified(CLINIC, one, random.Random(0))


def test_a_value_that_a_later_act_sets_again_is_asked_for_in_vain():
    task = make_task(CLINIC, "m", Difficulty(chain=3))
    made = {"name": "Mira Lund", "phone": 1111, "doctor": task.rows["doctor"][0]["id"]}
    create = Step("create_patient", made)
    change = Step("change_patient_phone", {"patient": {"from": 0, "get": "patient"}, "phone": 2222})
    for steps, seen in (((create,), True), ((create, change), False)):
        world = task.world(CLINIC)
        play(world, steps)
        rubric = replace(task.rubric, changes=tuple(difference(world)), answer="")
        one = replace(task, steps=steps, rubric=rubric, answer=())
        if seen:
            verified(CLINIC, one, random.Random(0))
        else:
            with pytest.raises(Rejected, match="argument unseen: create_patient, phone"):
                verified(CLINIC, one, random.Random(0))


def test_tools_used_often_are_drawn_less():
    tally = Tally()
    for i in range(12):
        make_task(CLINIC, str(i), Difficulty(chain=2), tally)
    counts = Counter(tally.used)
    assert len(counts) >= 12
    assert max(counts.values()) <= 5


MISTAKES = [
    (("tool", "check_in", "needs"), ["visit.colour = red"], "visit has no field colour"),
    (("tool", "check_in", "needs"), ["visit.state = flown"], "'flown' is none of state's choices"),
    (("tool", "check_in", "effects"), ["visit.fee = state"], "neither a number nor an argument"),
    (("tool", "check_in", "effects"), [], "has to change something"),
    (("tool", "check_in", "ask"), ["check it in"], "does not say visit"),
    (("tool", "check_in", "args"), {"visit": "ref flight"}, "no entity 'flight'"),
    (("tool", "check_in", "needs"), ["visit.state"], "no comparison"),
    (("tool", "check_in", "effects"), ["new visit: patient = visit"], "patient is of patient"),
    (("entity", "patient", "by"), "surname", "fields by which people tell"),
    (("entity", "patient", "offers"), "find fly", "'fly' is none of"),
    (("entity", "slot", "offers"), "find get", "find needs a label"),
    (("entity", "patient", "fields"), {"name": "label aliens"}, "no pool of names"),
    (("entity", "visit", "count"), 900, "whole number from 2 to 40"),
    (("tool", "check_in", "colour"), "red", "unknown key 'colour'"),
    (("tool", "check_in", "ask"), ["check in {visit} of {nobody}"], "has {nobody}"),
    (("tool", "check_in", "ask"), ["check in {visit"], "expected '}'"),
    (
        ("entity", "patient", "fields"),
        {"name": "label people", "page": "int 1..9"},
        "call it otherwise",
    ),
    (("name",), "", "has to be a text"),
    (("name",), "../clinic", "is no name"),
    (("title",), "a clinic \ud800", "half a letter"),
    (
        ("entity", "patient", "fields"),
        {"name": "label people = Ada"},
        "a label can have no default",
    ),
    (
        ("entity", "patient", "fields"),
        {"name": "label people", "n": "int 1..9 = 10"},
        "not between 1 and 9",
    ),
    (
        ("entity", "patient", "fields"),
        {"name": "label people", "n": f"int 0..{10**20}"},
        "of 15 digits",
    ),
    (("entity", "patient", "fields"), {"name": "label people", "n": "choice 1|2"}, "1 is a number"),
    (
        ("entity", "patient", "fields"),
        {"name": "label people", "n": "choice now|then"},
        "'now' is taken",
    ),
    (
        ("entity", "patient", "fields"),
        {"name": "label people", **{f"n{i}": "int 1..9" for i in range(70)}},
        "too many",
    ),
    (("entity", "patient", "called"), "{{name}}", "does not say {name}"),
    (("entity", "patient", "offers"), ["find", "get"], "offers: it has to be a text"),
    (("entity", "patient", "update"), "name", "update: it has to be a list of texts"),
    (("entity", "patient", "update"), [["name"]], "update: it has to be a list of texts"),
    (("entity", "sqlite_x"), {}, "begin with sqlite_"),
    (
        ("entity", "pal"),
        {"fields": {"of": "ref pal"}, "by": "of", "offers": "list"},
        "in a circle, pal by pal",
    ),
    (("tool", "check_in", "args"), {"visit": "visit", "now": "int 1..9"}, "now is the hour"),
    (
        ("tool", "check_in", "args"),
        {"visit": "visit", "n": "int 1..9 = 3"},
        "only fields have defaults",
    ),
    (("tool", "check_in", "ask"), ["check in {visit:>999999999}"], "braces hold a name alone"),
    (("tool", "check_in", "ask"), ["check in {{visit}}"], "does not say visit"),
    (("tool", "check_in", "effects"), ["visit.fee += " + "9" * 5000], "longer than 400 letters"),
    (("tool", "check_in", "effects"), ["visit.patient.name = 5"], "5 is a number"),
    (
        ("tool", "check_in"),
        {
            "does": "x",
            "args": {"visit": "visit", "word": "text works"},
            "effects": ["visit.state = word"],
            "ask": ["{visit} {word}"],
        },
        "word can be any text",
    ),
    (("tool", "check_in", "effects"), ["after 300: visit.state = done"], "240 are the most"),
    (
        ("tool", "check_in"),
        {
            "does": "x",
            "args": {"visit": "visit", "who": "ref patient?"},
            "effects": ["visit.patient = who"],
            "ask": ["{visit} {who}"],
        },
        "who can be nothing, and patient is never without a value",
    ),
]


@pytest.mark.parametrize(("place", "value", "sentence"), MISTAKES)
def test_a_mistake_in_a_domain_is_one_sentence_with_its_place(place, value, sentence):
    data = tomllib.loads((FOLDER / "clinic.toml").read_text(encoding="utf-8"))
    at = data
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with pytest.raises(DomainMistake) as caught:
        read_domain(data)
    assert any(sentence in one for one in caught.value.mistakes), caught.value.mistakes
    if len(place) > 1:
        assert any(one.startswith(".".join(place[:2])) for one in caught.value.mistakes)


def test_ids_of_entities_whose_names_begin_alike_are_different():
    domain = load(FOLDER / "datacenter.toml")
    assert domain.entities["server"].prefix == domain.entities["service"].prefix
    for seed in range(50):
        rows = populate(domain, random.Random(seed), 8.0)
        ids = [row["id"] for some in rows.values() for row in some]
        assert len(set(ids)) == len(ids)


@pytest.mark.heavy
@pytest.mark.parametrize("noise", [0, 3])
async def test_the_expert_plays_to_the_full_score_with_severe_noise_too(noise):
    env = Generated(GeneratedConfig(domains=("clinic",), task=Difficulty(hidden=1, noise=1)))
    for task in [next(env.tasks("train", 3)), next(env.tasks("heldout", 3))]:
        env = Generated(env.config)
        _, said, rewards = await demonstrate(env, replace(task, noise=noise))
        assert rewards == {"solved": 1.0}, said


def test_held_out_domains_are_never_trained_on():
    env = Generated(GeneratedConfig(heldout="domain"))
    seen = {split: set() for split in ("train", "heldout")}
    for split, names in seen.items():
        tasks = env.tasks(split, 0)
        names |= {next(tasks).data["domain"] for _ in range(200)}
    assert seen["train"] | seen["heldout"] == set(builtin_names())
    assert not seen["train"] & seen["heldout"]


async def test_a_task_of_an_unknown_domain_is_refused():
    env = Generated(GeneratedConfig(domains=("clinic",)))
    with pytest.raises(ValueError, match="of domain 'moon'"):
        await env.reset(Task("generated", {"domain": "moon", "seed": "1"}))


def test_the_domain_of_the_documentation_makes_tasks():
    page = (Path(__file__).parent.parent / "docs" / "worlds.md").read_text(encoding="utf-8")
    kiosk = page.split("```toml\nname = ")[1].split("```")[0]
    domain = read_domain(tomllib.loads(f"name = {kiosk}"))
    assert make_task(domain, "0", Difficulty(chain=2)).rubric.changes


def test_sampled_domains_have_the_tools_that_were_asked_for_and_differ():
    sampled = [
        domain_called(f"sampled:{i}:{tools}") for i, tools in enumerate([20, 30, 45, 65, 90])
    ]
    assert all(
        len(one.tools) >= tools for one, tools in zip(sampled, [20, 30, 45, 65, 90], strict=True)
    )
    known = [*(builtin(name) for name in builtin_names()), *sampled]
    assert len({structure(one) for one in known}) == len(known)
    assert make_task(sampled[3], "0", Difficulty(chain=3)).domain == "sampled_3"
    with pytest.raises(DomainMistake, match="SEED:TOOLS"):
        domain_called("sampled:1:many")


def test_a_user_who_is_asked_says_what_was_held_back():
    rows = {name: a_world().rows(name) for name in CLINIC.entities}
    world = World(CLINIC, rows, facts={"from day": 7})
    for question in ("from day", "From which day on?", "from_day"):
        assert world.call("ask_user", {"about": question}) == {"about": "from day", "answer": 7}
    assert "all that I know" in str(world.call("ask_user", {"about": "the weather"}))


def test_an_act_that_changes_nothing_in_the_end_does_not_keep_a_domain_from_long_tasks():
    data = tomllib.loads((FOLDER / "clinic.toml").read_text(encoding="utf-8"))
    data["tool"]["air_slot"] = {
        "does": "a slot is closed for an hour",
        "args": {"slot": "slot"},
        "needs": ["slot.state = free"],
        "effects": ["slot.state = taken", "after 1: slot.state = free"],
        "ask": ["air {slot}"],
    }
    tally = Tally()
    domain = read_domain(data)
    for seed in ("0", "1", "2"):
        make_task(domain, seed, Difficulty(chain=4, branching=0.8), tally)
    assert not tally.used["air_slot"]
    assert tally.reasons["accepted"] == 3


KIOSK = """
name = "kiosk"
title = "a kiosk"
[entity.guest]
fields = { name = "label places", owes = "int 0..9 = 0" }
by = "name"
called = "the | guest {name}"
count = 40
offers = "find get list"
[tool.admit]
does = "a new guest"
args = { name = "label places" }
effects = ["new guest: name = name"]
ask = ["admit {name}"]
confirm = true
[tool.charge]
does = "the guest owes more in the end"
args = { guest = "guest", sum = "int 1..9" }
effects = ["after 3: guest.owes += sum"]
ask = ["charge {guest} {sum}"]
"""


def test_an_act_on_no_row_can_be_confirmed_and_more_names_are_drawn_than_a_pool_has():
    domain = read_domain(tomllib.loads(KIOSK))
    tasks = [
        make_task(domain, str(i), Difficulty(chain=1, distractors=8, question=1)) for i in range(6)
    ]
    rules = " ".join(one for task in tasks for one in task.rubric.changes)
    assert "admit -: confirmed" in rules and "not confirmed" not in rules
    assert len({row["name"] for row in tasks[0].rows["guest"]}) == 320
    assert all("confirmed as `-`" in task.system for task in tasks)


def test_what_would_leave_its_bounds_later_is_refused_at_once():
    world = World(
        read_domain(tomllib.loads(KIOSK)), {"guest": [{"id": "GU1", "name": "A", "owes": 5}]}
    )
    with pytest.raises(Refused, match="between 0 and 9"):
        world.call("charge", {"guest": "GU1", "sum": 5})
    world.call("charge", {"guest": "GU1", "sum": 3})
    world.call("charge", {"guest": "GU1", "sum": 4})
    assert world.call("wait", {"hours": 3}) == {"hour": 3}
    assert world.call("get_guest", {"guest": "GU1"})["owes"] == 9


def test_a_domain_file_may_begin_with_a_byte_order_mark_and_its_mistakes_name_it(tmp_path):
    file = tmp_path / "kiosk.toml"
    file.write_bytes(b"\xef\xbb\xbf" + KIOSK.encode())
    assert load(file).name == "kiosk"
    file.write_text(KIOSK.replace("guest.owes", "guest.debt"), encoding="utf-8")
    with pytest.raises(DomainMistake, match=r"kiosk\.toml: tool\.charge: .*no field debt"):
        load(file)
    file.write_text("x = " + "[" * 3000, encoding="utf-8")
    with pytest.raises(DomainMistake, match="nested too deeply"):
        load(file)


def test_a_split_that_no_shape_falls_in_is_said_and_not_looked_for_for_ever(monkeypatch, tmp_path):
    monkeypatch.setattr("envs.generated.environment.MOST_OTHERS", 5)
    monkeypatch.setattr("envs.generated.environment.split_of", lambda key: "train")
    file = tmp_path / "kiosk.toml"
    file.write_text(KIOSK, encoding="utf-8")
    env = Generated(
        GeneratedConfig(domains=(str(file),), heldout="structure", task=Difficulty(chain=1))
    )
    with pytest.raises(ValueError, match="too few shapes"):
        next(env.tasks("heldout", 0))


def test_two_domains_of_one_name_are_refused_and_none_is_dropped():
    with pytest.raises(ValueError, match="two domains are called sampled_7"):
        GeneratedConfig(domains=("clinic", "sampled:7:30", "sampled:7:40"))


def test_a_key_that_a_json_file_has_twice_is_a_mistake(tmp_path):
    file = tmp_path / "kiosk.json"
    file.write_text('{"name": "a", "tool": {"go": {}, "go": {}}}', encoding="utf-8")
    with pytest.raises(DomainMistake, match="'go' is there twice"):
        load(file)


def test_the_rule_says_that_each_row_of_a_list_is_confirmed():
    text = "Of a list each row is confirmed by a call of its own."
    assert text in system_text(CLINIC, "Ada", "is friendly")
    assert text not in system_text(CLINIC, "Ada", "is friendly", ("waive_debt", "confirm"))
    world = a_world()
    world.call("confirm", {"tool": "cancel_visits", "id": "V1"})
    world.call("cancel_visits", {"visits": ["V1"]})
    assert "cancel_visits V1: confirmed" in difference(world)


def test_a_field_of_the_clock_that_another_act_sets_otherwise_is_a_mistake_for_no_rubric_sees_it():
    data = tomllib.loads((FOLDER / "library.toml").read_text(encoding="utf-8"))
    assert read_domain(data).clocked == {("loan", "due")}
    data["tool"]["extend"] = {
        "does": "a loan lasts longer",
        "args": {"loan": "loan", "hours": "int 1..90"},
        "effects": ["loan.due += hours"],
        "ask": ["extend {loan} by {hours} hours"],
    }
    with pytest.raises(
        DomainMistake, match=r"tool\.extend: loan\.due is set from `now` by another"
    ):
        read_domain(data)


def test_an_answer_is_its_value_however_it_is_set_off_and_no_sentence_about_it():
    for given in ("Zinc", " zinc. ", '"zinc"', "**zinc**", "`zinc`", "“zinc”"):
        assert plain(given) == "zinc"
    assert plain("it is zinc") != "zinc" and plain("-3") != plain("3")
