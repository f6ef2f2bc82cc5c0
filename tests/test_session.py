"""An environment under deadlines: the policy's mistakes go back to it, the environment's are raised."""

import asyncio
import contextlib
import gc
import pickle
import time
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from fakes import Probe, play

from envs.containment import contain_exits
from envs.dynamic_tool import DynamicTool
from envs.env import Env, EnvConfig, Reply, Task, say
from envs.env import call as call_tool
from envs.message import Message, ToolCall, ToolSchema
from envs.session import Deadlines, EnvFault, EnvSession, HostFault, demonstrate
from envs.tool import tool

QUICK = Deadlines(0.2, 0.2, 0.2, 0.2)
ACTS = ("reset", "reply", "score", "close")


def session(deadlines: Deadlines | None = None) -> EnvSession:
    return EnvSession(Probe(EnvConfig()), deadlines or Deadlines())


def task(**plan) -> Task:
    return Task("probe", plan)


async def run_all(plan: Task, deadlines: Deadlines | None = None, env: type[Env] = Probe) -> None:
    """Every act of an episode without tools."""
    s = EnvSession(env(EnvConfig()), deadlines or Deadlines())
    await s.open(plan)
    await s.step("the answer", ())
    await s.score()
    await s.close()


async def call(name: str, how: str, s: EnvSession | None = None):
    s = s or session()
    await s.open(task())
    return await s.step("", (ToolCall(name, {"how": how}),))


async def test_the_opening_holds_messages_and_tool_schemas():
    opening = await session().open(task())
    assert [m.content for m in opening.messages] == ["go"]
    assert [t.name for t in opening.tools] == ["act", "block"]


async def test_what_an_environment_notes_at_its_reset_is_in_the_opening():
    class Noting(Probe):
        async def reset(self, task: Task):
            self.notes["sandbox"] = "landlock"
            return await super().reset(task)

    opening = await EnvSession(Noting(EnvConfig()), Deadlines()).open(task())
    assert opening.notes == {"sandbox": "landlock"}
    assert (await session().open(task())).notes == {}


async def test_what_the_machine_lacks_is_no_fault_of_the_environment():
    class Homeless(Probe):
        async def reset(self, task: Task):
            raise HostFault("no sandbox here")

    with pytest.raises(HostFault, match="no sandbox here"):
        await EnvSession(Homeless(EnvConfig()), Deadlines()).open(task())


async def test_plain_text_is_the_answer_and_ends_the_episode():
    s = session()
    await s.open(task())
    result = await s.step("the answer", ())
    assert (result.messages, result.done, s.env.answer) == ((), True, "the answer")


@pytest.mark.parametrize("act", ACTS)
async def test_an_act_that_raises_is_a_fault_of_its_kind_with_the_traceback(act):
    with pytest.raises(EnvFault) as caught:
        await run_all(task(**{act: "raise"}))
    fault = caught.value
    assert fault.kind == act
    assert str(fault) == f"environment 'probe', {act}: RuntimeError: the world is broken"
    assert "Traceback" in fault.trace and "in _obey" in fault.trace


@pytest.mark.parametrize("act", ACTS)
async def test_an_act_that_never_returns_is_a_timeout_within_its_deadline(act):
    start = time.monotonic()
    with pytest.raises(EnvFault, match=f"'probe', {act}: no answer within 0.2 s") as caught:
        await run_all(task(**{act: "hang"}), QUICK)
    assert caught.value.kind == "timeout"
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("act", ["reset", "score", "close"])
async def test_a_tool_error_outside_a_tool_is_the_environments_fault(act):
    with pytest.raises(EnvFault) as caught:
        await run_all(task(**{act: "refuse"}))
    assert caught.value.kind == act


@pytest.mark.parametrize("name", ["act", "block"])
async def test_a_tool_that_raises_is_a_fault_that_names_it(name):
    with pytest.raises(
        EnvFault, match=f"tool '{name}': RuntimeError: the world is broken"
    ) as caught:
        await call(name, "raise")
    assert caught.value.kind == "tool"
    assert "envs/session.py" in caught.value.trace


@pytest.mark.parametrize("name", ["act", "block"])
async def test_a_tool_that_never_returns_is_a_timeout_within_its_deadline(name):
    start = time.monotonic()
    with pytest.raises(EnvFault, match=f"tool '{name}': no answer within 0.2 s") as caught:
        await call(name, "hang", session(QUICK))
    assert caught.value.kind == "timeout"
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("name", ["act", "block"])
async def test_a_timeout_error_of_the_tools_own_is_no_missed_deadline(name):
    with pytest.raises(EnvFault, match="TimeoutError: the far end was slow") as caught:
        await call(name, "late")
    assert caught.value.kind == "tool"
    assert caught.value.trace


@pytest.mark.parametrize(
    ("name", "how"), [("act", "exit"), ("block", "exit"), ("block", "iterate")]
)
def test_a_tool_that_exits_or_runs_out_is_a_fault_and_ends_nothing_else(name, how):
    outcome: BaseException | None = None
    try:
        asyncio.run(call(name, how, session(Deadlines(tool_seconds=2))))
    except BaseException as error:  # a SystemExit let through would end pytest
        outcome = error
    assert isinstance(outcome, EnvFault), repr(outcome)
    assert outcome.kind == "tool"


async def test_a_result_that_cannot_be_made_text_is_the_environments_fault():
    with pytest.raises(EnvFault) as caught:
        await call("block", "unprintable")
    assert caught.value.kind == "tool"


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (ToolCall("act", {"how": "refuse"}), "error: not like this"),
        (ToolCall("block", {"how": "refuse"}), "error: not like this"),
        (ToolCall("nothing", {}), "error: no tool 'nothing'"),
        (ToolCall("act", {}), "error: act: argument how: field required"),
        (ToolCall("act", {"how": "", "x": 1}), "error: act: argument x: "),
    ],
)
async def test_what_the_policy_did_wrong_comes_back_as_an_error_message(bad, sentence):
    s = session()
    await s.open(task())
    result = await s.step("", (bad, ToolCall("act", {"how": ""})))
    refused, accepted = result.messages
    assert refused.content.startswith(sentence)
    assert (refused.role, refused.name) == ("tool", bad.name)
    assert accepted.content == "done", "the other calls of the turn are made all the same"
    assert (result.bad_calls, result.done) == (1, False)


async def test_sessions_are_not_blocked_by_sync_tools_that_hang():
    stuck = [asyncio.create_task(call("block", "hang")) for _ in range(40)]
    result = await asyncio.wait_for(call("block", ""), 10)
    assert result.messages[0].content == "done"
    assert not any(t.done() for t in stuck)
    for t in stuck:
        t.cancel()
    await asyncio.gather(*stuck, return_exceptions=True)


@pytest.mark.parametrize(
    "rewards", [{"solved": float("nan")}, {"solved": "yes"}, 1.0, None], ids=repr
)
async def test_a_score_that_is_no_table_of_finite_numbers_is_the_environments_fault(rewards):
    s = session()
    await s.open(task(rewards=rewards))
    with pytest.raises(EnvFault) as caught:
        await s.score()
    assert caught.value.kind == "score"


async def test_the_moves_of_a_whole_episode_come_back_in_order():
    said = await play(session(), task(), [ToolCall("act", {"how": ""}), "the end"])
    assert said == ["done"]


async def test_a_demonstration_closes_the_environment_once():
    class Shown(Probe):
        def expert(self, task):
            yield say("the end")

    env = Shown(EnvConfig())
    opening, said, rewards = await demonstrate(env, task())
    assert [m.content for m in (*opening.messages, *said)] == ["go", "the end"]
    assert rewards == {"solved": 1.0}
    assert env.closed == 1


@pytest.mark.parametrize("plan", [{"reset": "raise"}, {}], ids=["reset raises", "no expert"])
async def test_a_demonstration_that_fails_closes_the_environment_once(plan):
    env = Probe(EnvConfig())
    with pytest.raises((EnvFault, TypeError)):
        await demonstrate(env, task(**plan))
    assert env.closed == 1


async def test_an_environment_that_defines_nothing_says_what_is_missing():
    class Empty(Env):
        name = "empty"

    env = Empty(EnvConfig())
    with pytest.raises(TypeError, match=r"'empty' has to define reset\(\)"):
        await env.reset(task())
    with pytest.raises(TypeError, match=r"sample\(\) or tasks\(\)"):
        next(env.tasks("train", 0))
    with pytest.raises(TypeError, match="offers no expert"):
        next(env.expert(task()))


class Slow(Probe):
    @tool(seconds=0.05)
    async def dawdle(self) -> str:
        """take one's time"""
        await asyncio.sleep(5)
        return "never"

    @tool(seconds=0.05)
    async def give_up(self) -> str:
        """time out by itself"""
        raise TimeoutError("mine")


async def test_a_tools_own_limit_is_told_to_the_policy_and_the_episode_goes_on():
    s = EnvSession(Slow(EnvConfig()), Deadlines())
    await s.open(task())
    result = await s.step("", (ToolCall("dawdle", {}),))
    assert result.messages[0].content == "error: dawdle: no answer within 0.05 s"
    assert not result.done


async def test_a_timeout_that_a_tool_raises_itself_is_its_fault():
    s = EnvSession(Slow(EnvConfig()), Deadlines())
    await s.open(task())
    with pytest.raises(EnvFault, match="TimeoutError: mine"):
        await s.step("", (ToolCall("give_up", {}),))


async def test_closing_in_the_middle_of_an_act_ends_the_act_first():
    class Slow(Probe):
        order: list[str]

        async def reset(self, task: Task):
            self.order = ["reset"]
            try:
                await asyncio.Event().wait()
            finally:
                self.order.append("reset ended")

        async def close(self):
            self.order.append("close")

    env = Slow(EnvConfig())
    s = EnvSession(env, Deadlines())
    opening = asyncio.create_task(s.open(task()))
    await asyncio.sleep(0)
    await s.close()
    with pytest.raises(EnvFault, match="closed in the middle of it"):
        await opening
    assert env.order == ["reset", "reset ended", "close"]


class Stubborn(Probe):
    """Its reset cannot be cancelled; it ends once it is set free."""

    async def reset(self, task: Task):
        self.free = asyncio.Event()
        while not self.free.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.free.wait()
        return []

    async def close(self):
        self.closed += 1


async def test_an_act_that_will_not_be_cancelled_delays_close_up_to_its_deadline():
    env = Stubborn(EnvConfig())
    s = EnvSession(env, QUICK)
    opening = asyncio.create_task(s.open(task()))
    await asyncio.sleep(0)
    await s.close()
    assert env.closed == 1
    assert not opening.done()
    env.free.set()
    await opening


async def test_an_episode_that_is_cancelled_itself_stays_cancelled():
    s = session()
    opening = asyncio.create_task(s.open(task(reset="hang")))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    await s.close()


async def test_an_episode_that_is_cancelled_while_it_is_closed_stays_cancelled():
    s = session()
    opening = asyncio.create_task(s.open(task(reset="hang")))
    await asyncio.sleep(0)
    opening.cancel()
    await s.close()
    with pytest.raises(asyncio.CancelledError):
        await opening


async def test_whoever_closes_may_be_cancelled_and_the_environment_is_closed_all_the_same():
    env = Stubborn(EnvConfig())
    s = EnvSession(env, Deadlines())
    opening = asyncio.create_task(s.open(task()))
    await asyncio.sleep(0)
    closing = asyncio.create_task(s.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    env.free.set()
    await opening
    assert closing.cancelled()
    assert env.closed == 1


async def test_no_tool_runs_in_an_environment_that_is_closed():
    """The call that noise delays belongs to no act yet; the one after a call that would not end, neither."""

    class Stubborn(Probe):
        calls = 0

        @tool
        async def stay(self) -> str:
            """do not be cancelled"""
            self.calls += 1
            if self.calls > 1:
                return "ran"
            self.free = asyncio.Event()
            while not self.free.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await self.free.wait()
            return "stayed"

        async def close(self):
            self.closed += 1

    env = Stubborn(EnvConfig())
    s = EnvSession(env, QUICK)
    await s.open(task())
    step = asyncio.create_task(s.step("", (ToolCall("stay", {}), ToolCall("stay", {}))))
    await asyncio.sleep(0)
    await s.close()
    env.free.set()
    with pytest.raises(EnvFault, match="closed before 'stay'"):
        await asyncio.wait_for(step, 5)
    assert (env.calls, env.closed) == (1, 1)


@pytest.mark.parametrize("act", ["reset", "close"])
async def test_a_cancellation_that_nobody_asked_for_is_the_environments_fault(act):
    class Cut(Probe):
        async def _act(self, name: str):
            if name == act:
                gone = asyncio.get_running_loop().create_future()
                gone.cancel()
                await gone

    s = EnvSession(Cut(EnvConfig()), Deadlines())
    with pytest.raises(EnvFault, match="it raised CancelledError") as caught:
        await s.open(task())
        await s.close()
    assert caught.value.kind == act and "Traceback" in caught.value.trace


async def test_a_schema_that_no_argument_can_be_read_by_is_the_environments_fault():
    class Odd(Probe):
        async def dynamic_tools(self):
            async def act(arguments):
                return "done"

            schema = {"properties": {"n": {"type": "integer", "minimum": "one"}}}
            return [DynamicTool(ToolSchema("count", "", schema), act)]

    s = EnvSession(Odd(EnvConfig()), Deadlines())
    await s.open(task())
    with pytest.raises(EnvFault, match="tool 'count': its arguments cannot be read: TypeError"):
        await s.step("", (ToolCall("count", {"n": 1}),))


class Gives(Probe):
    """An environment whose acts return what the test says, or raise it."""

    def __init__(self, **given) -> None:
        super().__init__(EnvConfig())
        self.given = given

    def _give(self, act: str, usual):
        found = self.given.get(act, usual)
        if isinstance(found, BaseException):
            raise found
        return found

    async def reset(self, task: Task):
        self.notes = self.given.get("notes", {})
        return self._give("reset", [Message("user", "go")])

    async def reply(self, text: str):
        return self._give("reply", Reply())

    async def score(self):
        return self._give("score", {"solved": 1.0})

    async def close(self):
        self.closed += 1

    @tool
    async def give(self) -> str:
        """what was put in"""
        return self._give("give", "")


async def played(env: Env) -> dict[str, float]:
    """Every act of an episode."""
    s = EnvSession(env, Deadlines())
    try:
        await s.open(task())
        await s.step("", (ToolCall("give", {}),))
        await s.step("the answer", ())
        return await s.score()
    finally:
        await s.close()


@pytest.mark.parametrize("result", [10**5000, [1, {"n": -(10**5000)}], {10**5000: 1}], ids=type)
async def test_a_number_too_long_to_write_is_the_policys_error_and_no_fault(result):
    s = EnvSession(Gives(give=result), Deadlines())
    await s.open(task())
    step = await s.step("", (ToolCall("give", {}),))
    said = "error: give: the result has a number that is too long to be written"
    assert (step.messages[0].content, step.bad_calls) == (said, 1)


class Panic(BaseException):
    """As a foreign runtime raises it."""


class Gathers(Gives):
    """Its acts exit in a task of their own."""

    @tool
    async def give(self) -> str:
        """exits beside something else"""
        await asyncio.gather(self._exit(), asyncio.sleep(5))
        return ""

    async def _exit(self) -> None:
        await asyncio.sleep(0)
        raise SystemExit(2)


def test_an_exit_in_a_task_of_the_tools_own_ends_no_event_loop():
    async def both() -> list[object]:
        return await asyncio.gather(played(Gathers()), played(Gives()), return_exceptions=True)

    try:
        fault, fine = asyncio.run(both())
    except SystemExit:
        pytest.fail("the event loop has ended")
    assert "tool 'give': PluginExit: SystemExit: 2" in str(fault)
    assert fine == {"solved": 1.0}


async def test_a_task_that_is_cancelled_before_its_first_step_leaves_nothing_unawaited(recwarn):
    contain_exits()
    sleeping = asyncio.create_task(asyncio.sleep(9))
    sleeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    del sleeping
    gc.collect()
    assert [str(one.message) for one in recwarn if "never awaited" in str(one.message)] == []


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            lambda: ToolSchema("t", "", {"enum": [np.int64(3)]}),
            "schema of tool 't' is no JSON: TypeE",
        ),
        (lambda: ToolSchema(3, "", {}), "it has to be text, not 3"),  # pyright: ignore
        (lambda: ToolSchema("t", None, {}), "it has to be text, not None"),  # pyright: ignore
    ],
)
def test_a_tool_is_described_by_text_and_json_only(made, sentence):
    with pytest.raises(TypeError, match=sentence):
        made()


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize("act", ["reset", "give", "reply", "score"])
@pytest.mark.parametrize(
    "raised",
    [Panic("rust"), KeyboardInterrupt(), SystemExit(2), GeneratorExit(), Mute()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_an_act_raises_is_an_answer_of_its_class(act, raised):
    outcome: BaseException | None = None
    try:
        asyncio.run(played(Gives(**{act: raised})))
    except BaseException as error:  # let through, it would end pytest
        outcome = error
    assert isinstance(outcome, EnvFault), repr(outcome)
    assert outcome.kind == {"give": "tool"}.get(act, act)
    assert type(raised).__name__ in outcome.sentence and "\n" not in outcome.sentence


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(1), 1.0),
        (np.bool_(True), 1.0),
        (np.array([0.5]), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (True, 1.0),
        (Fraction(1, 2), 0.5),
        (Decimal("0.5"), 0.5),
    ],
    ids=repr,
)
async def test_a_number_of_others_is_a_reward_as_a_plain_float(value, number):
    found = await played(Gives(score={np.str_("style"): value}))
    assert found == {"style": number}
    assert [(type(k), type(v)) for k, v in found.items()] == [(str, float)]


@pytest.mark.parametrize(
    "rewards",
    [
        {"style": np.float32("nan")},
        {"style": np.array([0.5, 1.0])},
        {"style": 10**400},
        {"style": 1j},
        {"style": "0.5"},
        {"style": None},
        {3: 1.0},
        [("style", 1.0)],
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_what_is_no_named_reward_is_the_environments_fault(rewards):
    with pytest.raises(EnvFault, match=r"^environment 'probe', score: TypeError: ") as caught:
        await played(Gives(score=rewards))
    assert caught.value.kind == "score" and len(caught.value.sentence) < 400


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"reset": None}, "reset: TypeError: reset() has to return a list of messages"),
        ({"reset": "go"}, "reset: TypeError: reset() has to return a list of messages"),
        ({"reset": Message("user", "go")}, "reset: TypeError: reset() has to return a list"),
        ({"reset": [{"role": "user", "content": "go"}]}, "one of them is {'role'"),
        ({"notes": ["seed"]}, "reset: TypeError: notes have to be facts by name, not ['seed']"),
        ({"reply": None}, "reply: TypeError: reply() has to return a Reply, not None"),
        ({"reply": Reply("done")}, "reply: TypeError: reply() has to return a list of messages"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_hand_over_of_another_kind_is_the_fault_of_the_act(given, sentence):
    with pytest.raises(EnvFault) as caught:
        await played(Gives(**given))
    assert sentence in caught.value.sentence


@pytest.mark.parametrize("content", [None, 3, ["a"], b"a"], ids=repr)
def test_a_message_is_made_of_text_only(content):
    with pytest.raises(TypeError, match="a message's content has to be text, not"):
        Message("user", content)


def test_a_message_has_one_of_the_roles():
    with pytest.raises(ValueError, match="one of system, user, assistant, tool, not 'human'"):
        Message("human", "hello")  # pyright: ignore[reportArgumentType]


async def test_notes_of_any_kind_are_facts_as_text():
    notes = {"seed": np.int64(3), np.str_("file"): "caf\udce9", "level": 2}
    opening = await EnvSession(Gives(notes=notes), Deadlines()).open(task())
    assert opening.notes == {"seed": "3", "file": r"caf\udce9", "level": "2"}
    assert {type(one) for pair in opening.notes.items() for one in pair} == {str}


async def test_half_a_surrogate_pair_is_its_escape_wherever_it_comes_from():
    call = ToolCall("gi\udc00ve", {"a": ["\ud800", {"b\udfff": 1}], "n": 1.5})
    assert call == ToolCall(r"gi\udc00ve", {"a": [r"\ud800", {r"b\udfff": 1}], "n": 1.5})
    assert Task("probe", {"q": "\ud800 \\"}).data == {"q": "\\ud800 \\"}
    schema = ToolSchema("t", "\ud800", {"enum": ["\ud801"]})
    assert (schema.description, schema.parameters) == (r"\ud800", {"enum": [r"\ud801"]})
    s = EnvSession(Gives(give="so: \ud800", reset=[Message("user", "\udce9")]), Deadlines())
    opening = await s.open(task())
    result = await s.step("", (ToolCall("give", {}), ToolCall("\ud800", {})))
    said = [message.content for message in (*opening.messages, *result.messages)]
    assert said == [r"\udce9", r"so: \ud800", r"error: no tool '\\ud800'"]


@pytest.mark.parametrize("act", ["reset", "give", "reply", "score"])
async def test_a_fault_whose_text_cannot_be_written_is_told_by_escapes(act):
    with pytest.raises(EnvFault, match=r"ValueError: no file caf\\udce9") as caught:
        await played(Gives(**{act: ValueError("no file caf\udce9\n\nnor another")}))
    fault = pickle.loads(pickle.dumps(caught.value))
    fault.sentence.encode()
    fault.trace.encode()
    assert (str(fault), fault.trace) == (caught.value.sentence, caught.value.trace)


async def _none(*_: object) -> None:
    return None


async def _texts(*_: object) -> list[str]:
    return ["look"]


def _plain(*_: object) -> None:
    return None


async def _emptied(*_: object) -> list[Message]:
    return [Message("user", None)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("act", "method", "sentence"),
    [
        ("reset", _plain, "reset: TypeError: reset() has to be written as `async def reset`"),
        ("reply", _plain, "reply: TypeError: reply() has to be written as `async def reply`"),
        ("score", _plain, "score: TypeError: score() has to be written as `async def score`"),
        ("close", _plain, "close: TypeError: close() has to be written as `async def close`"),
        ("dynamic_tools", _plain, "reset: TypeError: dynamic_tools() has to be written as `async"),
        ("dynamic_tools", _none, "reset: TypeError: dynamic_tools() has to return a list of Dyn"),
        ("dynamic_tools", _texts, "dynamic_tools() has to return a list of DynamicTools; one of"),
        ("reset", _emptied, "reset: TypeError: a message's content has to be text, not None"),
    ],
)
async def test_an_act_of_another_form_is_the_environments_fault_under_its_own_name(
    act, method, sentence
):
    with pytest.raises(EnvFault) as caught:
        await run_all(task(), env=type("Odd", (Probe,), {act: method}))
    assert sentence in caught.value.sentence


def _breaks(task):
    results = yield call_tool("act", how="refuse")
    yield say(str(int(results[0])))


def _texted(task):
    yield "42"


def _user(task):
    yield Message("user", "42")


@pytest.mark.parametrize(
    ("expert", "sentence"),
    [
        (lambda task: None, "expert() has to be a generator, written as `def expert`"),
        (_none, "expert() has to be a generator"),
        (_breaks, "expert() raises ValueError: invalid literal for int() with base 10: 'error: "),
        (_texted, "expert() yields '42': it has to yield say(...) or call(...)"),
        (_user, "expert() yields a message of user: it speaks as the policy"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine '_none' was never awaited")
async def test_an_experts_mistake_is_one_sentence(expert, sentence):
    env = type("Shown", (Probe,), {"expert": lambda self, task: expert(task)})(EnvConfig())
    with pytest.raises(EnvFault) as caught:
        await demonstrate(env, task())
    assert caught.value.sentence.startswith(f"environment 'probe': {sentence}")
    assert "\n" not in caught.value.sentence


@pytest.mark.parametrize("data", [None, "n = 3", [1], 5])
def test_a_tasks_data_are_a_dict(data):
    with pytest.raises(TypeError, match="sample\\(\\) has to return a dict of plain JSON"):
        Task("probe", data)


class Rewarding(Probe):
    """Rewards each call with its number of letters, and in the end the first turn once more."""

    @tool
    def pay(self, name: str, value: float) -> str:
        """gives a reward"""
        self.reward(value, name)
        return "paid"

    async def score(self):
        return {"solved": 1.0, "pay": {0: 0.5}, **self.plan.get("rewards", {})}


async def paid(*turns: tuple[object, ...], env: type[Env] = Rewarding, **plan):
    s = EnvSession(env(EnvConfig()), Deadlines())
    await s.open(task(**plan))
    for values in turns:
        await s.step("", tuple(ToolCall("pay", {"name": "pay", "value": v}) for v in values))
    return await s.score()


async def test_a_turns_rewards_are_parts_of_the_episodes_and_add_up():
    found = await paid((1.0, 0.25), (), (2.0,))
    assert found == {"solved": 1.0, "pay": 3.75}
    assert found.by_turn == {0: {"pay": 1.75}, 2: {"pay": 2.0}}
    again = pickle.loads(pickle.dumps(found))
    assert (again, again.by_turn) == (found, found.by_turn)
    assert (await paid((), pay=1)).by_turn == {0: {"pay": 0.5}}
    numpys = await paid((), rewards={"found": {np.int64(0): 0.5}})
    assert numpys.by_turn[0]["found"] == 0.5


@pytest.mark.parametrize(
    ("rewards", "sentence"),
    [
        ({"late": {1: 1.0}}, "reward 'late' of turn 1: this episode had 1 turns"),
        ({"late": {-1: 1.0}}, "reward 'late' of turn -1: this episode had 1 turns"),
        ({"late": {"0": 1.0}}, "reward 'late' of turn '0': this episode had 1 turns"),
        ({"late": {0: float("nan")}}, "reward 'late' has to be a finite number, not nan"),
        ({"late": {0: "much"}}, "reward 'late' has to be a finite number, not 'much'"),
        ({"late": [1.0]}, "reward 'late' has to be a finite number, not [1.0]"),
    ],
)
async def test_a_turns_reward_that_is_none_is_the_environments_fault(rewards, sentence):
    with pytest.raises(EnvFault) as caught:
        await paid((), rewards=rewards)
    assert f"score: TypeError: {sentence}" in caught.value.sentence


async def test_a_reward_given_wrongly_is_a_fault_of_the_act_that_gave_it():
    class Wrong(Rewarding):
        async def reset(self, task: Task):
            if "early" in task.data:
                self.reward(1.0)
            return await super().reset(task)

        async def reply(self, text: str) -> Reply:
            self.reward("much")  # type: ignore[arg-type]
            return await super().reply(text)

    with pytest.raises(
        EnvFault, match=r"reply: TypeError: reward 'turn' has to be a finite number"
    ):
        await paid((), env=Wrong)
    with pytest.raises(EnvFault, match=r"reset: RuntimeError: .*there has been none yet"):
        await paid(env=Wrong, early=True)
