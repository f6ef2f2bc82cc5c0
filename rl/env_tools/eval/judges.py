"""Judges of an evaluation outside a run: rules, and those that ask frozen models, with services of their own.

In: the tables of the environments that are played, and `[[models]]`. Out: scored trajectories, scored groups,
and the models that play users. A model that nobody asks is not started. A judge's fault is a fault of the
trajectory.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from envs.chat_model import ChatAnswer, ChatModel, ChatRequest
from envs.deadline import paused
from reward.registry import find_judge
from reward.score import JudgeFault, add_group_judge, score
from rl.env_table import EnvTable
from rl.model_table import ModelTable
from rl.models.http_wire import key_of
from rl.models.judges import asked_models, judges_of
from rl.models.server import ServerFailed
from rl.models.service import ModelService
from rollout.trajectory import ScoredTrajectory, Trajectory


class EvalJudges:
    """The judges of some environments, by the environments' labels. models: by name, those that are asked."""

    def __init__(self, tables: Sequence[EnvTable], models: Mapping[str, ChatModel]) -> None:
        asked = {table.label: judges_of(table.judge, models) for table in tables}
        self.each = {
            table.label: [*map(find_judge, table.judges), *asked[table.label].each]
            for table in tables
        }
        self.groups = {label: judges.groups for label, judges in asked.items()}
        self.models = models

    async def score(self, trajectory: Trajectory, table: EnvTable) -> ScoredTrajectory:
        """The trajectory with its rewards; without any where a judge failed."""
        try:
            seconds = table.deadlines.score_seconds
            return await score(trajectory, self.each[table.label], table.rewards, seconds=seconds)
        except JudgeFault as error:
            return _failed(trajectory, error)

    async def score_group(
        self, members: Sequence[ScoredTrajectory], table: EnvTable
    ) -> list[ScoredTrajectory]:
        """The members of a group with what judges of whole groups add."""
        found = list(members)
        for judge in self.groups[table.label]:
            try:
                seconds = table.deadlines.score_seconds
                found = await add_group_judge(judge, found, table.rewards, seconds=seconds)
            except JudgeFault as error:
                found = [
                    _failed(one.trajectory, error) if one.trajectory.judged else one
                    for one in found
                ]
        return found


@asynccontextmanager
async def judges_of_evaluation(
    tables: Sequence[EnvTable],
    models: Sequence[ModelTable],
    logs: Path,
    say: Callable[[str], None],
) -> AsyncIterator[EvalJudges]:
    """The judges, once the models that they and users ask answer. logs: of models' servers. Raises
    ServerFailed."""
    services: dict[str, ChatModel] = {}
    async with AsyncExitStack() as running:
        for table in asked_models(tables, models):
            log = logs / f"model-{table.name}-vllm.log"
            service = ModelService(table, key_of(table.key_env), log, say)
            running.push_async_callback(service.close)
            try:
                await service.start()
            except ServerFailed as error:
                raise ServerFailed(f"model {table.name!r}: {error}") from None
            services[table.name] = _Patient(service)
        yield EvalJudges(tables, services)


class _Patient:
    """A model whose answer is waited for without the judge's own clock: the pool bounds every call."""

    def __init__(self, service: ModelService) -> None:
        self.service = service

    @property
    def name(self) -> str:
        """The model's."""
        return self.service.name

    async def ask(self, request: ChatRequest) -> ChatAnswer:
        """Return the model's answer. Raises ModelFault."""
        with paused():
            return await self.service.ask(request)


def _failed(trajectory: Trajectory, error: JudgeFault) -> ScoredTrajectory:
    failed = replace(trajectory, stop_reason="judge_fault", fault=str(error))
    return ScoredTrajectory(failed, {}, 0.0)
