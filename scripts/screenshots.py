"""Makes the screenshots of docs/dashboard.md from `dorado dashboard --demo`, in Chromium.

    python scripts/screenshots.py [NAME ...]

Each image carries the text that its page showed; a test compares it with what the page shows today.
"""

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from rl.dashboard.demo import demo_runs

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "images"
SIZE: ViewportSize = {"width": 1280, "height": 800}
WIDE: ViewportSize = {"width": 1920, "height": 1080}
PHONE: ViewportSize = {"width": 390, "height": 844}
RUN = "/run/quickstart"
# Of each image: the address, in which GROUP and ID are of a trajectory that was trained on.
ADDRESSES = {
    "runs": "/",
    "overview": RUN,
    "overview-wide": RUN,
    "overview-phone": RUN,
    "search": f"{RUN}/trajectories?text=error+sensor&within=errors&order=-reward",
    "report": "REPORT",
    "metrics": f"{RUN}/metrics",
    "timeline": f"{RUN}/timeline?from=-120",
    "trajectories": f"{RUN}/trajectories",
    "group": f"{RUN}/group/GROUP",
    "trajectory": f"{RUN}/trajectory/ID",
    "tokens": f"{RUN}/trajectory/ID?view=entropy",
    "environments": f"{RUN}/environments",
    "experts": f"{RUN}/experts",
    "health": f"{RUN}/health",
    "config": f"{RUN}/config",
}
DARK = ("timeline", "tokens")
SIZES = {"overview-wide": WIDE, "overview-phone": PHONE}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        flags = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """The address of a dashboard of these runs, whose clock is UTC."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "rl", "dashboard", str(runs), "--port", str(port)],
        env=variables(runs),
        stdout=subprocess.DEVNULL,
    )
    try:
        give_up = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < give_up:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def variables(runs: Path) -> dict[str, str]:
    """The environment of a command: its clock is UTC, its cache beside the runs."""
    # NiceGUI does not serve where it finds a test around it.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "NICEGUI"))}
    return inherited | {
        "PYTHONPATH": str(ROOT),
        "TZ": "UTC",
        "XDG_CACHE_HOME": str(runs / ".cache"),
    }


def write_report(runs: Path) -> Path:
    """Write the report of the recorded run beside the runs; all texts are then read for the search."""
    file = runs / "quickstart.html"
    command = [sys.executable, "-m", "rl", "report", str(runs / "quickstart"), "--out", str(file)]
    subprocess.run(command, env=variables(runs), check=True, stdout=subprocess.DEVNULL)
    return file


def trained(runs: Path) -> tuple[str, str]:
    """A group of the recorded run, and one of its trajectories that was trained on, of several turns."""
    index = sqlite3.connect(runs / "quickstart/trajectories.sqlite")
    query = "select grp, t.id from trajectories t join learned l on t.id = l.id where turns > 2"
    found = index.execute(f"{query} order by t.completion_tokens desc, t.id limit 1").fetchone()
    index.close()
    return found


def address(name: str, runs: Path) -> str:
    """Where the page of an image is."""
    group, id = trained(runs)
    if ADDRESSES[name] == "REPORT":
        return (runs / "quickstart.html").resolve().as_uri()
    return ADDRESSES[name].replace("GROUP", group).replace("ID", id)


def shown(page: Page) -> str:
    """The text of a page, without what differs from one look to the next."""
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1000)
    text = page.locator(".page").inner_text()
    text = re.sub(r"[\d,.]+ (s|min|h|d|days?) ago", "ago", text)
    text = re.sub(r"/\S*/quickstart\b", "runs/quickstart", text)
    text = re.sub(r"at [\d-]+ [\d:]+ UTC", "at", text)
    return " ".join(text.split())


def text_of(image: Path) -> str:
    """The text that the page of an image showed when it was made."""
    with Image.open(image) as picture:
        return str(picture.info["shown"])


def main() -> None:
    """Write all images."""
    FOLDER.mkdir(exist_ok=True)
    with demo_runs() as runs, served(runs) as server, chromium() as browser:
        write_report(runs)
        for name in sys.argv[1:] or ADDRESSES:
            scheme = "dark" if name in DARK else "light"
            page = browser.new_page(viewport=SIZES.get(name, SIZE), color_scheme=scheme)
            place = address(name, runs)
            page.goto(place if place.startswith("file:") else server + place)
            about = PngImagePlugin.PngInfo()
            about.add_itxt("shown", shown(page))
            picture = Image.open(BytesIO(page.screenshot())).convert("RGB").quantize(128)
            picture.save(FOLDER / f"dashboard-{name}.png", optimize=True, pnginfo=about)
            page.close()
            print(FOLDER / f"dashboard-{name}.png")


if __name__ == "__main__":
    main()
