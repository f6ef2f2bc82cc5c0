"""Tool critic: each turn of an agent judged for itself, so that a turn is credited with what it did.

The reward is the mean over the turns, good 1, neutral 0.5, bad 0; every turn has earned its own part of it.
"""

from envs.chat_model import ChatModel
from envs.env import Task
from envs.prompt import marked
from reward.judges.prompt import find_prompt
from reward.judges.shown import question_of, step_of
from reward.judges.verdict import one_of, record, verdict
from reward.model_judge import JudgeSettings, model_judge
from rollout.trajectory import Judgement, Trajectory

GOOD, NEUTRAL, BAD = "good", "neutral", "bad"
VALUE = {GOOD: 1.0, NEUTRAL: 0.5, BAD: 0.0}


class CriticSettings(JudgeSettings):
    """reasons: ask for one before each turn's verdict."""

    reasons: bool = True


@model_judge(CriticSettings)
async def tool_critic(
    task: Task, trajectory: Trajectory, model: ChatModel, settings: CriticSettings
) -> Judgement:
    """Judge every turn. Raises ModelFault."""
    turns = trajectory.turns
    if not turns:
        return Judgement({"tool_critic": 0.0})
    most = max(200, settings.max_characters // len(turns))
    steps = (marked(f"turn_{n}", step_of(turn), most) for n, turn in enumerate(turns, 1))
    choice = record(settings.reasons, verdict=one_of(GOOD, NEUTRAL, BAD))
    names = [f"turn_{number}" for number in range(1, len(turns) + 1)]
    prompt = find_prompt("tool_critic", settings.prompt)
    found = await verdict(
        model,
        prompt,
        {
            "question": marked("question", question_of(trajectory), settings.max_characters),
            "steps": "\n".join(steps),
        },
        record(False, **dict.fromkeys(names, choice)),
        settings,
    )
    said = [found.found[name] for name in names]
    parts = tuple(VALUE[str(one["verdict"])] / len(turns) for one in said)
    return Judgement(
        {"tool_critic": sum(parts)},
        tuple({"tool_critic": part} for part in parts),
        {"bad_turns": sum(one["verdict"] == BAD for one in said) / len(turns)},
        prompt.version,
        (found.model,),
        tuple(
            f"{n}: {o['verdict']}: {o.get('reason', '')}" for n, o in zip(names, said, strict=True)
        ),
        1,
        int(found.cached),
    )
