"""A process as RestrictAddressFamilies=AF_UNIX of a systemd unit leaves it: without a socket of any network."""

from __future__ import annotations

FILTER = """
import ctypes, os, struct, sys
lines = [(32, 0, 0, 0), (21, 0, 3, 41), (32, 0, 0, 16), (21, 1, 0, 1), (6, 0, 0, 0x50061), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code)))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 == libc.prctl(22, 2, program)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""Refuse every socket but those of the file system, as RestrictAddressFamilies=AF_UNIX does (on x86-64)."""
