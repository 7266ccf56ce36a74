"""Who may ask: keys known by their digest, and how often each client may."""

from __future__ import annotations

import asyncio
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from appliance.jobs.serve import Client, Clients
from appliance.serve.faults import Fault

PREFIX = "Bearer "


@dataclass
class _Bucket:
    """Holds one request for each that may come; refills evenly."""

    client: Client
    left: float
    at: float

    def take(self, now: float) -> None:
        most = float(self.client.per_minute)
        self.left = min(most, self.left + (now - self.at) * most / 60)
        self.at = now
        if self.left < 1:
            wait = math.ceil((1 - self.left) * 60 / most)
            message = f"more than {self.client.per_minute} requests in a minute"
            raise Fault(429, "rate_limit_exceeded", message, retry_after=wait)
        self.left -= 1


class Doorkeeper:
    """Lets clients in. The file is read again when it changes, so a client that is revoked is out at once."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, (-1, -1)
        self._buckets: dict[str, _Bucket] = {}

    def admit(self, authorization: str) -> str:
        """Admit a request; the client's name.

        Raises:
          Fault: there is no such key, or its client asks too often.
        """
        self._refresh()
        key = authorization[len(PREFIX) :] if authorization.startswith(PREFIX) else ""
        bucket = self._buckets.get(hashlib.sha256(key.encode()).hexdigest())
        if bucket is None:
            raise Fault(401, "invalid_api_key", "no such API key; send it as: Authorization: Bearer KEY")
        bucket.take(asyncio.get_running_loop().time())
        return bucket.client.name

    def _refresh(self) -> None:
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._seen, self._buckets = (-1, -1), {}
            return
        if (seen := (stat.st_mtime_ns, stat.st_ino)) == self._seen:
            return
        try:
            clients = Clients.read(self._path).clients
        except ValidationError:  # damaged: nobody is let in
            clients = ()
        now = asyncio.get_running_loop().time()
        old = {key: bucket for key, bucket in self._buckets.items() if bucket.client in clients}
        fresh = {client.key_sha256: _Bucket(client, float(client.per_minute), now) for client in clients}
        self._seen, self._buckets = seen, fresh | old
