"""Stand-ins on the loopback for what trackers and notifications send to: HTTP and SMTP.

Each answers, or takes what it is sent and never answers, or fails.
"""

import base64
import datetime
import ipaddress
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from serving import serving

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
    """Keeps what each mail had between DATA and its end, and each login.

    With `starttls` it offers STARTTLS, and takes logins behind that alone.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, manner: Manner, starttls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Smtp)
        self.manner = manner
        self.starttls = starttls
        self.mails: list[str] = []
        self.logins: list[bytes] = []
        self.over = threading.Event()
        self.port: int = self.server_address[1]


class _Smtp(socketserver.StreamRequestHandler):
    server: SmtpServer

    def handle(self) -> None:
        if self.server.manner == "hangs":
            self.server.over.wait()
            return
        self.secure = False
        self._say("220 here")
        self._talk()

    def _talk(self) -> None:
        for line in self.rfile:
            [word, *_] = line.upper().split() or [b""]
            if word == b"DATA":
                self._say("354 go on")
                self._take()
            if word == b"AUTH":
                self.server.logins.append(base64.b64decode(line.split()[2]))
            self._say("221 bye" if word == b"QUIT" else self._answer(word))
            if word == b"QUIT":
                return
            if word == b"STARTTLS" and self.server.starttls is not None:
                self._secure(self.server.starttls)
                return

    def _secure(self, context: ssl.SSLContext) -> None:
        """Go on behind TLS; where the client refuses the certificate, that is the end."""
        with suppress(OSError), context.wrap_socket(self.request, server_side=True) as socket:
            self.rfile, self.wfile = socket.makefile("rb"), socket.makefile("wb", buffering=0)
            self.secure = True
            self._talk()

    def _answer(self, word: bytes) -> str:
        if word == b"EHLO" and self.server.starttls is not None:
            return "250-here\r\n250 AUTH PLAIN" if self.secure else "250-here\r\n250 STARTTLS"
        if word == b"STARTTLS":
            return "220 go on behind TLS"
        if word == b"AUTH":
            return "235 welcome" if self.secure else "538 not in the clear"
        refused = self.server.manner == "fails" and word == b"RCPT"
        return "550 nobody of that name" if refused else "250 fine"

    def _take(self) -> None:
        lines: list[bytes] = []
        while (line := self.rfile.readline()).rstrip() != b".":
            lines.append(line)
        self.server.mails.append(b"".join(lines).decode())

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


def own_certificate(folder: Path, address: str) -> tuple[Path, ssl.SSLContext]:
    """A certificate that nobody has signed, for an IP address: its file, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a mail server")])
    now = datetime.datetime.now(datetime.UTC)
    of_host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(of_host, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, private = folder / "certificate.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private)
    return certificate, context


@contextmanager
def listening(server: HttpServer | SmtpServer) -> Iterator[None]:
    """Serve until the block ends, and let go of who hangs then."""
    with serving(server):
        try:
            yield
        finally:
            server.over.set()
