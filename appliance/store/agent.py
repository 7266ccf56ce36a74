"""The key agent: the one process that holds the root key while the store is unsealed.

It listens on a Unix socket in a directory that only its user can enter, checks who is calling, and hands out single
keys, never the root key. The key of an existing dataset is released, or sealed to a node, only if `authorise`, which
the flows supply, accepts the evidence. It forgets everything after a time, or when told to lock.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from appliance.errors import ApplianceError, Busy, IsolationViolated, KeyUnavailable, UsageError
from appliance.store.client import AgentClient, AgentStatus
from appliance.store.keys import KeyRing, RootKey, body_private_key, fingerprint_key
from appliance.store.nodes import NodeKey, seal
from appliance.store.protocol import (
    BodyKeyRequest,
    FollowRequest,
    IngestKeysRequest,
    LockRequest,
    ReleaseKeyRequest,
    SealKeyRequest,
    StatusRequest,
    address,
    error_reply,
    parse_request,
    peer,
    receive_message,
    send_message,
)

__all__ = ["AgentClient", "AgentStatus", "ReleaseRequest", "serve"]

_REQUEST_WITHIN_S = 2.0
_LOOK_AT_CLOCK_S = 5.0


@dataclass(frozen=True, slots=True)
class ReleaseRequest:
    """What `authorise` decides on: somebody wants the data key of an existing dataset.

    Attributes:
      evidence: the bytes the client sent, unchecked.
      dataset_id: the dataset; the key given out opens no other, as the wrapped key is bound to it.
      epoch: epoch of its key.
      wrapped: the wrapped key as the client sent it.
      peer_pid: process id of the client.
      peer_uid: user id of the client (always the agent's own).
      node: fingerprint of the node to which the key would be sealed; empty if this process wants it for itself.
    """

    evidence: bytes
    dataset_id: str
    epoch: int
    wrapped: str
    peer_pid: int
    peer_uid: int
    node: str = ""


def serve(
    socket_path: Path,
    root: RootKey,
    *,
    kek_dir: Path,
    ttl_s: float,
    who: str,
    authorise: Callable[[ReleaseRequest], None],
    follow: Callable[[str, str], int],
) -> None:
    """Answer requests until `ttl_s` seconds have passed or a client says `lock`; then zero `root` and return.

    One client at a time, each with two seconds to say its request. `root` is zeroed on every way out.

    Args:
      socket_path: any length; its directory is created 0700, or must be closed to others already.
      root: the unlocked root key.
      kek_dir: where the epoch files lie (`KeyRing`).
      ttl_s: seconds, counted also while the machine sleeps.
      who: who unsealed the store; shown by `status`.
      authorise: returns to release a key, raises any exception to refuse; the client sees `KeyUnavailable` with the
        message of an `ApplianceError`, and nothing of other exceptions. It is called in this process, so it can keep
        what it has released before.
      follow: takes the places of a client's database and anchor and a proof that the log goes on; returns the size of
        the newest tree head that it knows then.

    Raises:
      Busy: another agent serves this socket.
      IsolationViolated: others can enter the directory of the socket.
    """
    expires = _clock() + ttl_s
    until = (datetime.now(UTC) + timedelta(seconds=ttl_s)).isoformat(timespec="seconds").replace("+00:00", "Z")
    try:
        with ExitStack() as ending, _listening(socket_path) as listener:
            _keep_out_of_swap(root.buffer)
            agent = _Agent(KeyRing(root, kek_dir), AgentStatus("unsealed", who, until), authorise, follow)
            while (left := expires - _clock()) > 0 and not agent.locked:
                listener.settimeout(min(left, _LOOK_AT_CLOCK_S))
                try:
                    connection, _ = listener.accept()
                except (TimeoutError, ConnectionAbortedError):
                    continue
                with connection:
                    if expires > _clock():  # the machine may have slept in accept
                        agent.attend(connection, ending)
    finally:
        root.wipe()


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Agent:
    """One conversation at a time over a key ring."""

    def __init__(
        self,
        ring: KeyRing,
        status: AgentStatus,
        authorise: Callable[[ReleaseRequest], None],
        follow: Callable[[str, str], int],
    ) -> None:
        self._ring, self._status, self._authorise, self._follow = ring, status, authorise, follow
        self.locked = False

    def attend(self, connection: socket.socket, ending: ExitStack) -> None:
        """Hear one request and answer it; a client that stalls, vanishes or talks nonsense costs only its time.

        Whoever says `lock` is answered by `ending`, when nothing of the agent is in the way of the next one.
        """
        pid, uid = peer(connection)
        if uid != os.geteuid():
            return
        try:
            try:
                reply = self._answer(receive_message(connection, _REQUEST_WITHIN_S), pid, uid)
            except ApplianceError as error:
                reply = error_reply(error)
            if self.locked:
                ending.callback(_send, connection.dup(), reply)
            else:
                _send(connection, reply)
        except OSError:
            return

    def _answer(self, message: bytes, pid: int, uid: int) -> dict[str, Any]:
        match parse_request(message):
            case StatusRequest():
                return {"who": self._status.who, "until": self._status.until}
            case LockRequest():
                self.locked = True
                self._ring.root.wipe()
                return {}
            case BodyKeyRequest():
                return {"body_key": _base64(body_private_key(self._ring.root))}
            case IngestKeysRequest(dataset_id=dataset_id):
                return self._ingest_keys(dataset_id)
            case FollowRequest(places=places, proof=proof):
                return {"size": self._follow(places, proof)}
            case ReleaseKeyRequest() as request:
                return {"data_key": _base64(self._release(request, pid, uid))}
            case SealKeyRequest() as request:
                node = NodeKey(bytes.fromhex(request.node))
                return {"sealed": seal(self._release(request, pid, uid, node.fingerprint), node, request.context)}

    def _ingest_keys(self, dataset_id: str) -> dict[str, Any]:
        data_key, wrapped, epoch = self._ring.new_data_key(dataset_id)
        fingerprints = fingerprint_key(self._ring.root)
        return {
            "data_key": _base64(data_key),
            "wrapped": wrapped,
            "epoch": epoch,
            "fingerprint_key": _base64(fingerprints),
        }

    def _release(self, request: ReleaseKeyRequest | SealKeyRequest, pid: int, uid: int, node: str = "") -> bytes:
        try:
            evidence = base64.b64decode(request.evidence, validate=True)
        except (ValueError, binascii.Error):
            raise UsageError("the request to the key agent is malformed") from None
        asked = ReleaseRequest(evidence, request.dataset_id, request.epoch, request.wrapped, pid, uid, node)
        # Unwrapped first: evidence that may serve once is not used up by a request that cannot succeed.
        data_key = self._ring.unwrap(request.wrapped, request.dataset_id, request.epoch)
        try:
            self._authorise(asked)
        except ApplianceError as error:
            raise KeyUnavailable(error.message, hint=error.hint, where=error.where) from None
        except Exception:  # noqa: BLE001 - a bug in the judge must refuse; it must not end the agent, nor show evidence
            raise KeyUnavailable("the evidence could not be judged, so the key is not released") from None
        return data_key


def _send(connection: socket.socket, reply: dict[str, Any]) -> None:
    with connection, suppress(OSError):
        connection.settimeout(_REQUEST_WITHIN_S)
        send_message(connection, orjson.dumps(reply))


def _base64(key: bytes) -> str:
    return base64.b64encode(key).decode()


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Listen at `path`, under a lock that tells a living agent from the socket of a dead one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = path.parent.stat()
    if owner.st_uid != os.geteuid() or stat.S_IMODE(owner.st_mode) & 0o077:
        hint = "give it to the agent's user with mode 0700"
        raise IsolationViolated("others can enter the directory of the agent's socket", hint=hint, where=str(path))
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _lock_or_busy(lock, path)
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            with address(path) as name:
                listener.bind(name)
            path.chmod(0o600)
            listener.listen(8)
            try:
                yield listener
            finally:
                path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _lock_or_busy(lock: int, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy("a key agent is running already", hint="appliance key lock", where=str(path)) from None


def _keep_out_of_swap(buffer: bytearray) -> None:
    """Keep the root key's pages out of swap where the limits allow it. The process has turned core dumps off itself."""
    view = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    ctypes.CDLL(None).mlock(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(len(buffer)))
