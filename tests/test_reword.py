"""Requests in other words: taken where every fact is still there; a pack of them plays as before."""

import http.server
import json
import re
from pathlib import Path

import pytest
from serving import serving
from typer.testing import CliRunner

from envs.env import Task
from envs.generated.environment import Generated, GeneratedConfig, domain_called
from envs.generated.generator import make_task
from envs.generated.pack import Pack
from envs.generated.task_data import Difficulty
from envs.generated.wording import body_and_end
from envs.session import demonstrate
from rl.config_error import ConfigError
from rl.env_tools.cli import app
from rl.env_tools.packs import chosen_domains, generate
from rl.env_tools.reword import facts_of, fault_of, reword, reworded

TASK = make_task(domain_called("bank"), "x/1", Difficulty(chain=3, hidden=0, question=1.0))
BODY, END = body_and_end(TASK.request)


def other(text: str) -> str:
    """The words of a request, others; names, numbers and points are left."""
    return re.sub(r"Please|Hello,|Could you", "Kindly", text).replace(" the ", " that ")


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (other(BODY), ""),
        ("", "it is empty"),
        (BODY + " please" * 200, "it is much longer"),
        (BODY.replace("(2)", "(3)"), "does not say (2)"),
        (BODY + " (9)", "it says (9)"),
        (BODY + " 777", "it says 777"),
    ],
)
def test_a_text_is_taken_that_says_what_the_first_one_said(changed, why):
    assert why in fault_of(changed, BODY, TASK) and bool(why) == bool(fault_of(changed, BODY, TASK))


def test_a_name_that_is_lost_swapped_or_anothers_is_found():
    names = [fact for fact in facts_of(TASK, BODY) if fact[0].isupper()]
    first, second = list(dict.fromkeys(names))[:2]
    assert first in fault_of(BODY.replace(first, "somebody", 1), BODY, TASK)
    swapped = BODY.replace(first, "\0").replace(second, first).replace("\0", second)
    assert "order" in fault_of(swapped, BODY, TASK)
    people = {str(row["name"]) for row in TASK.rows["client"]} - set(names)
    assert "where that was not said" in fault_of(f"{BODY} For {min(people)}.", BODY, TASK)


def test_the_writer_is_told_what_was_wrong_and_the_text_stays_where_it_cannot():
    said = iter(["nothing of it", other(BODY)])
    heard = []

    def writer(chat):
        heard.append(chat[-1]["content"])
        return next(said)

    assert reworded(TASK, writer) == (type(reworded(TASK, lambda _: BODY)))(
        f"{other(BODY)} {END}", True
    )
    assert "not the same request: it does not say (1)" in heard[1] and END not in heard[0]
    kept = reworded(TASK, lambda _: "no", attempts=2)
    assert (kept.request, kept.taken) == (TASK.request, False) and "does not say" in kept.why


async def test_a_pack_is_reworded_goes_on_after_an_interruption_and_its_expert_still_solves(
    tmp_path,
):
    first, second = tmp_path / "first", tmp_path / "second"
    fixed = {"chain": 2, "hidden": 0, "noise": 0}
    generate(first, chosen_domains("bank,clinic"), tasks=6, seed=1, fixed=fixed, processes=1)
    asked: list[str] = []

    def failing(chat):
        asked.append(chat[0]["content"])
        if len(asked) == 4:
            raise ConfigError("--with http://x: it is gone")
        return other(chat[0]["content"].rpartition("\n\n")[2])

    with pytest.raises(ConfigError, match="gone"):
        reword(first, second, failing, model="m", at_once=1)
    assert not second.exists()
    head = reword(first, second, failing, model="m", at_once=1)
    assert head["wording"]["reworded"] + head["wording"]["as_they_were"] == 6
    assert head["wording"]["reworded"] >= 5 and len(set(asked)) == 6
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    old, new = Pack(first), Pack(second)
    assert old.digest != new.digest == head["digest"] and new.sheet["wording"]["of"] == old.digest
    assert any(old.task(i).request != new.task(i).request for i in range(6))
    assert all(old.task(i).rubric == new.task(i).rubric for i in range(6))
    env = Generated(GeneratedConfig(pack=str(second)))
    tasks = env.tasks("train", 0)
    task: Task = next(tasks)
    _, _, rewards = await demonstrate(Generated(GeneratedConfig(pack=str(second))), task)
    assert rewards == {"solved": 1.0}


def test_the_command_asks_a_server(tmp_path: Path):
    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text = other(body["messages"][0]["content"].rpartition("\n\n")[2])
            answer = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    generate(
        tmp_path / "a", chosen_domains("bank"), tasks=2, seed=1, fixed={"chain": 1}, processes=1
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    with serving(server):
        url = f"http://127.0.0.1:{server.server_port}/v1"
        words = ["reword", str(tmp_path / "a"), str(tmp_path / "b"), "--with", url, "--served", "m"]
        done = CliRunner().invoke(app, words)
        again = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and "requests reworded" in done.output, done.output
    assert again.exit_code == 2 and "exists already" in again.output
