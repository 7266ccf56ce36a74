"""The words between the key agent and its clients, on a Unix socket of the same user.

One request and one reply per connection, each a 4-byte little-endian length and that many bytes of JSON.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, TypeAdapter, ValidationError

from appliance.errors import ApplianceError, IntegrityError, KeyUnavailable, UsageError
from appliance.values import Count, Digest, Value

MAX_MESSAGE = 1 << 20
_LENGTH = struct.Struct("<I")
_PEER = struct.Struct("3i")
_MAX_SOCKET_PATH = 107

DatasetId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]


class StatusRequest(Value):
    """Who unsealed the store, and until when."""

    op: Literal["status"] = "status"


class LockRequest(Value):
    """Zero the keys and exit."""

    op: Literal["lock"] = "lock"


class IngestKeysRequest(Value):
    """A new data key for a dataset that is about to be sealed."""

    op: Literal["ingest_keys"] = "ingest_keys"
    dataset_id: DatasetId


class BodyKeyRequest(Value):
    """The private key of the ledger's sealed bodies."""

    op: Literal["body_key"] = "body_key"


class FollowRequest(Value):
    """Follow the log from the newest tree head that the agent knows to the anchored one; without a proof, say which.

    `places` is the digest of where the client's database and anchor lie.
    """

    op: Literal["follow"] = "follow"
    places: Digest
    proof: str


class ReleaseKeyRequest(Value):
    """The data key of an existing dataset, against evidence (base64)."""

    op: Literal["release"] = "release"
    evidence: str
    dataset_id: DatasetId
    wrapped: str
    epoch: Count


class SealKeyRequest(Value):
    """The same, sealed to the public key of a node (hex) and to the digest of its ticket."""

    op: Literal["seal"] = "seal"
    evidence: str
    dataset_id: DatasetId
    wrapped: str
    epoch: Count
    node: Digest
    context: Digest


Request = (
    StatusRequest
    | LockRequest
    | IngestKeysRequest
    | BodyKeyRequest
    | FollowRequest
    | ReleaseKeyRequest
    | SealKeyRequest
)
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])
_ERRORS: dict[str, type[ApplianceError]] = {
    kind.__name__: kind for kind in (KeyUnavailable, IntegrityError, UsageError)
}


def parse_request(data: bytes) -> Request:
    """Parse a request. Raises `UsageError` without any of its content."""
    try:
        return _REQUEST.validate_json(data)
    except ValidationError:
        raise UsageError("the request to the key agent is malformed") from None


def error_reply(error: ApplianceError) -> dict[str, Any]:
    """Write an error as a reply; a class that is not among the agent's becomes `KeyUnavailable`."""
    name = type(error).__name__
    return {
        "error": name if name in _ERRORS else KeyUnavailable.__name__,
        "message": error.message,
        "hint": error.hint,
        "where": error.where,
    }


def parse_reply(data: bytes) -> dict[str, Any]:
    """Parse a reply; raises the `ApplianceError` that it may carry."""
    try:
        reply = orjson.loads(data)
        if "error" not in reply:
            return dict(reply)
        error = _ERRORS[reply["error"]](str(reply["message"]), hint=str(reply["hint"]), where=str(reply["where"]))
    except (ValueError, KeyError, TypeError):
        raise KeyUnavailable("the key agent gave a reply that cannot be understood") from None
    raise error


def send_message(connection: socket.socket, message: bytes) -> None:
    """Send one message."""
    connection.sendall(_LENGTH.pack(len(message)) + message)


def receive_message(connection: socket.socket, within_s: float) -> bytes:
    """Receive one message, whole within `within_s` seconds.

    Raises:
      UsageError: it is larger than `MAX_MESSAGE` or ends early.
      TimeoutError: it takes too long, however steadily it trickles.
    """
    deadline = time.monotonic() + within_s
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size, deadline))
    if length > MAX_MESSAGE:
        raise UsageError("a message to or from the key agent is too large")
    return _receive(connection, length, deadline)


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(min(size - len(data), 1 << 16))
        if not part:
            raise UsageError("a message to or from the key agent ends early")
        data += part
    return bytes(data)


def peer(connection: socket.socket) -> tuple[int, int]:
    """Process id and user id of the other side, as the kernel saw them (SO_PEERCRED)."""
    pid, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Find an address for `bind` or `connect`, also where the path is longer than the 107 bytes of a socket name."""
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
