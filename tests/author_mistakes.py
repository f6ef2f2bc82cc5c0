"""Mistakes that authors make, each as the source of a small environment, and the sentence that names it.

`PRELUDE` has an environment without a mistake; each mistake is a class `Mine` below it.
"""

PRELUDE = '''
import asyncio, os, random, time
from envs.env import Deadlines, Env, EnvConfig, Reply, Task, call, say
from envs.message import Message
from envs.tool import ToolError, tool
from pydantic import Field


class Doubling(Env):
    name = "doubling"

    def sample(self, rng):
        return {"n": rng.randint(1, 9999)}

    async def reset(self, task):
        self.n = task.data["n"]
        return [Message("user", f"double {self.n}")]

    @tool
    async def double(self, n: int) -> int:
        """n plus n"""
        return n + n

    async def score(self):
        return {"solved": float(self.answer == str(2 * self.n))}

    def expert(self, task):
        results = yield call("double", n=task.data["n"])
        yield say(results[0])


class Level(EnvConfig):
    difficulty: int = Field(1, ge=1, le=3)


class Graded(Doubling):
    """Doubles as often as it is difficult."""

    config_type = Level
    difficulties = 3

    def sample(self, rng):
        return {"n": rng.randint(1, 9999), "difficulty": self.config.difficulty}

    async def reset(self, task):
        self.n = task.data["n"] * task.data["difficulty"]
        return [Message("user", f"double {self.n}")]

    def expert(self, task):
        results = yield call("double", n=task.data["n"] * task.data["difficulty"])
        yield say(results[0])
'''

# What is refused before anything is started (exit code 2), and what it says.
REFUSED = {
    "no_name": ("class Mine(Env): pass", 'Mine has no name: write `name = "..."` in the class'),
    "no_sample": (
        "class Mine(Env):\n    name = 'm'\n    def samples(self, rng): return {}",
        "Mine has neither sample() nor tasks(): write `def sample(self, rng)`, which returns the data of one "
        "random task as a dict; samples() is of no use by that name",
    ),
    "no_score": (
        "class Mine(Env):\n    name = 'm'\n    sample = Doubling.sample\n    reset = Doubling.reset",
        "Mine has no score(), which gives the named rewards",
    ),
    "sample_without_rng": (
        "class Mine(Doubling):\n    def sample(self): return {'n': 1}",
        "Mine has sample() with other arguments: write `sample(self, rng)`",
    ),
    "sample_that_awaits": (
        "class Mine(Doubling):\n    async def sample(self, rng): return {'n': 1}",
        "Mine has `async def sample`: it is called without await, so write `def sample`",
    ),
    "difficulties_without_a_setting": (
        "class Mine(Doubling):\n    difficulties = 3",
        "Mine has difficulties = 3, and no setting for it: give its config_type the field `difficulty: int",
    ),
    "range_of_one_number": (
        "class Mine(Doubling):\n    reward_range = 1",
        "Mine has reward_range = 1: it has to be the least and the most",
    ),
    "init_that_raises": (
        "class Mine(Doubling):\n    def __init__(self, config):\n        {}['n']",
        "it cannot be made: KeyError: 'n'",
    ),
    "init_without_the_bases": (
        "class Mine(Doubling):\n    def __init__(self, config):\n        self.n = 0",
        "its __init__() has to begin with super().__init__(config)",
    ),
    "probe_that_raises": (
        "class Mine(Doubling):\n    def probe(self):\n        raise KeyError('key')",
        "probe() raises KeyError: 'key'",
    ),
}

# What the report fails, and the first sentence of that check.
FOUND = {
    "any_answer_is_solved": (
        """
class Mine(Doubling):
    async def score(self):
        return {"solved": float(bool(self.answer))}
""",
        "idle",
        "the answer 'I do not know' scores {'solved': 1.0} on task",
    ),
    "opening_without_a_message": (
        "class Mine(Doubling):\n    async def reset(self, task):\n        self.n = 1\n        return []",
        "acts",
        "reset() returns no word for the policy",
    ),
    "opening_with_an_unknown_role": (
        """
class Mine(Doubling):
    async def reset(self, task):
        return [Message("human", "go")]
""",
        "acts",
        "reset: ValueError: a message's role has to be one of system, user, assistant, tool, not 'human'",
    ),
    "opening_of_text": (
        "class Mine(Doubling):\n    async def reset(self, task):\n        return 'double 3'",
        "acts",
        "reset: TypeError: reset() has to return a list of messages",
    ),
    "reset_that_does_not_await": (
        "class Mine(Doubling):\n    def reset(self, task):\n        return [Message('user', 'go')]",
        "acts",
        "reset() has to be written as `async def reset`",
    ),
    "the_same_world_for_every_task": (
        """
class Mine(Doubling):
    async def reset(self, task):
        self.n = 21
        return [Message("user", "double 21")]
    def expert(self, task):
        results = yield call("double", n=21)
        yield say(results[0])
""",
        "tasks",
        "8 different tasks, such as",
    ),
    "one_task_for_ever": (
        """
class Mine(Doubling):
    def tasks(self, split, seed):
        while True:
            yield Task(self.name, {"n": 1 if split == "train" else 2})
""",
        "tasks",
        "tasks('train') gives one task only, {\"n\": 1}: let sample() draw from the rng",
    ),
    "tasks_of_dicts": (
        "class Mine(Doubling):\n    def tasks(self, split, seed):\n        yield {'n': 1}",
        "tasks",
        "it has to yield Task(self.name, data), not {'n': 1}",
    ),
    "sample_of_nothing": (
        "class Mine(Doubling):\n    def sample(self, rng):\n        rng.random()",
        "tasks",
        "sample() has to return a dict of plain JSON",
    ),
    "a_level_that_cannot_be_played": (
        """
class Mine(Graded):
    async def reset(self, task):
        first = await super().reset(task)
        self.word = ["small", "large"][task.data["difficulty"] - 1]
        return first
""",
        "acts",
        "at difficulty 3, reset: IndexError: list index out of range",
    ),
    "a_level_that_the_settings_refuse": (
        "class Mine(Graded):\n    difficulties = 4",
        "tasks",
        "at difficulty 4, of the 4 that `difficulties` says there are, the settings are refused",
    ),
    "a_level_that_is_not_in_the_task": (
        """
class Mine(Graded):
    def sample(self, rng):
        return {"n": rng.randint(1, 9999)}
    reset = Doubling.reset
    expert = Doubling.expert
""",
        "tasks",
        "let sample() write `difficulty` into them",
    ),
    "a_level_whose_expert_fails": (
        """
class Mine(Graded):
    def expert(self, task):
        results = yield call("double", n=task.data["n"])
        yield say(results[0])
""",
        "expert",
        "at difficulty 2, the expert scores {'solved': 0.0}",
    ),
    "expert_that_breaks_on_an_error": (
        """
class Mine(Doubling):
    def expert(self, task):
        results = yield call("double", n=task.data["n"])
        yield say(str(int(results[0])))
""",
        "expert",
        "after a wrong call, expert() raises ValueError: invalid literal for int()",
    ),
    "expert_that_returns": (
        "class Mine(Doubling):\n    def expert(self, task):\n        return [say('42')]",
        "expert",
        "expert() has to be a generator",
    ),
    "expert_of_texts": (
        "class Mine(Doubling):\n    def expert(self, task):\n        yield '42'",
        "expert",
        "expert() yields '42': it has to yield say(...) or call(...)",
    ),
    "expert_of_another_tool": (
        """
class Mine(Doubling):
    def expert(self, task):
        yield call("triple", n=1)
        yield say(str(2 * task.data["n"]))
""",
        "expert",
        "the expert calls 'triple', and the tools are double",
    ),
    "expert_of_other_arguments": (
        """
class Mine(Doubling):
    def expert(self, task):
        yield call("double", x=1)
        yield say(str(2 * task.data["n"]))
""",
        "expert",
        "the expert's call is refused: double: argument n: field required",
    ),
    "expert_without_an_answer": (
        "class Mine(Doubling):\n    def expert(self, task):\n        yield call('double', n=1)",
        "expert",
        "the expert ended without an answer: its last message has to be say()",
    ),
    "reply_that_never_ends": (
        """
class Mine(Doubling):
    async def reply(self, text):
        self.answer = text
        return Reply((Message("user", "and?"),), done=False)
""",
        "expert",
        "reply() goes on after the expert's last answer: return Reply(done=True) there",
    ),
    "reply_of_nothing": (
        "class Mine(Doubling):\n    async def reply(self, text):\n        self.answer = text",
        "acts",
        "reply: TypeError: reply() has to return a Reply, not None: write Reply(done=True)",
    ),
    "score_of_one_number": (
        "class Mine(Doubling):\n    async def score(self):\n        return 1.0",
        "acts",
        "score: TypeError: score() has to return named rewards, not 1.0",
    ),
    "score_that_reads_numbers": (
        """
class Mine(Doubling):
    async def score(self):
        return {"solved": float(self.answer is not None and int(self.answer or 0) == 2 * self.n)}
""",
        "acts",
        "score: ValueError: invalid literal for int() with base 10: 'I do not know'",
    ),
    "state_on_the_class": (
        """
class Mine(Doubling):
    world = {}
    async def reset(self, task):
        self.world["n"] = task.data["n"]
        return await super().reset(task)
""",
        "determinism",
        "Mine.world, an attribute of the class, changes from episode to episode",
    ),
    "history_on_the_class": (
        """
class Mine(Doubling):
    history = []
    async def reset(self, task):
        self.history.append(task.data["n"])
        return [*await super().reset(task), Message("user", f"episode {len(self.history)}")]
""",
        "determinism",
        "Mine.history, an attribute of the class, changes from episode to episode",
    ),
    "state_of_the_module": (
        """
WORLD = {}
class Mine(Doubling):
    async def reset(self, task):
        WORLD["n"] = task.data["n"]
        return await super().reset(task)
    async def score(self):
        return {"solved": float(self.answer == str(2 * WORLD["n"]))}
""",
        "determinism",
        "{'solved': 0.0}; WORLD, a variable of the module, changes from episode to episode",
    ),
    "a_count_in_the_module": (
        """
EPISODES = 0
class Mine(Doubling):
    async def reset(self, task):
        global EPISODES
        EPISODES += 1
        return [*await super().reset(task), Message("user", f"episode {EPISODES}")]
""",
        "determinism",
        "and then 'episode 17'; EPISODES, a variable of the module, changes",
    ),
    "state_elsewhere": (
        """
class World:
    n = 0
class Mine(Doubling):
    async def reset(self, task):
        World.n = task.data["n"]
        return await super().reset(task)
    async def score(self):
        return {"solved": float(self.answer == str(2 * World.n))}
""",
        "determinism",
        "two episodes at once differ from one: score() gave {'solved': 1.0}, and then {'solved': 0.0}",
    ),
    "working_directory": (
        """
class Mine(Doubling):
    async def reset(self, task):
        folder = f"/tmp" if task.data["n"] % 2 else "/"
        os.chdir(folder)
        return await super().reset(task)
""",
        "determinism",
        "the working directory changes from episode to episode",
    ),
    "seeded_global_generator": (
        """
class Mine(Doubling):
    async def reset(self, task):
        random.seed(task.id)
        return [*await super().reset(task), Message("user", f"hint {random.random()}")]
""",
        "determinism",
        "the module random's own generator is used",
    ),
    "task_that_is_changed": (
        """
class Mine(Doubling):
    async def reset(self, task):
        first = await super().reset(task)
        task.data["n"] = 0
        return first
    def expert(self, task):
        results = yield call("double", n=self.n)
        yield say(results[0])
""",
        "determinism",
        'an episode changes its task\'s data, {"n": ',
    ),
    "tool_without_a_hint": (
        "class Mine(Doubling):\n    @tool\n    async def half(self, n): 'a half'",
        "tools",
        "tool Mine.half: argument 'n' needs a type hint",
    ),
    "tool_without_a_docstring": (
        "class Mine(Doubling):\n    @tool\n    async def half(self, n: int): return n",
        "tools",
        "tool 'half' needs a docstring",
    ),
    "tool_that_forgets_to_return": (
        """
class Mine(Doubling):
    @tool
    async def double(self, n: int) -> int:
        \"\"\"n plus n\"\"\"
        n + n
    def expert(self, task):
        yield call("double", n=task.data["n"])
        yield say(str(2 * task.data["n"]))
""",
        "tools",
        "tool 'double' returned None, which the policy reads as a word",
    ),
    "tool_called_close": (
        "class Mine(Doubling):\n    @tool\n    async def close(self): 'close the door'",
        "tools",
        "tool Mine.close: 'close' is a name of the environment protocol's own",
    ),
    "tool_that_raises_on_what_a_policy_writes": (
        """
class Mine(Doubling):
    @tool
    async def find(self, name: str) -> int:
        \"\"\"look a name up\"\"\"
        return {"a": 1}[name]
""",
        "acts",
        "tool 'find': KeyError: ''",
    ),
    "waiting_that_blocks": (
        """
class Mine(Doubling):
    async def score(self):
        time.sleep(0.2)
        return await super().score()
""",
        "blocking",
        "score() blocks the event loop for 0.2",
    ),
    "task_that_is_left": (
        """
class Mine(Doubling):
    async def poll(self):
        while True:
            await asyncio.sleep(0.5)
    async def reset(self, task):
        self.polling = asyncio.create_task(self.poll())
        return await super().reset(task)
""",
        "leaks",
        "episodes left 16 asynchronous tasks (Task-",
    ),
    "thread_that_is_left": (
        """
import threading
class Mine(Doubling):
    async def reset(self, task):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        return await super().reset(task)
""",
        "leaks",
        "episodes left",
    ),
}
