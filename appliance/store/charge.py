"""What the key agent is started with, on its standard input: the root key, and then what it needs to judge requests.

Nothing of it is an argument or in the environment, where others could read it. The root key comes first and raw: it
never becomes a string.
"""

from __future__ import annotations

import os
from typing import IO, Annotated

from pydantic import Field

from appliance.store.keys import RootKey
from appliance.values import Value, to_json

_ROOT = 64  # 32 hex digits of the store's id, 32 bytes of key
_MOST = 1 << 16


class Charge(Value):
    """What the agent is to guard, and for how long.

    Attributes:
      socket: where it listens.
      epoch_keys: directory of the key-encryption keys.
      ttl_s: seconds until it forgets the root key.
      who: who unlocked the store.
      trusted: verifier keys of the log.
      since: size of the log; evidence must be newer.
      head: signed tree head that was newest then.
      anchor: file of the newest tree head.
      places: digest of where database and anchor lie; whoever asks for a key must have the same.
    """

    socket: str
    epoch_keys: str
    ttl_s: Annotated[int, Field(gt=0)]
    who: str
    trusted: list[str]
    since: Annotated[int, Field(ge=0)]
    head: str
    anchor: str
    places: str


def send(pipe: IO[bytes], root: RootKey, charge: Charge) -> None:
    """Write root key and charge to the agent's standard input."""
    pipe.write(root.store_id.encode() + root.buffer)
    pipe.write(to_json(charge))


def receive() -> tuple[RootKey, Charge]:
    """Read what `send` wrote from standard input, and close it."""
    message = bytearray(_ROOT)
    view = memoryview(message)
    while len(view) and (n := os.readv(0, [view])):
        view = view[n:]
    rest = b""
    while part := os.read(0, _MOST):
        rest += part
    os.close(0)
    root = RootKey(bytes(message[:32]).decode(), message[32:])
    message[:] = bytes(len(message))
    return root, Charge.model_validate_json(rest)
