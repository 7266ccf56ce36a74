"""What the administrator declares of the link between machines, in a file that only root can write.

The deployment writes it (`deploy/ansible/roles/link`). It matters where the kernel cannot say what an interface is: to
it WireGuard in user space is a "tun", behind which there could be anything. It is read before ranks enter their user
namespace, in which nobody can tell the files of root from those of others.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, IPvAnyAddress, ValidationError

from appliance.errors import IsolationViolated
from appliance.values import Value

PLACE = Path("/etc/appliance/link.json")
_LARGEST = 1 << 16
_HINT = f"{PLACE} and the directories above it must be root's, and writable by nobody else"


class Declaration(Value):
    """The link of this machine to those that it trains with.

    Attributes:
      interface: name of the one interface beside loopback in the namespace of the ranks.
      implementation: "kernel", or the program in user space that is behind the interface.
      address: of this machine in the link.
      peers: addresses of the others.
    """

    schema_: Literal["appliance.link/1"] = Field(alias="schema")
    interface: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,15}$")]
    implementation: Literal["kernel", "wireguard-go"]
    address: IPvAnyAddress
    peers: tuple[IPvAnyAddress, ...]

    @property
    def in_user_space(self) -> str:
        """The interface that is WireGuard in user space; empty where the kernel can say what it is."""
        return "" if self.implementation == "kernel" else self.interface


def read() -> Declaration | None:
    """Read the declaration of this machine; None where there is none.

    Raises:
      IsolationViolated: somebody else than root could have written it, or it is none.
    """
    try:
        descriptor = os.open(PLACE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _refusal(f"cannot be read: {error.strerror}") from None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _only_roots(os.fstat(descriptor)):
            raise _refusal("can be written by others than root")
        if not all(_only_roots(directory.lstat()) for directory in PLACE.parents):
            raise _refusal("lies where others than root can write")
        try:
            return Declaration.model_validate_json(file.read(_LARGEST))
        except ValidationError:
            raise _refusal("is not a declaration") from None


def _only_roots(found: os.stat_result) -> bool:
    """Whether root alone can write it: an access list that lets others shows in the group's bit."""
    return found.st_uid == 0 and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _refusal(why: str) -> IsolationViolated:
    return IsolationViolated(f"the declaration of the link, {PLACE}, {why}", hint=_HINT)
