"""Stand-ins on the loopback for what trackers and notifications send to: HTTP and SMTP.

Each answers, or takes what it is sent and never answers, or fails.
"""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

Manner = Literal["answers", "hangs", "fails"]


class HttpServer(ThreadingHTTPServer):
    """Keeps (path, body) of each POST."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, manner: Manner) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.manner = manner
        self.posts: list[tuple[str, bytes]] = []
        self.over = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Post(BaseHTTPRequestHandler):
    server: HttpServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posts.append((self.path, body))
        if self.server.manner == "hangs":
            self.server.over.wait()
        self.send_response(200 if self.server.manner == "answers" else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


class SmtpServer(socketserver.ThreadingTCPServer):
    """Keeps what each mail had between DATA and its end."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, manner: Manner) -> None:
        super().__init__(("127.0.0.1", 0), _Smtp)
        self.manner = manner
        self.mails: list[str] = []
        self.over = threading.Event()
        self.port: int = self.server_address[1]


class _Smtp(socketserver.StreamRequestHandler):
    server: SmtpServer

    def handle(self) -> None:
        if self.server.manner == "hangs":
            self.server.over.wait()
            return
        self._say("220 here")
        for line in self.rfile:
            word = line.split()[0].upper() if line.split() else b""
            if word == b"DATA":
                self._say("354 go on")
                self._take()
            self._say("221 bye" if word == b"QUIT" else self._answer(word))
            if word == b"QUIT":
                return

    def _answer(self, word: bytes) -> str:
        refused = self.server.manner == "fails" and word == b"RCPT"
        return "550 nobody of that name" if refused else "250 fine"

    def _take(self) -> None:
        lines: list[bytes] = []
        while (line := self.rfile.readline()).rstrip() != b".":
            lines.append(line)
        self.server.mails.append(b"".join(lines).decode())

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@contextmanager
def serving(server: HttpServer | SmtpServer) -> Iterator[None]:
    """Serve until the block ends."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()
