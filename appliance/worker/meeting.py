"""Ranks on several machines meet at a TCP store, which the first rank serves. Everything here happens in the sandbox.

Names in the store begin with a digest of the run's key and of the nonce of the start, so that ranks of another start,
or of somebody without the key, do not meet these: each side waits until its time is up. Who reaches the port at all
is decided by WireGuard: the store itself asks for no password.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from appliance.errors import Busy, Interrupted
from appliance.jobs.ticket import Rendezvous

if TYPE_CHECKING:
    from appliance.train.engines import Several

SILENCE_S = 60
"""After how long a machine from which nothing comes back, not even from its kernel, counts as lost."""

_POLL_S = 0.5
_EACH_S = 5.0  # for one attempt to connect; a network that swallows packets answers none


def meet(rendezvous: Rendezvous, rank: int, key: bytes) -> Several:
    """Wait until every rank of this start has come, and connect to them. Loads torch.

    Raises:
      Interrupted: they did not all come in time.
      Busy: the port is taken.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    from appliance.train.engines import Several

    deadline = time.monotonic() + rendezvous.timeout_s
    store: Any = PrefixStore(prefix(rendezvous, key), _store(rendezvous, rank, deadline))
    store.set(f"here/{rank}", "")
    try:
        store.wait([f"here/{other}" for other in range(rendezvous.size)], _time_left(deadline))
    except RuntimeError:
        raise _nobody(rendezvous) from None
    several = Several(store, rank, rendezvous.size, address=rendezvous.here)
    _notice_silence()
    return several


def prefix(rendezvous: Rendezvous, key: bytes) -> str:
    """Name what this start's names in the store begin with; it tells nothing of the key (32 bytes)."""
    salt = bytes.fromhex(rendezvous.nonce)
    return HKDF(hashes.SHA256(), 16, salt, b"appliance/rendezvous/v1").derive(key).hex()


def _store(rendezvous: Rendezvous, rank: int, deadline: float) -> Any:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host, port = rendezvous.host, rendezvous.port
    listener = _listen(host, port).detach() if rank == 0 else None
    if listener is None:
        _until_it_listens(rendezvous, deadline)
    try:
        return TCPStore(
            host, port, None, rank == 0, timeout=_time_left(deadline), wait_for_workers=False, master_listen_fd=listener
        )
    except RuntimeError:
        raise _nobody(rendezvous) from None


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Busy(f"port {port} of the rendezvous is taken") from None
        raise Interrupted(f"the first rank cannot listen at the rendezvous: {error.strerror}") from None


def _notice_silence() -> None:
    """Let the kernel end connections of this process over which nothing comes back: gloo would wait half an hour."""
    quarter = max(1, SILENCE_S // 4)
    patience = ((socket.TCP_KEEPIDLE, quarter), (socket.TCP_KEEPINTVL, quarter), (socket.TCP_KEEPCNT, 3))
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as held:
                if held.type == socket.SOCK_STREAM and held.family in (socket.AF_INET, socket.AF_INET6):
                    held.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    for option, value in (*patience, (socket.TCP_USER_TIMEOUT, 1000 * SILENCE_S)):
                        held.setsockopt(socket.IPPROTO_TCP, option, value)
        except OSError:  # closed meanwhile
            continue


def _until_it_listens(rendezvous: Rendezvous, deadline: float) -> None:
    while True:
        try:
            return socket.create_connection((rendezvous.host, rendezvous.port), _EACH_S).close()
        except OSError:
            if time.monotonic() > deadline:
                raise _nobody(rendezvous) from None
            time.sleep(_POLL_S)


def _time_left(deadline: float) -> timedelta:
    return timedelta(seconds=max(1.0, deadline - time.monotonic()))


def _nobody(rendezvous: Rendezvous) -> Interrupted:
    return Interrupted(f"not all {rendezvous.size} ranks of this start came within {rendezvous.timeout_s:g} s")
