"""Where requests belong, on generated conversations: what is continued, and that no id is lost or made up."""

from hypothesis import given
from hypothesis import strategies as st

from envs.message import Message, ToolCall, ToolSchema
from rollout.gateway.conversation import Conversation

TOOLS = (ToolSchema("add", "a plus b"),)
texts = st.sampled_from(["", "yes", "no", "say more", "  yes\n"])
# What the client does next: go on, ask the same again, rewrite from an earlier message, begin anew.
acts = st.lists(
    st.tuples(st.sampled_from(["on", "again", "edit", "new"]), texts), min_size=1, max_size=12
)


def engine(count: int) -> tuple[int, ...]:
    """Ids that no other turn has."""
    return (1000 * count, 1000 * count + 1)


@given(acts)
def test_every_turn_is_in_one_segment_and_follows_the_ids_that_were_there(acts):
    talk, histories = Conversation(), [[Message("user", "go")]]
    prompts: dict[int, list[list[int]]] = {}
    for count, (act, text) in enumerate(acts, 1):
        history = list(histories[-1])
        match act:
            case "on":
                history.append(Message("user", f"{text}{count}"))
            case "edit":
                history = [*history[: len(history) // 2], Message("user", f"other {count}")]
            case "new":
                history = [Message("system", text), Message("user", str(count))]
        place = talk.place(history, TOOLS)
        new = [7] * len(place.rest)
        ids = (*place.kept, *new)
        wrote = engine(count)
        answer = Message("assistant", text, (ToolCall("add", {"a": count}),))
        talk.played(place, ids, wrote, answer, count - 1)
        segment = prompts.setdefault(place.segment, [])
        assert (place.branch is None) == (bool(segment) or count == 1)
        if segment:
            assert list(place.kept) == segment[-1], "a segment goes on from its end"
        segment.append([*ids, *wrote])
        histories.append([*history, Message("assistant", f" {text}", answer.tool_calls)])
    assert sum(map(len, prompts.values())) == len(acts)
    for number, steps in prompts.items():
        assert talk.segments[number].ids == steps[-1]


def test_two_requests_from_one_answer_are_a_segment_and_its_branch():
    talk = Conversation()
    opening = [Message("user", "go")]
    talk.played(talk.place(opening, ()), (1,), (2, 3), Message("assistant", "a"), 0)
    said = [*opening, Message("assistant", "a")]
    first = talk.place([*said, Message("user", "x")], ())
    second = talk.place([*said, Message("user", "y")], ())
    assert (first.segment, first.branch, first.kept) == (0, None, (1, 2, 3))
    assert second.segment == 1 and second.kept == (1, 2, 3)
    assert second.branch is not None and second.branch.parent == 0
