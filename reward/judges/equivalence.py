"""Equivalence: is the answer, in other words, one of the references? For answers that no rule can compare.

An answer that is a reference letter by letter costs no question.
"""

from pydantic import Field

from envs.chat_model import ChatModel
from envs.env import Task
from envs.prompt import marked
from reward.answer import reference_answers
from reward.judges.prompt import find_prompt
from reward.judges.shown import answer_of, question_of
from reward.judges.verdict import one_of, record, verdict
from reward.model_judge import JudgeSettings, model_judge
from rollout.trajectory import Judgement, Trajectory

SAME, DIFFERENT, UNSURE = "same", "different", "cannot tell"


class EquivalenceSettings(JudgeSettings):
    """unsure: what "cannot tell" counts, from 0 to 1. reasons: ask for one before the verdict."""

    unsure: float = Field(default=0.0, ge=0, le=1)
    reasons: bool = True

    def check_task(self, task: Task) -> None:
        """Raise ValueError for a task without a reference."""
        reference_answers(task)


@model_judge(EquivalenceSettings)
async def equivalence(
    task: Task, trajectory: Trajectory, model: ChatModel, settings: EquivalenceSettings
) -> Judgement:
    """Judge the final answer. Raises ModelFault, ValueError for a task without a reference."""
    answer, references = answer_of(trajectory), reference_answers(task)
    prompt = find_prompt("equivalence", settings.prompt)
    if answer in references:
        return Judgement({"equivalence": 1.0}, metrics={"by_letter": 1.0}, version=prompt.version)
    most = settings.max_characters
    found = await verdict(
        model,
        prompt,
        {
            "question": marked("question", question_of(trajectory), most),
            "references": "\n".join(marked("reference", one, most) for one in references),
            "answer": marked("answer", answer, most),
        },
        record(settings.reasons, verdict=one_of(SAME, DIFFERENT, UNSURE)),
        settings,
    )
    said = str(found.found["verdict"])
    return Judgement(
        {"equivalence": {SAME: 1.0, DIFFERENT: 0.0}.get(said, settings.unsure)},
        metrics={"by_letter": 0.0, "cannot_tell": float(said == UNSURE)},
        version=prompt.version,
        models=(found.model,),
        reasons=(f"{said}: {found.found.get('reason', '')}",),
        asked=1,
        cached=int(found.cached),
    )
