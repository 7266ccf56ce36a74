"""Network interfaces as the kernel lists them over route netlink: kind and addresses of each. It takes no privilege.

The kind is what made the interface (`IFLA_INFO_KIND`): "wireguard", "veth", "bridge"; empty for hardware and loopback.
A name can be chosen, a kind cannot.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from appliance.errors import IsolationViolated

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/if.h
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_NEW_LINK, _GET_LINK, _NEW_ADDRESS, _GET_ADDRESS = 16, 18, 20, 22
_IFLA_NAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 18, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_TYPE_OF_ATTRIBUTE = 0x3FFF  # without the flags "nested" and "network byte order"
_LOOPBACK = 0x8

_MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg: family, hardware, index, flags, change
_ADDRESS = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_ATTRIBUTE = struct.Struct("=HH")  # struct rtattr: length with this header, type


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface.

    Attributes:
      index: its number.
      name: its name.
      kind: what made it, for example "wireguard"; empty for hardware and loopback.
      loopback: whether it is loopback.
      addresses: its own addresses, as text.
    """

    index: int
    name: str
    kind: str
    loopback: bool
    addresses: tuple[str, ...] = ()


def links() -> list[Link]:
    """List the interfaces that this process can see. Raises `IsolationViolated` if the kernel does not list them."""
    addresses = parse_addresses(_dump(_GET_ADDRESS))
    found = parse_links(_dump(_GET_LINK))
    return [replace(link, addresses=tuple(a for index, a in addresses if index == link.index)) for link in found]


def parse_links(data: bytes) -> list[Link]:
    """Parse the interfaces in what the kernel answers to RTM_GETLINK; without addresses, which it tells apart."""
    found = []
    for body in _messages(data, _NEW_LINK):
        _, _, index, flags, _ = _unpack(_LINK, body)
        attributes = dict(_attributes(body[_LINK.size :]))
        info = dict(_attributes(attributes.get(_IFLA_LINKINFO, b"")))
        name, kind = (_text(part) for part in (attributes.get(_IFLA_NAME, b""), info.get(_IFLA_INFO_KIND, b"")))
        found.append(Link(index, name, kind, bool(flags & _LOOPBACK)))
    return found


def parse_addresses(data: bytes) -> list[tuple[int, str]]:
    """Parse what the kernel answers to RTM_GETADDR: (number of an interface, an address of its own)."""
    found = []
    for body in _messages(data, _NEW_ADDRESS):
        *_, index = _unpack(_ADDRESS, body)
        attributes = dict(_attributes(body[_ADDRESS.size :]))
        own = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS, b""))  # between two ends the other is the peer's
        if len(own) in (4, 16):
            found.append((index, str(ipaddress.ip_address(own))))
    return found


def source_address(host: str, port: int) -> str:
    """Find the own address from which `host`, a numeric address, would be reached. Nothing is sent.

    Raises:
      OSError: there is no route to it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as anything:
        anything.connect((host, port))
        return str(anything.getsockname()[0])


def _dump(request: int) -> bytes:
    """Ask for all messages of one answer, behind each other."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
            kernel.sendto(
                _MESSAGE.pack(_MESSAGE.size + _LINK.size, request, _REQUEST | _DUMP, 1, 0) + bytes(16), (0, 0)
            )
            data = b""
            while not any(kind == _DONE for kind, _ in _all(data)):
                data += kernel.recv(1 << 16)
            return data
    except OSError as error:
        raise IsolationViolated(f"the kernel does not list the network interfaces: {error.strerror}") from None


def _messages(data: bytes, wanted: int) -> Iterator[bytes]:
    return (body for kind, body in _all(data) if kind == wanted)


def _all(data: bytes) -> Iterator[tuple[int, bytes]]:
    """List (type, body) of every message."""
    while data:
        length, kind, *_ = _unpack(_MESSAGE, data)
        if not _MESSAGE.size <= length <= len(data) or kind == _ERROR:
            raise _unreadable()
        yield kind, data[_MESSAGE.size : length]
        data = data[_align(length) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """List (type, value) of every attribute."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if not _ATTRIBUTE.size <= length <= len(data):
            raise _unreadable()
        yield kind & _TYPE_OF_ATTRIBUTE, data[_ATTRIBUTE.size : length]
        data = data[_align(length) :]


def _unpack(layout: struct.Struct, data: bytes) -> tuple[int, ...]:
    if len(data) < layout.size:
        raise _unreadable()
    return layout.unpack_from(data)


def _align(length: int) -> int:
    return (length + 3) & ~3


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("ascii", "backslashreplace")


def _unreadable() -> IsolationViolated:
    return IsolationViolated("the kernel's list of network interfaces cannot be read")
