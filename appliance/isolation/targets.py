"""What the planted leakers aim at: listeners on loopback, files outside the sandbox, this very process."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_STREAMS = ("tcp4", "child", "curl", "urllib", "requests", "hub")
_PACKETS = ("udp", "dns")
_NOBODY = 1  # a port at which nobody listens


class Targets:
    """Planted targets that remember what arrives. Use as a context manager, from a process outside the sandbox."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._token = secrets.token_hex(16)
        self._sockets: dict[str, socket.socket] = {}

    def __enter__(self) -> Self:
        for name in ("outside", "inside"):
            (self._directory / name).mkdir()
        (self._directory / "outside" / "secret").write_text(self._token)
        self._plant("unix", socket.AF_UNIX, socket.SOCK_STREAM)
        self._plant("tcp6", socket.AF_INET6, socket.SOCK_STREAM)
        for name in _STREAMS:
            self._plant(name, socket.AF_INET, socket.SOCK_STREAM)
        for name in _PACKETS:
            self._plant(name, socket.AF_INET, socket.SOCK_DGRAM)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for listener in self._sockets.values():
            listener.close()

    def plan(self) -> dict[str, Any]:
        """Say where the targets are, for the leakers: ports, paths, this process and one of its sockets."""
        ports = {name: listener.getsockname()[1] for name, listener in self._sockets.items() if name != "unix"}
        return {
            **dict.fromkeys((*_STREAMS, *_PACKETS, "tcp6"), _NOBODY),
            **ports,
            "token": self._token,
            "unix": self._unix_path(),
            "outside": str(self._directory / "outside"),
            "inside": str(self._directory / "inside"),
            "secret": str(self._directory / "outside" / "secret"),
            "pid": os.getpid(),
            "descriptor": next((listener.fileno() for listener in self._sockets.values()), 0),
        }

    def find_arrived(self) -> set[str]:
        """Find the leakers whose token arrived."""
        names = {"child": "python-child"}
        found = {names.get(name, name) for name, listener in self._sockets.items() if self._has_received(listener)}
        written = self._directory / "outside" / "token"
        if written.exists() and written.read_text() == self._token:
            found.add("write-outside")
        return found

    def _plant(self, name: str, family: int, kind: int) -> None:
        try:
            listener = socket.socket(family, kind)
        except OSError:
            return  # nobody here can open such a socket: this process is less restricted than the leakers will be
        try:
            listener.bind(self._unix_path() if name == "unix" else ("::1" if name == "tcp6" else "127.0.0.1", 0))
        except OSError:
            # A machine without IPv6 has no such target, and no such leak.
            listener.close()
            return
        self._sockets[name] = listener
        if kind == socket.SOCK_STREAM:
            listener.listen()
        listener.setblocking(False)

    def _unix_path(self) -> str:
        return str(self._directory / "outside" / "socket")

    def _has_received(self, listener: socket.socket) -> bool:
        """Tell whether anything that came in so far carries the token; senders have ended, so nothing is awaited."""
        try:
            while True:
                if listener.type == socket.SOCK_DGRAM:
                    data = listener.recv(4096)
                else:
                    connection, _ = listener.accept()
                    with connection:
                        connection.settimeout(1)
                        data = connection.recv(4096)
                if self._token.encode() in data:
                    return True
        except OSError:
            return False
