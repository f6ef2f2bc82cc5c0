"""The dashboard's password: nothing passes without it, neither pages nor live connections."""

import pytest
from guarded_pages import page, socket
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from rl.config_file import ConfigError
from rl.dashboard import password
from rl.dashboard.password import VARIABLE, AskPassword, read_password

WORD = "a long pässword"


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(password, "_WRONG_SECONDS", 0.0)
    routes = [Route("/run/{name}", page), WebSocketRoute("/socket", socket)]
    app = Starlette(routes=routes)
    app.add_middleware(AskPassword, password=WORD)
    with TestClient(app, base_url="http://here:8080", follow_redirects=False) as client:
        yield client


def login(client, target: str, given: str = WORD):
    return client.post("/login", params={"next": target}, data={"password": given})


def test_without_the_password_there_is_a_form_that_leads_back(client):
    answer = client.get('/run/demo?match="><script>x')
    assert answer.status_code == 401 and answer.text != "the runs"
    assert 'action="/login?next=%2Frun%2Fdemo' in answer.text and "<script" not in answer.text
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("ws://here:8080/socket") as live,
    ):
        live.receive_text()


def test_with_the_password_everything_passes_until_the_server_ends(client):
    answer = login(client, "/run/demo?match=loss")
    assert (answer.status_code, answer.headers["location"]) == (303, "/run/demo?match=loss")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/run/demo").text == "the runs"
    with client.websocket_connect("ws://here:8080/socket") as live:
        assert live.receive_text() == "live"


@pytest.mark.parametrize(
    "given", ["", "a long password", WORD + " ", "\ud800".encode("utf8", "replace")]
)
def test_a_wrong_password_is_refused(client, given):
    answer = login(client, "/run/demo", given)
    assert answer.status_code == 403 and "set-cookie" not in answer.headers
    assert client.get("/run/demo").status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"content": "password=" + "x" * 5000},
        {"json": {"password": WORD}},
        {"files": {"password": ("name", WORD)}},
        {"content": b"\xff\xfe"},
    ],
)
def test_what_is_no_form_of_ours_is_refused(client, body):
    assert client.post("/login", **body).status_code in (400, 403)
    assert client.get("/run/demo").status_code == 401


@pytest.mark.parametrize("target", ["https://elsewhere", "//elsewhere", "/\\elsewhere", ""])
def test_it_leads_to_no_other_site(client, target):
    assert login(client, target).headers["location"] == "/"


def test_somebody_elses_cookie_is_worth_nothing(client):
    client.cookies.set("dorado_8080", "x" * 43)
    assert client.get("/run/demo").status_code == 401


def test_the_password_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert read_password(None) is None
    monkeypatch.setenv(VARIABLE, WORD)
    assert read_password(None) == WORD
    file = tmp_path / "password"
    file.write_text("from the file\nand more\n", encoding="utf-8")
    assert read_password(file) == "from the file"


@pytest.mark.parametrize("text", [None, "", "short\n", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"])
def test_a_file_without_a_good_password_is_refused_in_a_sentence(tmp_path, text):
    file = tmp_path / "password"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"--password-file .*password"):
        read_password(file)
