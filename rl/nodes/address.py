"""Addresses of Ray clusters: who answers there, asked before anything starts. No Ray here."""

import os
import socket
from pathlib import Path

# The preface of HTTP/2, and an empty frame of settings.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def silent_address(address: str, seconds: float = 4.0) -> str:
    """Say why nobody answers for Ray at this address (host:port, ray://host:port, auto); "" where one does.

    Ray itself would ask for half a minute. An address that only Ray can find is left to it.
    """
    if address == "auto":
        known = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        address = os.environ.get("RAY_ADDRESS", "") or (
            known.read_text(encoding="utf-8").strip() if known.is_file() else ""
        )
        if not address:
            return ""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        return f"{address!r} is no address: local, auto or HOST:PORT, such as 10.0.0.5:6379"
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds / 2) as wire:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""
            wire.settimeout(seconds / 2)
            wire.sendall(_HELLO)
            # The frame that a gRPC server begins with: length (3 bytes), then its type, SETTINGS.
            if wire.recv(4, socket.MSG_WAITALL)[3:] == b"\x04":
                return ""
            why = "what listens there is no Ray"
    except OSError as error:
        why = str(error)
    return f"nobody answers for Ray at {address} ({why}); `ray start --head` starts a cluster"
