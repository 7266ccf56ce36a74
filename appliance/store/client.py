"""What commands and workers use to ask the key agent."""

from __future__ import annotations

import base64
import binascii
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from appliance.errors import KeyUnavailable, UsageError
from appliance.store.nodes import NodeKey
from appliance.store.protocol import (
    MAX_MESSAGE,
    BodyKeyRequest,
    FollowRequest,
    IngestKeysRequest,
    LockRequest,
    ReleaseKeyRequest,
    SealKeyRequest,
    StatusRequest,
    address,
    parse_reply,
    peer,
    receive_message,
    send_message,
)
from appliance.values import Value, to_json

_REPLY_WITHIN_S = 60


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """Whether the store is unsealed.

    Attributes:
      state: "unsealed" while an agent holds the root key, else "sealed".
      who: the name that unsealed it, or an empty string.
      until: when the agent will forget the key (RFC 3339, UTC), or an empty string.
    """

    state: Literal["sealed", "unsealed"]
    who: str = ""
    until: str = ""


class AgentClient:
    """Asks the agent that listens on a socket.

    All methods but `status` raise `KeyUnavailable` when no agent runs, and when what listens belongs to another user.

    Args:
      socket_path: as given to `appliance.store.agent.serve`.
    """

    def __init__(self, socket_path: Path) -> None:
        self._path = socket_path

    def status(self) -> AgentStatus:
        """Ask who unsealed the store and until when; "sealed" if no agent runs, or if it ends before it answers."""
        for _ in range(2):  # an agent that ends takes its socket away, then resets who still waits in line
            connection = self._connect()
            if connection is None:
                return AgentStatus("sealed")
            if (reply := self._talk(connection, StatusRequest())) is not None:
                return AgentStatus("unsealed", str(reply.get("who", "")), str(reply.get("until", "")))
        raise _gone()

    def lock(self) -> None:
        """Make the agent zero its keys and exit; when this returns, it has zeroed them and another one can start."""
        self._ask(LockRequest())

    def ingest_keys(self, dataset_id: str) -> tuple[bytes, str, int, bytes]:
        """Ask for a new data key for a dataset.

        Returns:
          data key (32 bytes), the wrapped key to record, the epoch to record, fingerprint key (32 bytes).
        """
        reply = self._ask(_make(IngestKeysRequest, dataset_id=dataset_id))
        try:
            return _key(reply, "data_key"), str(reply["wrapped"]), int(reply["epoch"]), _key(reply, "fingerprint_key")
        except (KeyError, ValueError):
            raise _bad_reply() from None

    def body_key(self) -> bytes:
        """Ask for the raw X25519 private key (32 bytes) of the ledger's sealed bodies."""
        return _key(self._ask(BodyKeyRequest()), "body_key")

    def follow(self, places: str, proof: str = "") -> int:
        """Make the agent follow the log to the tree head that its anchor holds.

        Args:
          places: digest of where the database and the anchor of this home lie.
          proof: that the anchored head continues the newest one that the agent knows; empty only asks for that.

        Returns:
          Size of the newest tree head that the agent knows then.

        Raises:
          KeyUnavailable: it was unlocked for another home, or the proof does not hold.
        """
        reply = self._ask(FollowRequest(places=places, proof=proof))
        try:
            return int(reply["size"])
        except (KeyError, TypeError, ValueError):
            raise _bad_reply() from None

    def release(self, evidence: bytes, dataset_id: str, wrapped: str, epoch: int) -> bytes:
        """Ask for the data key of a dataset (32 bytes).

        Args:
          evidence: what proves the reservation; the agent's `authorise` judges it.
          dataset_id: the dataset.
          wrapped: its wrapped key as recorded.
          epoch: its key epoch as recorded.

        Raises:
          KeyUnavailable: the evidence was refused, or the key-encryption key is not here.
          IntegrityError: the wrapped key is not the one of this dataset and epoch.
        """
        request = _make(
            ReleaseKeyRequest,
            evidence=base64.b64encode(evidence).decode(),
            dataset_id=dataset_id,
            wrapped=wrapped,
            epoch=epoch,
        )
        return _key(self._ask(request), "data_key")

    def seal(self, evidence: bytes, dataset_id: str, wrapped: str, epoch: int, node: NodeKey, context: str) -> str:
        """Ask for the data key of a dataset sealed to a node, as `store.nodes.unseal` opens it there.

        Args:
          evidence: as for `release`; it must name the node.
          dataset_id: the dataset.
          wrapped: its wrapped key as recorded.
          epoch: its key epoch as recorded.
          node: the node.
          context: digest of the ticket that the key belongs to.

        Raises:
          KeyUnavailable, IntegrityError: as `release`.
        """
        request = _make(
            SealKeyRequest,
            evidence=base64.b64encode(evidence).decode(),
            dataset_id=dataset_id,
            wrapped=wrapped,
            epoch=epoch,
            node=node.public.hex(),
            context=context,
        )
        try:
            return str(self._ask(request)["sealed"])
        except KeyError:
            raise _bad_reply() from None

    def _ask(self, request: Value) -> dict[str, Any]:
        connection = self._connect()
        if connection is None:
            raise KeyUnavailable("the store is sealed: no key agent is running", hint="appliance key unlock")
        if (reply := self._talk(connection, request)) is None:
            raise _gone()
        return reply

    def _connect(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # With `settimeout` a full line would refuse it at once; so it waits for a place.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _REPLY_WITHIN_S, 0))
            with address(self._path) as name:
                connection.connect(name)
            connection.settimeout(_REPLY_WITHIN_S)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            connection.close()
            return None
        except OSError:
            connection.close()
            raise KeyUnavailable("the key agent cannot be reached", where=str(self._path)) from None
        return connection

    def _talk(self, connection: socket.socket, request: Value) -> dict[str, Any] | None:
        """Ask, and give the answer; None where the agent ends before it answers."""
        with connection:
            # An agent of somebody else would hand out keys that somebody else knows.
            if peer(connection)[1] != os.geteuid():
                raise KeyUnavailable("the key agent belongs to another user", where=str(self._path))
            message = to_json(request)
            if len(message) > MAX_MESSAGE:
                raise UsageError("the evidence is too large for the key agent")
            try:
                send_message(connection, message)
                reply = receive_message(connection, _REPLY_WITHIN_S)
            except TimeoutError:
                hint = "its process may be stopped"
                raise KeyUnavailable("the key agent does not answer", hint=hint, where=str(self._path)) from None
            except (OSError, UsageError):
                return None
            return parse_reply(reply)


def _make(kind: type[Value], **fields: object) -> Value:
    try:
        return kind(**fields)
    except ValueError:
        raise UsageError("the dataset id or the key epoch is malformed") from None


def _key(reply: dict[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(reply[name], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise _bad_reply() from None


def _gone() -> KeyUnavailable:
    return KeyUnavailable("the key agent went away", hint="appliance key unlock")


def _bad_reply() -> KeyUnavailable:
    return KeyUnavailable("the key agent gave a reply that cannot be understood")
