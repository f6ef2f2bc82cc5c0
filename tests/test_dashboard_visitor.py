"""Requests of other web pages to the dashboard: refused by Host, Origin and what a browser says of itself."""

import pytest
from guarded_pages import page, socket
from starlette.applications import Starlette
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from rl.dashboard.visitor import OwnPagesOnly

HERE = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def client():
    app = Starlette(routes=[Route("/", page), WebSocketRoute("/socket", socket)])
    app.add_middleware(OwnPagesOnly, hosts=frozenset({"localhost", "127.0.0.1"}))
    with TestClient(app, base_url=HERE) as client:
        yield client


ELSEWHERE = [
    {"host": "evil.example"},
    {"host": "evil.example:8080"},
    {"host": "localhost.evil.example"},
    {"host": "127.0.0.1.evil.example:8080"},
    {"host": "127.0.0.1:8080@evil.example"},
    {"host": "evil.example#localhost"},
    {"host": "[::1].evil.example"},
    {"host": "localhost:80:80"},
    {"host": ""},
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:9999"},
    {"origin": "http://localhost:8080"},
    {"origin": "http://127.0.0.1:8080.evil.example"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"},
    {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "websocket"},
]


@pytest.mark.parametrize("headers", ELSEWHERE, ids=str)
def test_another_page_gets_neither_pages_nor_live_connections(client, headers):
    answer = client.get("/", headers=headers)
    assert answer.status_code == (400 if "host" in headers else 403)
    assert "the runs" not in answer.text and answer.text.count("\n") == 1
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/socket", headers=headers) as live,
    ):
        live.receive_text()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "LOCALHOST:8080"},
        {"origin": HERE, "sec-fetch-site": "same-origin", "sec-fetch-mode": "cors"},
        {"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
        # A link in somebody's mail that a person follows.
        {
            "sec-fetch-site": "cross-site",
            "sec-fetch-mode": "navigate",
            "sec-fetch-dest": "document",
        },
    ],
    ids=str,
)
def test_own_pages_and_a_followed_link_pass_with_the_policies(client, headers):
    answer = client.get("/", headers=headers)
    assert (answer.status_code, answer.text) == (200, "the runs")
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_a_live_connection_of_an_own_page_passes(client):
    with client.websocket_connect("ws://127.0.0.1:8080/socket", headers={"origin": HERE}) as live:
        assert live.receive_text() == "live"
