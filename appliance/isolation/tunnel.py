"""The network of ranks on several machines: loopback and one WireGuard interface, and nothing else.

The administrator makes it: WireGuard sends its packets from the namespace it was made in, also after the interface was
moved into another, so that in there nothing but the tunnel leads out. A rank looks whether that is so, and it has no
capability by which it could change it (`loopback.confine`).
"""

from __future__ import annotations

from appliance.errors import IsolationViolated
from appliance.isolation.links import Link, links

KIND = "wireguard"
HINT = (
    "make wg0 outside, move it into a namespace of its own (`ip netns add ranks`, `ip link set wg0 netns ranks`), "
    "give it its address there, and run this in it: `ip netns exec ranks ...`, or NetworkNamespacePath= of a unit"
)


def objection(address: str, found: list[Link] | None = None) -> str:
    """Say why the network that this process sees is more than loopback and WireGuard with this address; empty if not.

    Args:
      address: the address of this machine under which ranks elsewhere reach it.
      found: the interfaces; None asks the kernel.
    """
    others = [link for link in (links() if found is None else found) if not link.loopback]
    if len(others) != 1:
        return f"beside loopback there is {', '.join(sorted(link.name for link in others)) or 'nothing'}"
    (link,) = others
    if link.kind != KIND:
        return f"{link.name} is not WireGuard"
    return "" if address in link.addresses else f"{link.name} does not have the address {address}"


def require(address: str) -> None:
    """Raise `IsolationViolated` unless there is nothing but loopback and WireGuard with this address."""
    if reason := objection(address):
        raise refusal(reason)


def refusal(reason: str) -> IsolationViolated:
    """Make the error for an objection."""
    return IsolationViolated(f"ranks on several machines talk over WireGuard alone: {reason}", hint=HINT)
