"""`serve client`: who may ask a served model. A key is shown once; its digest is kept, and stands in the ledger."""

from __future__ import annotations

import hashlib
import secrets

from pydantic import ValidationError

from appliance.errors import ArtefactMissing, IntegrityError, UsageError
from appliance.events.serving import ClientAdded, ClientRevoked
from appliance.files import locked, write_atomic
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.jobs.serve import Client, Clients
from appliance.names import require_word
from appliance.values import to_json

KEY_BYTES = 32


def add(home: Home, name: str, per_minute: int, operator: Operator) -> str:
    """Let a client ask; its key, which is not kept.

    Raises:
      UsageError: there is a client of this name, or it is no name.
    """
    require_word(name, "client")
    key = f"sk-{secrets.token_urlsafe(KEY_BYTES)}"
    client = Client(name=name, key_sha256=hashlib.sha256(key.encode()).hexdigest(), per_minute=per_minute)
    with locked(home.clients.with_name(".clients.lock")), Desk.open(home, operator) as desk:
        known = listed(home)
        if any(one.name == name for one in known):
            raise UsageError(f"there is a client {name}", hint=f"`appliance serve client revoke {name}` comes first")
        desk.record(ClientAdded(name=name, key_sha256=client.key_sha256, per_minute=per_minute))
        write_atomic(home.clients, to_json(Clients(clients=(*known, client))))
    return key


def revoke(home: Home, name: str, operator: Operator) -> Client:
    """Let a client ask no longer; gateways that run know it at once.

    Raises:
      ArtefactMissing: there is no such client.
    """
    with locked(home.clients.with_name(".clients.lock")), Desk.open(home, operator) as desk:
        known = listed(home)
        client = next((one for one in known if one.name == name), None)
        if client is None:
            raise ArtefactMissing(f"no client {name}", hint="`appliance serve client list` shows them")
        write_atomic(home.clients, to_json(Clients(clients=tuple(one for one in known if one is not client))))
        desk.record(ClientRevoked(name=name, key_sha256=client.key_sha256))
    return client


def listed(home: Home) -> tuple[Client, ...]:
    """List the clients. Raises `IntegrityError` where the file is damaged."""
    try:
        return Clients.read(home.clients).clients
    except ValidationError:
        raise IntegrityError("the file of clients is damaged", where=str(home.clients)) from None
