"""The dashboard's pages: what a user sees, by NiceGUI's own simulation, and the command that serves them."""

import asyncio
import json
import math
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from nicegui import ui
from nicegui.testing import User
from simulated_user import simulated_user
from test_run_data import STATUS, make_run, step_metrics

from rl.config_file import ConfigError
from rl.dashboard import run_data, server
from rl.dashboard.demo import PART
from rl.dashboard.page import Page, Site
from rl.dashboard.pages import frame
from rl.dashboard.pages.frame import run_address
from rl.dashboard.pages.metrics import MAX_CHARTS
from rl.dashboard.server import check_address

pytestmark = pytest.mark.process

HOSTILE = "<img src=x onerror=alert(1)>"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path


@pytest.fixture
async def user(folder, monkeypatch) -> AsyncIterator[User]:
    monkeypatch.setattr(run_data, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(frame, "LIVE_SECONDS", 0.05)
    async with simulated_user(folder) as user:
        yield user


def shown(user: User) -> list[str]:
    return [label.text for label in user.find(ui.label).elements]


def charts(user: User) -> dict[str, list[str]]:
    """Title of each chart, and the names of its lines."""
    try:
        found = user.find(ui.echart).elements
    except AssertionError:
        return {}
    return {
        chart.options["title"]["text"]: [one["name"] for one in chart.options["series"]]
        for chart in found
    }


def rows(user: User) -> list[dict]:
    return [row for table in user.find(ui.table).elements for row in table.rows]


async def test_every_page_of_the_demo_says_that_it_holds_a_part(folder):
    make_run(folder / "quickstart", [step_metrics(1)])
    async with simulated_user(folder, f"the demo is {PART}") as user:
        for address in ("/", "/run/quickstart", "/run/quickstart/trajectories", "/run/gone"):
            await user.open(address)
            await user.should_see("a recorded quickstart; it holds a part of its trajectories")


async def test_an_empty_folder_says_how_to_begin_and_a_run_shows_by_itself(user, folder):
    await user.open("/")
    await user.should_see("Start one with `dorado train configs/quickstart.toml`")
    make_run(folder / "demo", [step_metrics(3)], summary={"status": "finished"})
    await user.should_not_see("Start one with", retries=50)
    (row,) = rows(user)
    assert (row["name"], row["state"], row["step"]) == ("demo", "finished", "3 / 4")
    assert row["address"] == "/run/demo"


async def test_the_overview_shows_the_run_and_follows_it(user, folder):
    rates = {"eval/calculator/pass_rate": 0.25}
    run = make_run(folder / "demo", [{"step": 0, **rates}, step_metrics(1)], status=STATUS)
    await user.open("/run/demo")
    assert {"running", "training", "0.25", "before training", "bound 2"} <= set(shown(user))
    assert charts(user)["mean reward"] == ["calculator"]
    assert charts(user)["seconds of a step"] == [
        "wait for batch",
        "wait for policy",
        "forward and backward",
    ]
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(step_metrics(2, **{"rollout/units/reward": 0.75})) + "\n")
        file.write(json.dumps(step_metrics(3, **{"env/units/breaker": 1.0})) + "\n")
    await user.should_see("units: its breaker is open", retries=50)
    for _ in range(50):
        if charts(user)["mean reward"] == ["mean", "calculator", "units"]:
            return
        await asyncio.sleep(0.1)
    pytest.fail("the chart does not follow the run")


async def test_a_run_that_has_not_begun_to_play_says_what_comes_first(user, folder):
    make_run(folder / "demo")
    await user.open("/run/demo")
    await user.should_see("No metrics yet.")
    await user.should_see("Cold start and the start of the engines come first")


PAGES = tuple(page.below for page in server.PAGES if page.title)


@pytest.mark.parametrize("page", PAGES)
async def test_a_run_that_is_not_there_says_so(user, page):
    await user.open(run_address("gone", page))
    await user.should_see("There is no run named 'gone'")


def _notes_page(site: Site, route: str) -> None:
    @ui.page(route)
    def page(name: str) -> None:
        with frame.frame(site, name, "notes"):
            ui.label(f"notes of {name}, of {len(site.runs.names())} runs")


async def test_a_new_page_is_one_function_and_one_entry(folder, monkeypatch):
    make_run(folder / "demo")
    one = Page("/run/{name}/notes", "Notes", _notes_page)
    monkeypatch.setattr(server, "PAGES", (*server.PAGES, one))
    async with simulated_user(folder) as user:
        await user.open("/run/demo")
        (link,) = [one for one in user.find(ui.link).elements if one.text == "Notes"]
        assert link.props["href"] == "/run/demo/notes"
        await user.open("/run/demo/notes")
        await user.should_see("notes of demo, of 1 runs")


async def test_an_address_opens_the_metrics_that_it_names(user, folder):
    for name in ("demo", "other"):
        make_run(folder / name, [step_metrics(1), step_metrics(2)])
    await user.open("/run/demo/metrics?match=^time/&also=other&also=gone")
    assert charts(user) == {
        f"time/{name}_seconds": ["demo", "other"] for name in ("learner", "total", "wait_for_batch")
    }
    assert "3 of 7 keys" in shown(user)
    await user.should_see("There is no run named 'gone'.")


async def test_the_expression_filters_and_the_address_follows(user, folder):
    make_run(folder / "demo", [step_metrics(1)])
    make_run(folder / "other", [step_metrics(1)])
    await user.open("/run/demo/metrics?match=.")
    assert len(charts(user)) == 7
    went: list[str] = []
    ui.navigate.history.replace = lambda address: went.append(str(address))
    (field,) = user.find(ui.input).elements
    field.set_value("all/reward")
    await user.should_see("1 of 7 keys", retries=50)
    assert list(charts(user)) == ["rollout/all/reward"]
    field.set_value("(")
    await user.should_see("is no regular expression", retries=50)
    field.set_value("nothing like it")
    await user.should_see("None of 7 keys matches.", retries=50)
    assert went[-1] == "/run/demo/metrics?match=nothing+like+it"


async def test_smoothing_scale_and_axis_are_in_the_address_and_in_the_chart(user, folder):
    steps = [step_metrics(n, **{"loss/loss": float(n % 2)}) for n in range(1, 5)]
    make_run(folder / "demo", steps)
    await user.open("/run/demo/metrics?match=^loss&smooth=0.5&log=1&x=time")
    (chart,) = user.find(ui.echart).elements
    raw, smooth = chart.options["series"]
    assert raw["data"] == [[0.0, 1.0], [2.0, 1.0]], "what is not above 0 has no logarithm"
    assert [x for x, _ in smooth["data"]] == [0.0, 1.0, 2.0, 3.0]
    assert smooth["data"][1][1] == pytest.approx(1 / 3)
    assert chart.options["yAxis"]["type"] == "log"
    went: list[str] = []
    ui.navigate.history.replace = lambda address: went.append(str(address))
    (slider,) = user.find(ui.slider).elements
    slider.set_value(0.9)
    async with asyncio.timeout(30):
        while not went:
            await asyncio.sleep(0.01)
    assert went == ["/run/demo/metrics?match=%5Eloss&smooth=0.9&log=1&x=time"]
    for odd in ("x", "nan", "-1", "1e999"):
        answer = await user.http_client.get(f"/run/demo/metrics?smooth={odd}&x=odd")
        assert answer.status_code == 200


async def test_what_is_shown_can_be_had_as_csv(user, folder):
    make_run(folder / "demo", [step_metrics(1, **{"=cmd()": 0.5}), step_metrics(2)])
    make_run(folder / "other", [step_metrics(1)])
    answer = await user.http_client.get("/run/demo/metrics.csv?match=^=|total&also=other&also=gone")
    assert answer.headers["content-type"].startswith("text/csv")
    assert answer.text.splitlines() == [
        "run,key,step,time,value",
        "demo,'=cmd(),1,101.0,0.5",
        "demo,time/total_seconds,1,101.0,5.0",
        "demo,time/total_seconds,2,102.0,5.0",
        "other,time/total_seconds,1,101.0,5.0",
    ]
    assert (await user.http_client.get("/run/gone/metrics.csv")).status_code == 404
    assert (await user.http_client.get("/run/demo/metrics.csv?match=(")).text.count("\n") == 1
    for expression, status in (("(.*.*)*x$", 200), ("(.*)*\\1", 400)):
        answer = await user.http_client.get("/run/demo/metrics.csv", params={"match": expression})
        assert (answer.status_code, answer.text.count("\n")) == (status, 1)


async def test_more_charts_than_fit_are_drawn_as_they_come_into_view(user, folder):
    make_run(folder / "demo", [{"step": 1, **{f"k{i:03}": 1.0 for i in range(100)}}])
    await user.open("/run/demo/metrics?match=.")
    assert len(charts(user)) == MAX_CHARTS
    await user.should_see("100 of 100 keys")
    await user.should_see("Others · 100")
    places = [e for e in user.find(ui.element).elements if e.tag == "q-intersection"]
    assert len(places) == 100 - MAX_CHARTS
    [listener] = places[0]._event_listeners.values()
    for _ in range(2):  # what was drawn once is not drawn again
        places[0]._handle_event({"listener_id": listener.id, "args": True})
        assert len(charts(user)) == MAX_CHARTS + 1
    with (folder / "demo/metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "loss/late": 1.0}\n')
    await user.should_see("101 of 101 keys")
    assert "loss/late" in charts(user)


async def test_every_key_that_matches_has_a_place_in_its_section(user, folder):
    keys = {f"{kind}/k{i:02}": 1.0 for kind in ("loss", "staleness") for i in range(20)}
    make_run(folder / "demo", [{"step": 1, **keys, "time/total_seconds": 1.0}])
    await user.open("/run/demo/metrics?match=.")
    drawn = list(charts(user))
    assert len(drawn) == MAX_CHARTS and "time/total_seconds" in drawn
    for heading in ("Stability · 20", "Versions and queues · 20", "Time and throughput · 1"):
        await user.should_see(heading)
    places = [e for e in user.find(ui.element).elements if e.tag == "q-intersection"]
    assert len(places) + len(drawn) == 41
    table = await user.http_client.get("/run/demo/metrics.csv?match=.")
    named = {line.split(",")[1] for line in table.text.splitlines()[1:]}
    assert named == {*keys, "time/total_seconds"}


async def test_what_is_not_finite_is_an_alert(user, folder):
    bad = {
        "loss/loss": math.nan,
        "loss/grad_norm": math.inf,
        "loss/kl": -math.inf,
        "reward": math.nan,
    }
    make_run(folder / "demo", [step_metrics(1), step_metrics(2, **bad), step_metrics(3)])
    (folder / "demo/not_finite.jsonl").write_text(
        '{"step": 2, "keys": ["loss/loss"]}\n{"step": 2, "ke', encoding="utf-8"
    )
    await user.open("/run/demo")
    await user.should_see(
        "loss/grad_norm, loss/kl, loss/loss and 1 more are nan or infinite at step 2; the charts leave"
    )


async def test_each_page_has_its_title_and_an_address_that_leads_nowhere_has_a_page(user, folder):
    make_run(folder / "demo", [step_metrics(1)])
    for address, title in (
        ("/", "Dorado"),
        ("/run/demo", "Overview · demo · Dorado"),
        ("/run/demo/metrics", "Metrics · demo · Dorado"),
        ("/run/demo/health", "Health · demo · Dorado"),
    ):
        assert f"<title>{title}</title>" in (await user.http_client.get(address)).text
    for address in ("/nowhere", "/run", "/run/demo/nothing", f"/{HOSTILE}"):
        answer = await user.http_client.get(address)
        assert answer.status_code == 404 and "There is no page" in answer.text
        assert "All runs" in answer.text and "<img" not in answer.text
    assert (await user.http_client.get("/_nicegui/x/libraries/y")).status_code == 404


async def test_what_is_hostile_is_text_on_every_page(user, folder):
    bad = {f"rollout/{HOSTILE}/reward": 1.0, f"eval/{HOSTILE}/pass_rate": 0.5, ":on": 1.0}
    run = make_run(folder / HOSTILE, [step_metrics(1, **bad)], status=STATUS)
    (run.folder / "config.toml").write_text(
        f'mode = "{HOSTILE}"\nsteps = "{HOSTILE}"\n', encoding="utf-8"
    )
    status = STATUS | {"silent": [HOSTILE], "stage": HOSTILE}
    (run.folder / "status.json").write_text(json.dumps(status), encoding="utf-8")
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('"' + "x" * 2**20 + '"\n{"step": 2, "half')
    everything = run_address(HOSTILE, "metrics", [("match", HOSTILE), ("also", HOSTILE)])
    span = {"lane": HOSTILE, "name": HOSTILE, "what": HOSTILE, "start": 1.0, "end": 2.0}
    (run.folder / "events.jsonl").write_text(
        "".join(
            json.dumps(span | {"lane": lane}) + "\n" for lane in (HOSTILE, "rollout", "learner")
        ),
        encoding="utf-8",
    )
    pages = [run_address(HOSTILE, page) for page in PAGES]
    for address in ("/", *pages, everything, run_address(f"no {HOSTILE}")):
        answer = await user.http_client.get(address)
        assert answer.status_code == 200
        assert "onerror" in answer.text and "<img" not in answer.text
    await user.open(run_address(HOSTILE))
    await user.should_see(f"{HOSTILE} does not answer")
    await user.should_see("metrics.jsonl: 1 lines could not be read")


def test_where_others_could_connect_it_wants_a_password():
    with pytest.raises(ConfigError, match=r"--host: at 0\.0\.0\.0 .* needs a password"):
        check_address("0.0.0.0", 8080, None)
    check_address("0.0.0.0", 0, "a long password")


async def test_the_timeline_follows_the_run_and_its_zoom_is_in_the_address(user, folder):
    run = make_run(folder / "demo")
    await user.open("/run/demo/timeline")
    await user.should_see("No events yet.")
    with (run.folder / "events.jsonl").open("w", encoding="utf-8") as file:
        for step in range(1, 5):
            span = {"lane": "learner", "name": f"step {step}", "start": 10.0 * step}
            file.write(json.dumps(span | {"end": 10.0 * step + 5}) + "\n")
    await user.should_see("learner idle", retries=50)
    assert "43%" in shown(user)
    went: list[str] = []
    ui.navigate.history.replace = lambda address: went.append(str(address))
    user.find("last 60 s").click()
    async with asyncio.timeout(30):
        while not went:
            await asyncio.sleep(0.01)
    assert went == ["/run/demo/timeline?from=-60"]
    await user.open("/run/demo/timeline?from=0&to=5")
    await user.should_see("0%")
    (lanes,) = (
        c for c in user.find(ui.echart).elements if c.options["yAxis"]["type"] == "category"
    )
    assert [bar["name"] for bar in lanes.options["series"][0]["data"]] == [
        "learner: step 1\n5 s, from 0:00:00"
    ]


async def test_the_environments_page_has_the_books_and_follows_the_run(user, folder):
    run = make_run(folder / "demo")
    await user.open("/run/demo/environments")
    await user.should_see("Nothing has been played yet.")
    counts = {"dispatched": 8, "in_flight": 4, "filtered:zero_variance": 4}
    (run.folder / "status.json").write_text(
        json.dumps(STATUS | {"ledger": {"units": counts}}), encoding="utf-8"
    )
    await user.should_not_see("Nothing has been played yet.", retries=50)
    assert "filtered: zero variance 4" in [row.get("reasons") for row in rows(user)]
    assert charts(user)["what became of trajectories"] == ["filtered", "in flight"]


async def test_the_health_page_opens_the_log_that_its_address_names(user, folder):
    run = make_run(folder / "demo", status=STATUS)
    (run.folder / "logs").mkdir()
    for name in ("engine-0.log", "learner.log"):
        (run.folder / "logs" / name).write_text(f"{HOSTILE} said {name}\n", encoding="utf-8")
    await user.open("/run/demo/health?log=engine-0.log")
    assert f"{HOSTILE} said engine-0.log\n" in shown(user)
    went: list[str] = []
    ui.navigate.history.replace = lambda address: went.append(str(address))
    (chosen,) = user.find(ui.select).elements
    assert list(chosen.options) == ["engine-0.log", "learner.log"]
    chosen.set_value("learner.log")
    await user.should_see("said learner.log", retries=50)
    assert went == ["/run/demo/health?log=learner.log"]
    await user.open("/run/demo/health?log=../config.toml")
    await user.should_see("There is no file '../config.toml' in logs/.")


async def test_the_config_page_says_where_values_come_from_and_what_differs(user, folder):
    origins = {"steps": "--steps", "name": "file a.toml"}
    make_run(folder / "demo", origins=origins)
    other = make_run(folder / "other")
    (other.folder / "config.toml").write_text(
        f'name = "demo"\nsteps = 9\n"{HOSTILE}" = 1\n', encoding="utf-8"
    )
    await user.open("/run/demo/config")
    found = {row["key"]: (row["value"], row["origin"]) for row in rows(user)}
    assert found == {
        "name": ('"demo"', "file a.toml"),
        "steps": ("4", "--steps"),
        "mode": ('"dora"', "default"),
        "max_staleness": ("2", "default"),
    }
    await user.open("/run/demo/config?also=other&differing=1&also=gone")
    await user.should_see("There is no run named 'gone'.")
    assert {row["key"]: (row["value"], row["other0"]) for row in rows(user)} == {
        "steps": ("4", "9"),
        "mode": ('"dora"', "-"),
        "max_staleness": ("2", "-"),
        HOSTILE: ("-", "1"),
    }
    went: list[str] = []
    ui.navigate.history.replace = lambda address: went.append(str(address))
    (field,) = user.find(ui.input).elements
    field.set_value("stale")
    await user.should_see("1 settings", retries=50)
    assert went[-1] == "/run/demo/config?also=other&match=stale&differing=1"
    await user.open("/run/other/config?match=steps")
    assert [row["origin"] for row in rows(user)] == ["not recorded"]


async def test_the_experts_page_draws_each_layer_and_follows_the_run(user, folder):
    run = make_run(folder / "demo", [step_metrics(1, **{"router/zero_share": 0.3})])
    await user.open("/run/demo/experts")
    titles = ["zero-computation experts: share of choices"]
    assert list(charts(user)) == titles
    line = {"step": 1, "computing": 2, "loads": [[0.5, 0.25, 0.25]] * 10}
    (run.folder / "experts.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    await user.should_see("layers 8 to 9", retries=50)
    titles += [f"layer {n}: load over the mean" for n in range(8)]
    assert sorted(charts(user)) == sorted(titles)
    await user.open("/run/demo/experts?layer=8")
    assert sorted(charts(user))[:2] == [
        "layer 8: load over the mean",
        "layer 9: load over the mean",
    ]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"--port: .* cannot be used"):
            check_address("127.0.0.1", taken.getsockname()[1], None)


def dorado(*arguments: str, tmpdir: Path | None = None, **options) -> subprocess.Popen:
    # NiceGUI does not serve where it finds a test around it.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "NICEGUI"))}
    return subprocess.Popen(
        [sys.executable, "-m", "rl", "dashboard", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=inherited | {"PYTHONPATH": str(ROOT)} | ({"TMPDIR": str(tmpdir)} if tmpdir else {}),
        **options,
    )


def test_the_command_serves_runs_to_this_machine_and_writes_nothing(tmp_path):
    run = make_run(tmp_path / "demo", [step_metrics(1)], status=STATUS)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in run.folder.iterdir())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with dorado(str(tmp_path), "--port", str(port), cwd=tmp_path) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert re.search(rf"http://127\.0\.0\.1:{port}\b", said), said
            client = httpx.Client(
                base_url=f"http://127.0.0.1:{port}",
                transport=httpx.HTTPTransport(retries=6),
                timeout=60,
            )
            with client:
                page = client.get("/run/demo")
                assert page.status_code == 200 and "mean reward" in page.text
                assert "https://" not in re.sub(r"https://\S*(w3\.org|nicegui\.io)", "", page.text)
                assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400
                live = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
                asked = client.get(live, headers={"origin": "http://elsewhere.example"})
                assert asked.status_code == 403, "another page gets no live connection"
                assert page.headers["x-frame-options"] == "DENY"
        finally:
            process.terminate()
            process.wait(30)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in run.folder.iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_bad_input_is_one_sentence_and_code_2(tmp_path):
    with dorado(str(tmp_path / "nothing")) as process:
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("error: dashboard ") and said.count("\n") == 1


def test_the_demo_is_a_recorded_quickstart_that_goes_away_with_the_dashboard(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with dorado("--demo", "--port", str(port), tmpdir=tmp_path) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            transport = httpx.HTTPTransport(retries=6)
            with httpx.Client(transport=transport, timeout=60) as client:
                page = client.get(f"http://127.0.0.1:{port}/run/quickstart")
            assert page.status_code == 200 and "finished" in page.text
            assert [path.name for path in tmp_path.glob("*/*")] == ["quickstart"]
        finally:
            process.terminate()
            process.wait(30)
    assert not list(tmp_path.iterdir())
