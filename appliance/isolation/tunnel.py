"""The network of ranks on several machines: loopback and one WireGuard interface, and nothing else.

The administrator makes it: WireGuard sends its packets from the namespace it was made in, also after the interface was
moved into another, so that in there nothing but the tunnel leads out. A rank looks whether that is so, and it has no
capability by which it could change it (`loopback.confine`).

What an interface is the kernel says, where it has WireGuard of its own. WireGuard in user space is a "tun" to it; that
is taken where root declares that it is WireGuard (`isolation.declaration`), and what is recorded then says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.errors import IsolationViolated
from appliance.isolation import declaration
from appliance.isolation.links import Link, links

KIND, USER_SPACE = "wireguard", "tun"
HINT = (
    "make wg0 outside, move it into a namespace of its own (`ip netns add ranks`, `ip link set wg0 netns ranks`), "
    "give it its address there, and run this in it: `ip netns exec ranks ...`, or NetworkNamespacePath= of a unit"
)
BY_KERNEL = "WireGuard only"
BY_DECLARATION = "WireGuard in user space only, as the administrator declares"


@dataclass(frozen=True, slots=True)
class End:
    """This machine's end of the tunnel.

    Attributes:
      address: under which ranks elsewhere reach it.
      declared: name of the interface that the administrator declares to be WireGuard in user space; empty if none.
    """

    address: str
    declared: str = ""


def here(address: str) -> End:
    """Find what is declared of this machine, whose address this is; not inside of a user namespace.

    Raises:
      IsolationViolated: there is a declaration that somebody else than root could have written.
    """
    declared = declaration.read()
    return End(address, declared.in_user_space if declared else "")


def objection(end: End, found: list[Link] | None = None) -> str:
    """Say why the network that this process sees is more than loopback and WireGuard with this address; empty if not.

    Args:
      end: what this machine's end of the tunnel must be.
      found: the interfaces; None asks the kernel.
    """
    others = [link for link in (links() if found is None else found) if not link.loopback]
    if len(others) != 1:
        return f"beside loopback there is {', '.join(sorted(link.name for link in others)) or 'nothing'}"
    (link,) = others
    if not _kind(link, end):
        return f"{link.name} is not WireGuard"
    return "" if end.address in link.addresses else f"{link.name} does not have the address {end.address}"


def _kind(link: Link, end: End) -> str:
    """Say on whose word an interface is WireGuard; empty if it is not."""
    if link.kind == KIND:
        return BY_KERNEL
    return BY_DECLARATION if link.kind == USER_SPACE and link.name == end.declared else ""


def described(end: End) -> str:
    """Say on whose word the one interface beside loopback is WireGuard: what is recorded begins with it."""
    return next(kind for link in links() if (kind := _kind(link, end)))


def require(end: End) -> None:
    """Raise `IsolationViolated` unless there is nothing but loopback and WireGuard with this address."""
    if reason := objection(end):
        raise refusal(reason)


def refusal(reason: str) -> IsolationViolated:
    """Make the error for an objection."""
    return IsolationViolated(f"ranks on several machines talk over WireGuard alone: {reason}", hint=HINT)
