"""Ranks on several machines see loopback and WireGuard and nothing else; what is something else is recognised.

The kernel of a test machine need not know WireGuard. The messages of one that does are made here byte by byte: its link
has no hardware address and no data of its own, only the name of its kind (drivers/net/wireguard/device.c). The same
encoder's veth must be what this kernel says of a veth.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import IsolationViolated
from appliance.isolation import loopback, tunnel
from appliance.isolation.links import Link, links, parse_addresses, parse_links, source_address
from appliance.isolation.tunnel import End
from tests.hosts import FIRST, SECOND, two_hosts

Script = Callable[..., str]
LOOPBACK, UP, POINT_TO_POINT, NO_ARP = 0x8, 0x1, 0x10, 0x80
DONE = struct.pack("=IHHIIi", 20, 3, 2, 1, 0, 0)


def attribute(kind: int, value: bytes) -> bytes:
    padded = value + bytes(-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + padded


def message(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 4711) + body


def link(index: int, name: str, kind: str, hardware: int, flags: int, more: bytes = b"", nested: int = 0) -> bytes:
    """RTM_NEWLINK, its attributes in the order of rtnl_fill_ifinfo."""
    attributes = attribute(3, name.encode() + b"\0") + attribute(13, struct.pack("=I", 1000))  # name, queue length
    attributes += attribute(4, struct.pack("=I", 1420)) + more
    if kind:
        attributes += attribute(18 | nested, attribute(1, kind.encode() + b"\0"))
    return message(16, struct.pack("=BxHiII", 0, hardware, index, flags, 0) + attributes)


def address(index: int, value: bytes, peer: bytes = b"") -> bytes:
    family = 2 if len(value) == 4 else 10
    attributes = attribute(1, peer or value) + (attribute(2, value) if family == 2 or peer else b"")
    return message(20, struct.pack("=BBBBI", family, 24, 0x80, 0, index) + attributes)


LO = link(1, "lo", "", 772, LOOPBACK | UP)
WIREGUARD = link(5, "wg0", "wireguard", 65534, UP | POINT_TO_POINT | NO_ARP)
ETHERNET = link(2, "eth0", "", 1, UP, attribute(1, bytes(6)))


@pytest.mark.parametrize("nested", [0, 0x8000])
def test_wireguard_is_recognised_by_its_kind(nested: int) -> None:
    wireguard = link(5, "wg0", "wireguard", 65534, UP | POINT_TO_POINT | NO_ARP, nested=nested)
    found = parse_links(LO + wireguard + DONE)
    assert found == [Link(1, "lo", "", True), Link(5, "wg0", "wireguard", False)]
    named = [parsed if parsed.loopback else Link(5, "wg0", "wireguard", False, ("10.9.0.1",)) for parsed in found]
    assert tunnel.objection(End("10.9.0.1"), named) == ""


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (b"", "beside loopback there is nothing"),
        (ETHERNET, "eth0 is not WireGuard"),
        (link(2, "wireguard", "dummy", 1, UP), "wireguard is not WireGuard"),  # a name proves nothing
        (link(2, "wg0", "wireguard2", 1, UP), "wg0 is not WireGuard"),
        (WIREGUARD + ETHERNET, "beside loopback there is eth0, wg0"),
        (WIREGUARD + link(6, "wg1", "wireguard", 65534, UP), "beside loopback there is wg0, wg1"),
        (WIREGUARD, "wg0 does not have the address 10.9.0.1"),
    ],
)
def test_everything_else_is_an_objection(more: bytes, reason: str) -> None:
    assert tunnel.objection(End("10.9.0.1"), parse_links(LO + more + DONE)) == reason


def test_own_addresses_are_told_from_those_of_peers() -> None:
    data = address(5, bytes([10, 9, 0, 1]), peer=bytes([10, 9, 0, 2])) + address(5, bytes(15) + b"\1") + DONE
    assert parse_addresses(data) == [(5, "10.9.0.1"), (5, "::1")]


@pytest.mark.parametrize(
    "data",
    [
        WIREGUARD[:-1],
        WIREGUARD[:20],
        struct.pack("=IHHII", 8, 16, 0, 0, 0),
        message(16, b"short"),
        message(16, struct.pack("=BxHiII", 0, 0, 1, 0, 0) + struct.pack("=HH", 3, 3)),
        message(16, struct.pack("=BxHiII", 0, 0, 1, 0, 0) + struct.pack("=HH", 30, 3)),
        message(2, struct.pack("=i", -1)),
    ],
)
def test_a_list_that_cannot_be_read_is_no_permission(data: bytes) -> None:
    with pytest.raises(IsolationViolated, match="cannot be read"):
        parse_links(data)


def test_this_kernel_lists_its_loopback() -> None:
    (lo,) = [link for link in links() if link.loopback]
    assert (lo.name, lo.kind) == ("lo", "")
    if lo.addresses:
        assert source_address("127.0.0.1", 9) == "127.0.0.1"


# --- two hosts -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[str]]:
    with two_hosts("tunnel") as names:
        yield names


@pytest.fixture
def on_host(hosts: list[str], run: Script, prelude: str, monkeypatch: pytest.MonkeyPatch) -> Script:
    """`on_host(body, *arguments)`: run a script on the first host."""
    real = subprocess.run

    def inside(command: list[str], **options: object) -> object:
        return real(["ip", "netns", "exec", hosts[0], *command], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", inside)
    return run


def test_a_veth_is_what_the_kernel_says_of_it(on_host: Script) -> None:
    body = "from appliance.isolation.links import links; print([l for l in links() if not l.loopback])"
    printed = on_host(body)
    assert "name='veth0', kind='veth', loopback=False" in printed
    assert f"addresses=('{FIRST}'" in printed
    assert parse_links(link(2, "veth0", "veth", 1, UP) + DONE) == [Link(2, "veth0", "veth", False)]


REFUSED = "refused: ranks on several machines talk over WireGuard alone: "
ENTER = """
from appliance.isolation import tunnel
tunnel.KIND = sys.argv[4]
spec = IsolationSpec(network=sys.argv[1], files="preferred")
try:
    sandbox.require_ranks_alone(spec, tunnel.End(sys.argv[3]))
    report = sandbox.enter(spec, sandbox.system_paths(), [Path(sys.argv[2])], ranks=True, end=tunnel.End(sys.argv[3]))
    print(report.network)
except IsolationViolated as refusal:
    print("refused:", refusal.message)
"""


@pytest.mark.parametrize(
    ("network", "address", "kind", "said"),
    [
        ("required", FIRST, "wireguard", REFUSED + "veth0 is not WireGuard"),
        ("preferred", FIRST, "wireguard", "not restricted: veth0 is not WireGuard"),
        ("required", SECOND, "veth", REFUSED + "veth0 does not have the address"),
        ("required", FIRST, "veth", "WireGuard only, in a namespace with nothing else"),  # as if it were
    ],
)
def test_the_sandbox_says_what_it_found(
    on_host: Script, tmp_path: Path, network: str, address: str, kind: str, said: str
) -> None:
    assert on_host(ENTER, network, tmp_path, address, kind).startswith(said)


def test_the_look_inside_the_sandbox_stands_by_itself(on_host: Script, tmp_path: Path) -> None:
    """With the look before the key taken out, the one in the sandbox refuses."""
    body = "sandbox.require_ranks_alone = lambda *_: None\n" + ENTER
    assert on_host(body, "required", tmp_path, FIRST, "wireguard").startswith("refused: ")


def test_who_is_held_in_the_namespace_can_neither_change_nor_leave_it(on_host: Script, hosts: list[str]) -> None:
    body = """
    from appliance.isolation import loopback
    host = os.open(sys.argv[1], os.O_RDONLY)
    setns = {"x86_64": 308, "aarch64": 268}[kernel.machine()]
    change = ["ip", "link", "set", "veth0", "mtu", "1400"]
    before = subprocess.run(change, capture_output=True).returncode
    kernel.syscall(setns, os.open("/proc/self/ns/net", os.O_RDONLY), 0)  # allowed until here
    loopback.confine()
    inside = f"import os; from appliance.isolation import kernel; kernel.syscall({setns}, {host}, 0)"
    os.set_inheritable(host, True)
    left = subprocess.run([sys.executable, "-c", inside], capture_output=True, close_fds=False).stderr.decode()
    print(before, subprocess.run(change, capture_output=True).returncode != 0, "not permitted" in left)
    print(sorted(loopback.interfaces()), os.geteuid())
    """
    assert on_host(body, f"/run/netns/{hosts[1]}").splitlines() == ["0 True True", "['lo', 'veth0'] 0"]


def test_a_machine_without_user_namespaces_is_refused_with_a_hint(run: Script) -> None:
    body = """
    from appliance.isolation import loopback
    kernel.UNSHARE = {kernel.machine(): 1 << 20}  # no such call
    try:
        loopback.confine()
    except IsolationViolated as refusal:
        print(refusal.message)
    """
    assert "the machine gives none" in run(body)
    assert loopback.interfaces()
