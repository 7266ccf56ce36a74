"""A process as RestrictAddressFamilies=AF_UNIX of a systemd unit leaves it: without a socket of any network."""

from __future__ import annotations

import socket

_SCRIPT = """
import ctypes, os, struct, sys
kept = KEPT
lines = [(32, 0, 0, 0), (21, 0, len(kept) + 2, 41), (32, 0, 0, 16)]
lines += [(21, len(kept) - place, 0, family) for place, family in enumerate(kept)]
lines += [(6, 0, 0, 0x50061), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 == libc.prctl(22, 2, program)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def without_sockets_but(*families: int) -> str:
    """A script that refuses all sockets but these and those of the file system, and becomes its arguments (x86-64)."""
    return _SCRIPT.replace("KEPT", repr([int(socket.AF_UNIX), *map(int, families)]))


FILTER = without_sockets_but()
