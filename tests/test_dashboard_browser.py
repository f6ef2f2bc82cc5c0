"""The dashboard in a real browser: every page over the recorded quickstart, and over a hostile run.

Needs Chromium (Debian package `chromium`); without it these tests are skipped.
"""

import importlib.util
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from test_run_data import make_run, step_metrics

from rl.dashboard import charts, password
from rl.dashboard.demo import demo_runs
from rl.dashboard.page import RUN as RUN_ROUTE
from rl.dashboard.server import PAGES

expect.set_options(timeout=30_000)  # a busy machine
ROOT = Path(__file__).parent.parent
_SPEC = importlib.util.spec_from_file_location("screenshots", ROOT / "scripts/screenshots.py")
assert _SPEC is not None and _SPEC.loader is not None
screenshots = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(screenshots)
pytestmark = [
    pytest.mark.slow,  # a browser: each page takes seconds, all of them minutes
    pytest.mark.skipif(
        screenshots.CHROMIUM is None, reason="no Chromium (apt-get install chromium)"
    ),
]
RUN = "/run/quickstart"
HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
# By route: a text on the page over the quickstart, and how many charts it has at least.
EXPECTED = {
    "/": ("quickstart", 0),
    "/compare": ("Choose two runs or more", 0),
    RUN_ROUTE: ("held-out", 12),
    f"{RUN_ROUTE}/metrics": ("keys", 12),
    f"{RUN_ROUTE}/timeline": ("engine-0", 1),
    f"{RUN_ROUTE}/trajectories": ("trajectories", 1),
    f"{RUN_ROUTE}/group/{{group_id:path}}": ("policy, turn 1", 0),
    f"{RUN_ROUTE}/trajectory/{{id:path}}": ("policy, turn 1", 0),
    f"{RUN_ROUTE}/environments": ("calculator", 1),
    f"{RUN_ROUTE}/experts": ("Experts", 5),
    f"{RUN_ROUTE}/health": ("engine-0", 0),
    f"{RUN_ROUTE}/config": ("learner.optim.lr", 0),
}
ROUTES = [page.route for page in PAGES]
TITLED = [page for page in PAGES if page.title and page.below]
INK = """canvas => {
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(data.buffer)).size;
}"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The recorded quickstart, and a run whose every text is hostile."""
    folder = tmp_path_factory.mktemp("runs")
    with demo_runs() as demo:
        shutil.copytree(demo, folder, dirs_exist_ok=True)
    screenshots.write_report(folder)
    hostile(folder / "hostile")
    yield folder


def hostile(folder: Path) -> None:
    metrics = [step_metrics(1, **{f"rollout/{HOSTILE}/reward": 1.0, ":constructor": 2.0})]
    make_run(folder, metrics, status={"stage": HOSTILE})
    (folder / "config.toml").write_text(
        f"name = '''{HOSTILE}'''\n\"{'x' * 300}\" = 1\n", encoding="utf-8"
    )
    (folder / "events.jsonl").write_text(
        json.dumps({"lane": HOSTILE, "name": HOSTILE, "start": 1.0, "end": 2.0})
        + '\n{"lane": "half',
        encoding="utf-8",
    )
    (folder / "trajectories").mkdir()
    message = {"role": "user", "content": HOSTILE + "x" * 2**20, "name": HOSTILE, "calls": []}
    turn = {
        "prompt_ids": [1, 2],
        "completion_ids": [3],
        "rollout_logprobs": [-0.5],
        "versions": [{"version": 0, "start": 0, "end": 1}],
        "finish_reason": "stop",
        "engine": HOSTILE,
        "text": HOSTILE,
        "calls": [],
        "observations": [message],
    }
    record = {
        "id": "h",
        "group": "g",
        "env": HOSTILE,
        "task": {"id": "t", "data": {HOSTILE: HOSTILE}},
        "opening": [message],
        "turns": [turn],
        "stop_reason": "completed",
        "evidence": {HOSTILE: 1.0},
        "phases": [],
        "fault": HOSTILE,
        "trace": HOSTILE,
        "rewards": {HOSTILE: 1.0},
        "reward": 1.0,
    }
    whole = json.dumps(record).encode() + b"\n"
    broken = json.dumps(record | {"id": "b"}).encode().replace(b"completed", b"\xff\xfe\\ud800")
    half = whole[:1000]
    (folder / "trajectories/c.jsonl").write_bytes(whole + broken + b"\n" + half)
    index = sqlite3.connect(folder / "trajectories.sqlite")
    from rl.record.run_folder import _INDEX

    index.execute(_INDEX)
    offsets = {"h": 0, "b": len(whole), "half": len(whole) + len(broken) + 1, "gone": 10**9}
    for id, offset in offsets.items():
        row = (
            id,
            "g",
            HOSTILE,
            "train",
            "t",
            HOSTILE,
            1.0,
            HOSTILE,
            0,
            0,
            1,
            3,
            1,
            1.0,
            1.0,
            HOSTILE,
        )
        marks = ",".join("?" * 18)
        index.execute(
            f"insert into trajectories values ({marks})", (*row, "trajectories/c.jsonl", offset)
        )
    index.commit()
    index.close()


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    with screenshots.served(runs) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with screenshots.chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page whose test fails where the console has an error, or something was asked of another host."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, base_url=address)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}"))
    page.on("request", lambda r: wrong.append(r.url) if not at_home(r.url, address) else None)
    yield page
    context.close()
    assert wrong == []


def at_home(url: str, address: str) -> bool:
    return url.startswith((address, address.replace("http", "ws"), "data:", "blob:", "file:"))


@pytest.fixture(scope="module")
def one(runs: Path) -> tuple[str, str]:
    """A group of the demo, and one of its trajectories that was trained on."""
    return screenshots.trained(runs)


def where(route: str, one: tuple[str, str]) -> str:
    """A route's address for the quickstart, its group and its trajectory."""
    known = {"name": "quickstart", "group_id": one[0], "id": one[1]}
    return re.sub(r"{(\w+)(:path)?}", lambda found: known[found[1]], route)


def drawn(page: Page, charts: int) -> None:
    """So many charts are there, and each has something on it."""
    canvases = page.locator("canvas")
    if charts:
        expect(canvases.nth(charts - 1)).to_be_attached()
    for canvas in canvases.all():
        inked(canvas)


def inked(canvas: Locator) -> None:
    """Something is drawn on it."""
    give_up = time.monotonic() + 10
    while (inks := canvas.evaluate(INK)) < 3 and time.monotonic() < give_up:
        canvas.page.wait_for_timeout(100)
    assert inks >= 3, "an empty chart"


@pytest.mark.parametrize("route", ROUTES)
def test_each_page_shows_the_quickstart(page, one, route):
    text, charts = EXPECTED.get(route, ("quickstart", 0))
    page.goto(where(route, one))
    expect(page.get_by_text(text).locator("visible=true").first).to_be_visible()
    drawn(page, charts)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280, "it fits 1280 pixels"


VIEWPORTS = (screenshots.SIZE, screenshots.WIDE, screenshots.PHONE)


@pytest.mark.parametrize("size", VIEWPORTS, ids=lambda size: str(size["width"]))
def test_the_pages_that_one_steers_by_fit_every_screen(page, runs, one, size):
    page.set_viewport_size(size)
    report = screenshots.address("report", runs)
    trajectory = where(f"{RUN_ROUTE}/trajectory/{{id:path}}", one)
    compare = "/compare?run=quickstart&run=hostile"
    for place in ("/", RUN, f"{RUN}/trajectories?step=20", trajectory, compare, report):
        page.goto(place)
        expect(page.get_by_text("quickstart").first).to_be_attached()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], place


def middle(canvas: Locator, share: float) -> dict[str, float]:
    """A place in a chart, so far from the left of its axes."""
    box = canvas.bounding_box()
    assert box is not None
    return {"x": box["width"] * (0.1 + 0.85 * share), "y": box["height"] * 0.5}


@pytest.mark.parametrize(
    ("chart", "query"), [(0, "split=heldout-after"), (1, "during="), (2, "step=")]
)
def test_a_place_in_a_chart_opens_the_trajectories_behind_it(page, chart, query):
    page.goto(RUN)
    canvas = page.locator("canvas").nth(chart)
    inked(canvas)
    canvas.click(position=middle(canvas, 0.8))
    page.wait_for_url(re.compile(f"/trajectories\\?{query}"))
    expect(page.get_by_text(re.compile(r"^\d+ trajectories"))).to_be_visible()


def test_a_bar_of_the_timeline_opens_its_trajectories(page):
    page.goto(f"{RUN}/timeline?from=-60")
    canvas = page.locator("canvas").first
    inked(canvas)
    box = canvas.bounding_box()
    assert box is not None
    for lane in range(1, 8):  # one of the lanes has a bar in the middle
        canvas.click(position={"x": box["width"] * 0.5, "y": 4 + 24 * lane + 12})
        page.wait_for_timeout(500)
        if "/trajectories?" in page.url:
            break
    page.wait_for_url(re.compile("/trajectories\\?"))


def test_words_are_searched_as_they_are_typed(page):
    page.goto(f"{RUN}/trajectories")
    page.get_by_label("words in messages").fill("no sensor")
    page.wait_for_url(re.compile("text=no\\+sensor"))
    expect(page.get_by_text(re.compile(r"^\d+ trajectories"))).to_be_visible()
    expect(page.locator("tbody tr").first).to_contain_text("sensors")
    page.locator("tbody tr a").first.click()
    expect(page.get_by_text("no sensor").first).to_be_visible()
    expect(page.get_by_text(re.compile(r"tries of this task|tried once")).first).to_be_visible()


def test_runs_are_filtered_and_chosen_to_be_compared(page):
    page.goto("/")
    expect(page.get_by_role("link", name="quickstart")).to_be_visible()
    for name in ("quickstart", "hostile"):
        page.locator("tr", has=page.get_by_role("link", name=name)).get_by_role("checkbox").click()
    page.get_by_role("button", name="compare").click()
    page.wait_for_url(re.compile("/compare\\?run="))
    expect(page.get_by_text("2 runs compared")).to_be_visible()
    page.goto("/")
    page.get_by_label("filter by any column").fill("finished")
    expect(page.get_by_role("link", name="hostile")).to_have_count(0)
    expect(page.get_by_role("link", name="quickstart")).to_be_visible()


def test_the_questions_of_the_docs_are_answered_in_the_clicks_that_they_say(page):
    """From the table of runs each; every click is counted."""
    clicks: list[str] = []

    def click(what: Locator, **where: Any) -> None:
        expect(what).to_be_visible()
        what.click(**where)
        clicks.append(page.url)

    def asked(question: str, told: int) -> None:
        row = f"| {question} | {len(clicks)}: "
        assert len(clicks) == told and row in (ROOT / "docs/dashboard.md").read_text(
            encoding="utf-8"
        )
        clicks.clear()
        page.goto("/")

    run = page.get_by_role("link", name="quickstart")
    page.goto("/")
    click(run)
    expect(page.get_by_text("0.50 before training")).to_be_visible()
    inked(page.locator("canvas").first)
    asked("Is it learning?", 1)

    click(run)
    expect(page.get_by_text(re.compile("reward of sensors rose at step"))).to_have_count(2)
    chart = page.locator("canvas").nth(1)
    inked(chart)
    click(chart, position=middle(chart, 0.3))
    expect(page.get_by_text(re.compile("finished in the time of step"))).to_be_visible()
    asked("Why did the reward move?", 2)

    click(run)
    click(page.get_by_role("link", name="Environments", exact=True))
    expect(page.get_by_text("error: busy").first).to_be_visible()
    asked("Which environment or tool is broken?", 2)

    click(run)
    click(page.get_by_role("link", name="Environments", exact=True))
    click(page.locator("tr", has_text="error: busy").get_by_role("link").first)
    expect(page.get_by_text("policy, turn 1").first).to_be_visible()
    expect(page.get_by_text("error: busy").first).to_be_visible()
    asked("What does the policy do wrong?", 3)

    for name in ("quickstart", "hostile"):
        click(page.locator("tr", has=page.get_by_role("link", name=name)).get_by_role("checkbox"))
    click(page.get_by_role("button", name="compare"))
    expect(page.get_by_text(re.compile("is better than .* with probability"))).to_be_visible()
    asked("Which of two runs is better?", 3)


def test_the_pages_lead_to_each_other(page):
    page.goto("/")
    page.get_by_role("link", name="quickstart").click()
    for one in TITLED:
        page.get_by_role("link", name=one.title, exact=True).click()
        page.wait_for_url(re.compile(f"{RUN}/{one.below}"))
    page.get_by_role("link", name="Overview", exact=True).click()
    page.wait_for_url(re.compile(f"{RUN}$"))


def test_dark_and_light(page):
    page.goto(RUN)
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.get_by_role("button", name="dark or light").click()
    page.wait_for_function(
        "before => getComputedStyle(document.body).backgroundColor !== before", arg=before
    )


VIEWS = ("logprob", "difference", "advantage", "entropy", "mask", "version", "experts", "ids")
CONTRAST = (Path(__file__).parent / "contrast.js").read_text(encoding="utf-8")


@pytest.mark.parametrize(("scheme", "ground"), [("light", "#ffffff"), ("dark", "#000000")])
def test_every_text_can_be_read_in_light_and_in_dark(page, one, address, scheme, ground):
    page.emulate_media(color_scheme=scheme)
    trajectory = where(f"{RUN_ROUTE}/trajectory/{{id:path}}", one)
    places = [where(route, one) for route in ROUTES]
    places += [f"{trajectory}?view={view}" for view in VIEWS]
    places += ["/run/hostile", "/run/hostile/trajectory/h", "/run/gone", f"{RUN}/metrics?match=no"]
    faint = []
    for place in places:
        page.goto(place)
        expect(page.locator(f".body--{scheme} .page")).to_be_visible()
        page.wait_for_timeout(300)
        faint += [(place, *found) for found in page.evaluate(CONTRAST)]
    assert faint == []
    # What is drawn on a canvas has one colour on both grounds.
    assert contrast(page, charts.GREY, ground) >= 4.5
    on_page = page.evaluate("getComputedStyle(document.body).backgroundColor")
    wanted = {"#ffffff": "rgb(255, 255, 255)", "#000000": "rgb(0, 0, 0)"}[ground]
    assert on_page in (wanted, "rgba(0, 0, 0, 0)" if scheme == "light" else wanted)


def contrast(page: Page, colour: str, ground: str) -> float:
    """The contrast of a text of this colour, as it is measured on the pages."""
    page.goto("about:blank")  # whose scripts touch nothing
    page.set_content(f"<body style='background: {ground}'><p style='color: {colour}'>x</p></body>")
    found = page.evaluate(CONTRAST.replace("found < wanted", "true"))
    return found[0][0]


def test_the_contrast_of_a_faint_text_is_found(page):
    assert contrast(page, "#000", "#fff") == 21
    assert contrast(page, "#777", "#fff") == pytest.approx(4.48)
    assert contrast(page, "#fff", "#0072b2") == pytest.approx(5.19)
    page.set_content("<p style='color: #777'>x</p><p style='opacity: 0'>x</p><b>x</b>")
    assert [found[0] for found in page.evaluate(CONTRAST)] == [4.48]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_that_asks_for_the_password_can_be_read(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_content(password._PAGE.format(query="", said="The password of this dashboard"))
    ground = "white" if scheme == "light" else "#121212"  # `color-scheme`: the browser's own
    page.add_style_tag(content=f"html {{ background: {ground} }}")
    assert page.evaluate(CONTRAST) == []


def test_metrics_are_filtered_by_expression_and_the_address_follows(page):
    page.goto(f"{RUN}/metrics?match=^loss/loss$")
    expect(page.locator("canvas")).to_have_count(1)
    page.get_by_label("keys (regular expression)").fill("^optim/")
    page.wait_for_url(re.compile("match=%5Eoptim"))
    expect(page.locator("canvas")).to_have_count(2)
    page.reload()
    expect(page.get_by_label("keys (regular expression)")).to_have_value("^optim/")


def test_metrics_open_on_all_keys_that_match_and_are_drawn_on_the_way_down(page):
    page.goto(f"{RUN}/metrics")
    of_all = page.get_by_text(re.compile(r"^\d+ of \d+ keys$"))
    expect(of_all).to_be_visible()
    wanted = int(of_all.inner_text().split()[0])
    places, canvases = page.locator(".charts > .panel"), page.locator("canvas")
    expect(places).to_have_count(wanted)
    assert wanted > canvases.count() > 0
    for section in ("Rewards", "Stability", "Versions and queues", "Time and throughput"):
        expect(page.get_by_text(re.compile(rf"^{section} · \d+$"))).to_have_count(1)
    for place in places.all():
        place.scroll_into_view_if_needed()
        expect(place.locator("canvas")).to_be_visible()
        inked(place.locator("canvas"))


def test_the_charts_go_to_a_table(page):
    page.goto(f"{RUN}/metrics?match=^loss/loss$")
    with page.expect_download() as download:
        page.get_by_text("CSV").click()
    lines = Path(download.value.path()).read_text(encoding="utf-8").splitlines()
    assert "loss/loss" in lines[0] or "loss/loss" in lines[1]
    assert len(lines) > 40


def test_trajectories_are_filtered_and_a_bar_of_the_histogram_chooses(page):
    page.goto(f"{RUN}/trajectories?env=units")
    rows = page.locator("tbody tr")
    expect(rows.first).to_be_visible()
    assert all("units" in text for text in rows.all_inner_texts() if text.strip())
    page.goto(f"{RUN}/trajectories")
    drawn(page, 1)
    box = page.locator("canvas").first.bounding_box()
    assert box is not None
    # The bar at the right is of the highest reward, and it is a high one.
    at = {"x": box["width"] * 0.77, "y": box["height"] * 0.7}
    page.locator("canvas").first.click(position=at)
    page.wait_for_url(re.compile("reward_min="))
    expect(rows.first).to_be_visible()


def test_the_keyboard_goes_from_trajectory_to_trajectory(page, one):
    page.goto(f"{RUN}/trajectories?env=calculator")
    page.locator("tbody tr a").first.click()
    page.wait_for_url(re.compile("/trajectory/"))
    first = page.url
    expect(page.get_by_text("policy, turn 1").first).to_be_visible()
    page.keyboard.press("j")
    page.wait_for_url(lambda url: url != first and "/trajectory/" in url)
    expect(page.get_by_text("policy, turn 1").first).to_be_visible()
    page.keyboard.press("k")
    page.wait_for_url(first)


@pytest.mark.parametrize(
    "view",
    ["rollout log-prob", "learner minus engine", "advantage", "entropy", "mask", "policy version"],
)
def test_the_tokens_are_coloured_by_a_chosen_number(page, one, view):
    page.goto(where(f"{RUN_ROUTE}/trajectory/{{id:path}}", one))
    page.get_by_role("button", name=view, exact=True).click()
    colours = """() => new Set([...document.querySelectorAll('span')]
        .map(one => getComputedStyle(one).backgroundColor)).size"""
    page.wait_for_function(f"({colours})() > 1")
    assert "was not trained on" not in page.content()


def test_the_command_that_plays_it_again_is_copied(page, one):
    page.goto(where(f"{RUN_ROUTE}/trajectory/{{id:path}}", one))
    page.get_by_text("copy command", exact=False).click()
    give_up = time.monotonic() + 10
    while not (copied := page.evaluate("navigator.clipboard.readText()")):
        assert time.monotonic() < give_up
        page.wait_for_timeout(100)
    assert copied.startswith("dorado env replay ") and one[1] in copied


@pytest.mark.parametrize(
    "path",
    [
        *(f"/run/hostile/{one.below}".rstrip("/") for one in PAGES if one.title),
        "/run/hostile/metrics?match=.",
        "/run/hostile/group/g",
        "/run/hostile/trajectory/h",
        "/run/hostile/trajectory/b",
        "/run/hostile/trajectory/half",
        "/run/hostile/trajectory/gone",
        "/run/hostile/config?also=quickstart",
        "/run/quickstart/metrics?also=hostile&match=.",
        "/run/hostile/trajectories?env=<script>document.title='taken'</script>",
        "/run/<img src=x onerror=document.title='taken'>",
    ],
)
def test_what_is_hostile_is_shown_as_text(page, path):
    page.goto(path)
    expect(page.get_by_text("Dorado").first).to_be_visible()
    page.wait_for_timeout(500)
    assert page.title().endswith("Dorado"), "nothing of theirs has set it"
    assert page.locator("img[src=x]").count() == 0
    assert "Internal Server Error" not in page.content()


def test_a_hostile_trajectory_is_there_to_be_read(page):
    page.goto("/run/hostile/trajectory/h")
    expect(page.get_by_text("<script>document.title = 'taken'</script>").first).to_be_visible()


@pytest.mark.parametrize("name", screenshots.ADDRESSES)
def test_each_screenshot_of_the_docs_is_what_its_page_shows_today(page, runs, name):
    image = f"images/dashboard-{name}.png"
    assert f"({image})" in (ROOT / "docs/dashboard.md").read_text(encoding="utf-8")
    page.set_viewport_size(screenshots.SIZES.get(name, screenshots.SIZE))
    page.goto(screenshots.address(name, runs))
    shown, wanted = screenshots.shown(page), screenshots.text_of(ROOT / "docs" / image)
    if name == "runs":  # here it has one more run
        assert set(wanted.split()) <= set(shown.split())
    else:
        assert shown == wanted
