"""A page and a live connection, for tests of what stands before the dashboard's own."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket


async def page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("the runs")


async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("live")
    await websocket.close()
