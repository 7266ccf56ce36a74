"""Listen on loopback or a Unix socket; whoever dawdles with a request is hung up on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from appliance.errors import Busy, UsageError
from appliance.files import locked
from appliance.jobs.serve import Limits, ServeJob

BACKLOG = 2048
GRACE_S = 10


@contextmanager
def opened(job: ServeJob, turns: Path) -> Iterator[tuple[socket.socket, str]]:
    """Listen within the block; `turns` is a directory that gateways lock which might take the same Unix socket.

    Raises as `open_socket` does.
    """
    if not job.socket:
        yield open_socket(job)
        return
    with locked(turns):
        listener, address = open_socket(job)
        made = os.lstat(job.socket)
    try:
        yield listener, address
    finally:
        with locked(turns), suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(job.socket), made):
                os.unlink(job.socket)


def open_socket(job: ServeJob) -> tuple[socket.socket, str]:
    """Open the socket to listen on, and say its address.

    Raises:
      Busy: somebody listens there already.
      UsageError: the path is too long for a Unix socket, or is something else.
    """
    try:
        return _unix(job.socket, 0o660 if job.for_group else 0o600) if job.socket else _loopback(job.port)
    except OSError as error:
        where = job.socket or f"port {job.port}"
        raise Busy(f"cannot listen: {(error.strerror or str(error)).lower()}", where=where) from None


def _unix(path: str, mode: int) -> tuple[socket.socket, str]:
    if len(os.fsencode(path)) > 107:
        raise UsageError("the path is too long for a Unix socket", where=path)
    if Path(path).is_socket():
        _remove_dead(path)
    elif Path(path).exists():
        raise UsageError("this is there and is no socket", where=path)
    found = socket.socket(socket.AF_UNIX)
    found.bind(path)
    os.chmod(path, mode)
    found.listen(BACKLOG)
    return found, f"unix:{path}"


def _remove_dead(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise Busy("somebody listens there already", where=path)


def _loopback(port: int) -> tuple[socket.socket, str]:
    found = socket.socket(socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", port))
    found.listen(BACKLOG)
    return found, f"http://127.0.0.1:{found.getsockname()[1]}"


def server(app: Starlette, limits: Limits) -> uvicorn.Server:
    """Make the server; it prints nothing."""

    class Prompt(_Prompt):
        header_s = limits.header_s

    config = uvicorn.Config(
        app,
        http=Prompt,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=GRACE_S,
        h11_max_incomplete_event_size=32 * 1024,
    )
    return _Server(config)


class _Server(uvicorn.Server):
    """Ends in order when it is told to, and leaves the signal at that: uvicorn would raise it again."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield


class _Prompt(H11Protocol):
    """Hangs up where the head of a request does not come in time, however it trickles in."""

    header_s: float
    _waits: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        if self._waits is None and self._idle():
            self._expect()
        super().data_received(data)
        if not self._idle():
            self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _expect(self) -> None:
        self._waits = asyncio.get_running_loop().call_later(self.header_s, self.transport.abort)

    def _forget(self) -> None:
        if self._waits is not None:
            self._waits.cancel()
            self._waits = None
