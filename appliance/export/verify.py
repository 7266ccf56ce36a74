#!/usr/bin/env python3
# ruff: noqa: D102, D103
"""Verify a sealed directory (a bundle or a report) offline. One file, standard library only, Python 3.9 or newer.

    python verify.py [DIR] --trusted-key KEY [--state FILE] [--json]

DIR is the directory to check; by default the one this file lies in. KEY is what you got from the appliance on another
way than the directory: a file with its verifier keys, or the fingerprint that its `init` printed. FILE remembers the
newest tree head you saw, so that an older directory (a rollback) or another history (a fork) is noticed.

Exit: 0 everything holds; 8 something was altered, swapped, added or removed; 14 no trusted key was given, or a part is
missing; 15 older than what FILE remembers; 2 it was called wrongly or cannot read; 1 a bug in this file.

Whoever can alter the directory can alter the copy of this file in it. Run a copy that you got elsewhere.
Formats: docs/spec/bundle.md and docs/spec/ledger.md of the appliance.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import hashlib
import json
import math
import operator
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from html.parser import HTMLParser
from typing import Any

OK, BUG, USAGE, TAMPERED, INCOMPLETE, STALE = 0, 1, 2, 8, 14, 15
VERDICTS = {OK: "intact", TAMPERED: "tampered", INCOMPLETE: "incomplete", STALE: "stale"}
MAX_FILES, MAX_DEPTH, MAX_TEXT, MAX_DOCUMENT, MAX_LEAF = 20_000, 9, 100_000, 16_000_000, 65_535
MANIFEST, KEYS, HEAD = "manifest.json", "ledger/keys.txt", "ledger/head.txt"
EVENTS = {"bundle": "bundle.exported", "report": "report.built"}
LEAF_VERSION = "appliance.ledger.leaf/1"
LEAF_MEMBERS = set(
    "v origin index time boot_id actor actor_auth type event_id subject policy_sha256 software facts rows body".split()
)
NOT_SHOWN = (
    "that the appliance ran what it says it ran: the entries are its own word, signed so that it cannot change them later",
    "privacy curves: epsilon for these steps, noise and sampling rate; recompute with the appliance",
    "sentences and pictures in the documents: only values that point to a ledger entry were compared",
    "that this is the newest directory of its log, beyond what --state remembers",
)

# What entries about one run (or one evaluation) must agree on: kind of entry, pointer into its facts (^ into its leaf).
RULES = """
run.reserved ^/policy_sha256 = policy.activated /sha256     run.reserved /model_id = model.imported /model_id
run.reserved /dataset_id = run.started /dataset_id          run.reserved /dataset_id = run.resumed /dataset_id
run.reserved /dataset_id = run.settled /dataset_id          run.reserved ^/policy_sha256 = run.settled ^/policy_sha256
run.reserved /plan/delta = run.settled /delta               run.reserved /plan/noise_multiplier = run.settled /noise_multiplier
run.reserved /plan/sample_rate = run.settled /sample_rate   run.settled /adapter_sha256 = watermark.embedded /adapter_sha256
model.imported /sha256 = watermark.committed /model_sha256  model.imported /sha256 = watermark.embedded /model_sha256
watermark.committed /key_id = watermark.embedded /key_id    watermark.committed /commitment = watermark.embedded /commitment
watermark.committed /algorithm_sha256 = watermark.embedded /algorithm_sha256
watermark.embedded /released_sha256 = bundle.exported /released_sha256
evaluation.reserved /dataset_id = evaluation.settled /dataset_id  evaluation.reserved /delta = evaluation.settled /delta
run.reserved /epsilon_before <= run.reserved /epsilon_after run.reserved /epsilon_after <= run.reserved /cap
run.reserved /plan/epsilon <= run.reserved /cap             run.settled /attempts <= run.reserved /plan/attempts
run.settled /steps <= run.settled /attempts                 run.settled /sampler_delta <= run.settled /delta
run.settled /epsilon_pld <= run.settled /epsilon_charged    run.settled /epsilon_prv <= run.settled /epsilon_charged
run.settled /epsilon_charged <= run.reserved /plan/epsilon  evaluation.settled /epsilon_charged <= evaluation.reserved /epsilon
evaluation.reserved /epsilon_before <= evaluation.reserved /epsilon_after
evaluation.reserved /epsilon_after <= evaluation.reserved /cap
run.reserved ^/index <= watermark.committed ^/index         watermark.committed ^/index <= run.started ^/index
run.reserved ^/index <= audit.selftest ^/index              run.reserved ^/index <= run.started ^/index
run.started ^/index <= run.settled ^/index                  run.settled ^/index <= watermark.embedded ^/index
watermark.embedded ^/index <= bundle.exported ^/index       evaluation.reserved ^/index <= evaluation.settled ^/index
""".split()
CERTIFICATE = (
    "run_id key_id commitment base=model_sha256 algorithm=algorithm_sha256 escrow=escrow_sha256 "
    "suspect=released_sha256 statistic=score p_bound predicted=score_predicted".split()
)


class Bad(Exception):
    """A file is not what it must be: exit 8 with its name."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")
        self.where, self.why = where, why


class CannotRun(Exception):
    """It was called wrongly, or something cannot be read: exit 2."""


# --- Ed25519 (RFC 8032, section 5.1.7); points are in extended coordinates X, Y, Z, T -------------------------------

P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
Point = tuple[int, int, int, int]
ZERO: Point = (0, 1, 1, 0)


def point_add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def point_multiply(n: int, p: Point) -> Point:
    total = ZERO
    while n:
        total = point_add(total, p) if n & 1 else total
        p, n = point_add(p, p), n >> 1
    return total


def point_decode(data: bytes) -> Point | None:
    """The point in 32 bytes; None where they are not the one encoding of a point."""
    sign, y = data[31] >> 7, int.from_bytes(data, "little") & (2**255 - 1)
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if (v * x * x + u) % P == 0:
        x = x * pow(2, (P - 1) // 4, P) % P
    if y >= P or (v * x * x - u) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def point_encode(p: Point) -> bytes:
    inverse = pow(p[2], -1, P)
    return (p[1] * inverse % P | (p[0] * inverse % P & 1) << 255).to_bytes(32, "little")


def ed25519_accepts(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a signature holds; S, R and the key must be in canonical form, and the key not of small order."""
    key = point_decode(public) if len(public) == 32 and len(signature) == 64 else None
    base = point_decode((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    s = int.from_bytes(signature[32:], "little")
    if key is None or base is None or s >= ORDER or point_encode(point_multiply(8, key)) == point_encode(ZERO):
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % ORDER
    minus = (P - key[0], key[1], key[2], P - key[3])
    return point_encode(point_add(point_multiply(s, base), point_multiply(k, minus))) == signature[:32]


# --- ML-DSA-44, verification (FIPS 204, algorithm 8 and those it calls), pure mode ------------------------

Q, GAMMA1, GAMMA2, TAU, BETA, OMEGA = 8380417, 1 << 17, 8380416 // 88, 39, 78, 80
Poly = list[int]


@functools.lru_cache(maxsize=None)  # noqa: UP033 (Python 3.9)
def powers() -> list[Poly]:
    """The powers 0 to 256 of the 256 roots at which the transform evaluates a polynomial, in the transform's order."""
    rows = [[1] for _ in range(256)]
    for i, row in enumerate(rows):
        root = pow(1753, 2 * int(f"{i:08b}"[::-1], 2) + 1, Q)
        for _ in range(256):
            row.append(row[-1] * root % Q)
    return rows


def ntt(w: Poly) -> Poly:
    """The transform by its definition: slower than algorithm 41, but plain, and one signature is checked."""
    return [sum(map(operator.mul, w, row)) % Q for row in powers()]


def ntt_inverse(values: Poly) -> Poly:
    """The inverse transform; a root's power -j is minus its power 256 - j, and -1/256 is 32736 mod Q."""
    columns = list(zip(*powers()))[:0:-1]  # noqa: B905 (Python 3.9)
    return [sum(map(operator.mul, values, column)) * 32736 % Q for column in columns]


def unpack(data: bytes, bits: int) -> Poly:
    """256 little-endian numbers of `bits` bits."""
    number = int.from_bytes(data, "little")
    return [number >> bits * i & (1 << bits) - 1 for i in range(256)]


def expand(seed: bytes) -> Poly:
    """A polynomial of the matrix, transformed already (algorithm 30)."""
    length, found = 0, []
    while len(found) < 256:
        length += 3072
        stream = hashlib.shake_128(seed).digest(length)
        numbers = (int.from_bytes(stream[i : i + 3], "little") & 0x7FFFFF for i in range(0, length, 3))
        found = [number for number in numbers if number < Q]
    return found[:256]


def challenge(seed: bytes) -> Poly:
    """A polynomial with 39 coefficients of 1 or -1 (algorithm 29)."""
    stream, c, at = hashlib.shake_256(seed).digest(8192), [0] * 256, 8
    signs = int.from_bytes(stream[:8], "little")
    for i in range(256 - TAU, 256):
        at = next(j for j in range(at, len(stream)) if stream[j] <= i)
        c[i], c[stream[at]] = c[stream[at]], 1 - 2 * (signs & 1)
        at, signs = at + 1, signs >> 1
    return c


def hints(data: bytes) -> list[set[int]] | None:
    """Positions of the hints of each polynomial; None where they are not in the one encoding (algorithm 21)."""
    found, start = [], 0
    for end in data[OMEGA:]:
        places = list(data[start:end])
        if not start <= end <= OMEGA or places != sorted(set(places)):
            return None
        found.append(set(places))
        start = end
    return None if any(data[start:OMEGA]) else found


def use_hint(r: int, hinted: bool) -> int:
    """High bits of r, corrected by a hint (algorithms 36 and 40)."""
    low = r % (2 * GAMMA2)
    low -= 2 * GAMMA2 if low > GAMMA2 else 0
    high, low = (0, low - 1) if r - low == Q - 1 else ((r - low) // (2 * GAMMA2), low)
    return (high + (1 if low > 0 else -1)) % 44 if hinted else high


def mldsa44_accepts(public: bytes, message: bytes, signature: bytes, context: bytes = b"") -> bool:
    """Whether a signature holds."""
    if len(public) != 1312 or len(signature) != 2420:
        return False
    z = [[GAMMA1 - x for x in unpack(signature[i : i + 576], 18)] for i in range(32, 2336, 576)]
    hinted = hints(signature[2336:])
    if hinted is None or any(abs(x) >= GAMMA1 - BETA for row in z for x in row):
        return False
    mu = hashlib.shake_256(hashlib.shake_256(public).digest(64) + bytes((0, len(context))) + context + message).digest(64)
    c, z, packed = ntt(challenge(signature[:32])), [ntt(row) for row in z], b""
    for r in range(4):
        t = ntt([x << 13 for x in unpack(public[32 + 320 * r : 352 + 320 * r], 10)])
        rows = [expand(public[:32] + bytes((s, r))) for s in range(4)]
        w = ntt_inverse([(sum(rows[s][i] * z[s][i] for s in range(4)) - c[i] * t[i]) % Q for i in range(256)])
        packed += sum(use_hint(x, i in hinted[r]) << 6 * i for i, x in enumerate(w)).to_bytes(192, "little")
    return hashlib.shake_256(mu + packed).digest(32) == signature[:32]


# --- text, numbers and JSON -----------------------------------------------------------------------------------------


def decode64(text: str, where: str) -> bytes:
    """Bytes of base64 in its one canonical form."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except ValueError:
        data = b""
    if not text or base64.b64encode(data).decode() != text:
        raise Bad(where, "base64 is malformed")
    return data


def whole(text: str, where: str) -> int:
    """A plain decimal number."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,17}", text, re.ASCII):
        raise Bad(where, "a number is malformed")
    return int(text)


def utf8(data: bytes, where: str) -> str:
    """Text of UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Bad(where, "is not UTF-8") from None


def _refuse(_text: str) -> Any:
    raise ValueError


def _integer(text: str) -> int:
    number = int(text[:20])
    return number if abs(number) < 2**53 else int(_refuse(text))


def canonical(value: Any) -> str:
    """Canonical JSON (RFC 8785) of a value without floats, whose names are ASCII."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def parse_json(data: bytes, where: str, end: bytes = b"") -> Any:
    """The value in canonical JSON bytes, which end in `end`."""
    try:
        value = json.loads(data.decode(), parse_int=_integer, parse_float=_refuse, parse_constant=_refuse)
        if canonical(value).encode("utf-8") + end != data:
            raise ValueError
    except (ValueError, RecursionError):
        raise Bad(where, "is not canonical JSON") from None
    return value


def pointed(value: Any, pointer: Any, where: str) -> Any:
    """The part of a JSON value that an RFC 6901 pointer names."""
    if not isinstance(pointer, str) or not pointer.startswith("/"):
        raise Bad(where, "a pointer is malformed")
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and re.fullmatch(r"0|[1-9][0-9]{0,6}", name) and int(name) < len(value):
            value = value[int(name)]
        else:
            raise Bad(where, f"nothing is stated at {show(pointer)}")
    return value


def show(text: Any) -> str:
    """Foreign text, safe and short enough to print."""
    return ascii(text if len(str(text)) <= 120 else str(text)[:120] + "...")[1:-1]


# --- signed notes, Merkle proofs (C2SP signed-note, tlog-checkpoint, tlog-cosignature, tlog-proof; RFC 6962, 9162) --


class Key:
    """A C2SP verifier key: name+id+base64(type || public key)."""

    def __init__(self, text: str, where: str) -> None:
        name, plus, rest = text.partition("+")
        hexid, _, encoded = rest.partition("+")
        raw = decode64(encoded, where)
        if not plus or not valid_name(name) or len(raw) != {1: 33, 6: 1313}.get(raw[0]):
            raise Bad(where, "a verifier key is malformed")
        self.text, self.name, self.type, self.public = text, name, raw[0], raw[1:]
        self.id = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
        if self.id.hex() != hexid:
            raise Bad(where, "a verifier key does not have its own id")

    def accepts(self, head: Head, signature: bytes) -> bool:
        """Whether this key signed the tree head."""
        if self.type == 1:
            return ed25519_accepts(self.public, head.text.encode(), signature)
        name, origin = (bytes([len(text.encode())]) + text.encode() for text in (self.name, head.origin))
        message = (
            b"subtree/v1\n\0" + name + signature[:8] + origin + bytes(8) + head.size.to_bytes(8, "big") + head.root
        )
        return mldsa44_accepts(self.public, message, signature[8:])


def valid_name(name: str) -> bool:
    """Whether a text can be the name of a log and of a key."""
    return bool(name) and name.isprintable() and not set(" +") & set(name) and len(name.encode()) <= 255


class Head:
    """A tree head: origin, size, root. `lines` are its signature lines."""

    def __init__(self, note: str, where: str) -> None:
        text, blank, rest = note.rpartition("\n\n")
        control = any(ord(c) < 32 and c != "\n" or ord(c) == 127 for c in note)
        self.lines, lines = rest.split("\n"), text.split("\n")
        if not blank or control or self.lines.pop() or len(self.lines) > 16 or len(note) > MAX_TEXT or len(lines) != 3:
            raise Bad(where, "a tree head is malformed")
        self.note, self.text, self.origin = note, text + "\n", lines[0]
        self.size, self.root = whole(lines[1], where), decode64(lines[2], where)
        if len(self.root) != 32 or not valid_name(self.origin):
            raise Bad(where, "a tree head is malformed")


def open_head(note: str, keys: Sequence[Key], where: str, exact: bool = True) -> Head:
    """The tree head in a note that every key signed, and, if `exact`, nobody else."""
    head, seen = Head(note, where), set()
    if not keys or any(key.name != head.origin for key in keys):
        raise Bad(where, "the tree head is of another log than the keys")
    known = {(key.name, key.id): key for key in keys}
    for line in head.lines:
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        raw = decode64(encoded, where)
        if dash != "\u2014" or not valid_name(name) or len(raw) < 5:
            raise Bad(where, "a signature line is malformed")
        key = known.get((name, raw[:4]))
        if key is None and exact:
            raise Bad(where, "the tree head has a signature of an unknown key")
        if key is not None and (key in seen or not key.accepts(head, raw[4:])):
            raise Bad(where, "a signature of the tree head does not verify")
        seen.add(key)
    if not set(known.values()) <= seen:
        raise Bad(where, "the tree head lacks the signature of a key")
    return head


def node(left: bytes, right: bytes) -> bytes:
    """Hash of an interior node."""
    return hashlib.sha256(b"\1" + left + right).digest()


def split(size: int) -> int:
    """Largest power of two below a size."""
    return 1 << (size - 1).bit_length() - 1


def root_of(index: int, size: int, digest: bytes, path: list[bytes]) -> bytes:
    """Root that an audit path leads to (RFC 6962, 2.1.1); uses the path up from its end."""
    if size == 1:
        return digest
    k, sibling = split(size), path.pop()
    if index < k:
        return node(root_of(index, k, digest, path), sibling)
    return node(sibling, root_of(index - k, size - k, digest, path))


def roots_of(old: int, size: int, old_root: bytes, path: list[bytes], whole: bool = True) -> tuple[bytes, bytes]:
    """Old and new root that a consistency proof leads to (RFC 6962, 2.1.2); uses the path up from its end."""
    if old == size:
        return (old_root, old_root) if whole else (path[-1], path.pop())
    k, sibling = split(size), path.pop()
    if old <= k:
        first, second = roots_of(old, k, old_root, path, whole)
        return first, node(second, sibling)
    first, second = roots_of(old - k, size - k, old_root, path, whole=False)
    return node(sibling, first), node(sibling, second)


def hashes_of(lines: Sequence[str], where: str) -> list[bytes]:
    """The hashes of a proof."""
    hashes = [decode64(line, where) for line in lines]
    if len(hashes) > 127 or any(len(digest) != 32 for digest in hashes):
        raise Bad(where, "the proof is malformed")
    return hashes


def check_inclusion(text: str, leaf: bytes, index: int, head: Head, where: str) -> None:
    """A tlog-proof that the leaf stands at `index` under exactly this signed tree head."""
    top, _, note = text.partition("\n\n")
    lines = top.split("\n")
    if lines[:2] != ["c2sp.org/tlog-proof@v1", f"index {index}"] or index >= head.size or note != head.note:
        raise Bad(where, f"the proof is malformed, or of another entry or tree head than {HEAD}")
    path, root = hashes_of(lines[2:], where), b""
    with contextlib.suppress(IndexError):  # a path that is too short
        root = root_of(index, head.size, hashlib.sha256(b"\0" + leaf).digest(), path)
    if path or root != head.root:
        raise Bad(where, f"does not lead from {where[:-6]}.leaf to the tree head: one of the two was altered")


def check_consistency(text: str, old: int, head: Head, where: str) -> bytes:
    """A proof that the log continues its first `old` entries; the root that these had."""
    lines = text.split("\n")
    if (
        lines[:2] != ["appliance.consistency/1", f"old {old}"]
        or len(lines) < 4
        or lines[-1]
        or not 0 < old <= head.size
    ):
        raise Bad(where, "the consistency proof is malformed")
    old_root, *path = hashes_of(lines[2:-1], where)
    roots = (b"", b"")
    with contextlib.suppress(IndexError):  # a path that is too short
        roots = roots_of(old, head.size, old_root, path)
    if path or roots != (old_root, head.root):
        raise Bad(where, "the tree head does not continue the earlier one")
    return old_root


# --- the directory and its parts ------------------------------------------------------------------------------------

SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}(?<!\.)")
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
MEMBERS = {"schema", "kind", "id", "run_id", "origin", "created", "files", "entries", "earlier"}
NEEDED = {
    "report": "ledger.created run.reserved report.html report.json verify.py",
    "bundle": "ledger.created policy.activated model.imported run.reserved watermark.committed audit.selftest run.started "
    "run.settled watermark.embedded README.md privacy_statement.json report.html report.json watermark_certificate.json "
    "adapter/adapter_config.json verify.py",
}


def list_files(root: str) -> dict[str, int]:
    """Every file below a directory with its size; links are not followed."""
    sizes: dict[str, int] = {}
    todo = [""]
    while todo:
        prefix = todo.pop()
        names = sorted(os.listdir(os.path.join(root, prefix)))
        if prefix and not names:
            raise Bad(show(prefix), "an empty directory does not belong here")
        for name in (prefix + name for name in names):
            info = os.lstat(os.path.join(root, name))
            link = stat.S_ISLNK(info.st_mode) or getattr(info, "st_file_attributes", 0) & 0x400
            if not link and stat.S_ISDIR(info.st_mode) and name.count("/") < MAX_DEPTH:
                todo.append(name + "/")
            elif link or not stat.S_ISREG(info.st_mode) or len(sizes) >= MAX_FILES:
                raise Bad(show(name), "is a link, a device, nested too deeply or one file too many")
            else:
                sizes[name] = info.st_size
    return sizes


class Examination:
    """The checks of one directory, each relying on those before it, and what they found."""

    def __init__(self, root: str, pin: Sequence[str], memory: dict[str, Any]) -> None:
        self.root, self.pin, self.memory, self.keys_sha256, self.about = root, pin, memory, "", ""
        self.head: Any = None
        self.leaves: dict[int, Any] = {}
        self.heads: dict[int, str] = {}
        self.problems: list[tuple[str, str]] = []
        self.missing: list[str] = []
        self.checked: list[str] = []
        self.stale = ""

    @property
    def code(self) -> int:
        """The exit code."""
        incomplete = self.missing or not self.pin
        return TAMPERED if self.problems else INCOMPLETE if incomplete else STALE if self.stale else OK

    def run(self) -> Examination:
        """All checks, up to the first kind that fails."""
        try:
            self.sizes = list_files(self.root)
            for step in (
                self.check_keys, self.check_manifest, self.check_payload, self.check_ledger, self.check_facts,
                self.check_documents, self.check_memory,
            ):  # fmt: skip
                step()
                if self.problems:
                    break
        except Bad as bad:
            self.wrong(bad.where, bad.why)
        return self

    def wrong(self, where: str, why: str) -> None:
        """Note a problem."""
        self.problems.append((show(where), why))

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """The bytes of a file of the directory."""
        if self.sizes.get(name, limit + 1) > limit:
            raise Bad(show(name), "is too large" if name in self.sizes else "is missing")
        with open(os.path.join(self.root, name), "rb") as file:
            return file.read(limit + 1)

    def check_keys(self) -> None:
        """The keys, pinned or not, and the tree head that they signed."""
        data = self.read(KEYS)
        lines = utf8(data, KEYS).split("\n")
        keys = [Key(line, KEYS) for line in lines[:-1]]
        if lines[-1] or not 1 <= len(keys) <= 16 or len({key.text for key in keys}) != len(keys):
            raise Bad(KEYS, "is not a list of verifier keys")
        self.keys_sha256 = hashlib.sha256(data).hexdigest()
        mine = {line for line in self.pin if line.partition("+")[0] == keys[0].name}
        if self.pin and self.pin != [self.keys_sha256] and not (mine and mine <= set(lines)):
            raise Bad(KEYS, "these are not the keys you trust: somebody else signed this directory")
        self.head = open_head(utf8(self.read(HEAD), HEAD), keys, HEAD)
        self.heads[self.head.size] = self.head.root.hex()
        by = " and ".join({1: "Ed25519", 6: "ML-DSA-44"}[key.type] for key in keys)
        self.checked.append(f"tree head of {show(self.head.origin)}, {self.head.size} entries: signed with {by}")

    def open_leaf(self, index: int) -> Any:
        """The leaf at an index, proven to stand under the tree head."""
        stem = f"ledger/{index:08d}"
        data, proof = self.read(stem + ".leaf", MAX_LEAF), self.read(stem + ".proof", 2 * MAX_TEXT)
        check_inclusion(utf8(proof, stem + ".proof"), data, index, self.head, stem + ".proof")
        leaf = parse_json(data, stem + ".leaf")
        good = isinstance(leaf, dict) and set(leaf) == LEAF_MEMBERS and isinstance(leaf["facts"], dict)
        if not good or (leaf["v"], leaf["index"], leaf["origin"]) != (LEAF_VERSION, index, self.head.origin):
            raise Bad(stem + ".leaf", "is not the leaf of this place in this log")
        return leaf

    def check_manifest(self) -> None:
        """The entry that hands the directory out, the newest one here, and the manifest that it vouches for."""
        found = (re.fullmatch(r"ledger/([0-9]{8,18})\.leaf", name, re.ASCII) for name in self.sizes)
        self.index = max((int(match[1]) for match in found if match), default=0)
        event, data = self.open_leaf(self.index), self.read(MANIFEST, MAX_DOCUMENT)
        facts = event["facts"]
        if hashlib.sha256(data).hexdigest() != facts.get("manifest_sha256"):
            raise Bad(MANIFEST, f"is not the one that entry {self.index} of the ledger vouches for")
        self.manifest = listed = parse_json(data, MANIFEST, b"\n")
        if not isinstance(listed, dict) or set(listed) != MEMBERS or listed["schema"] != "appliance.manifest/1":
            raise Bad(MANIFEST, "is not a manifest of version 1")
        lists = [listed[name] for name in ("files", "entries", "earlier")]
        numbers = [n for numbers in lists[1:] if isinstance(numbers, list) for n in numbers]
        if not all(isinstance(x, list) for x in lists) or any(
            type(n) is not int or not 0 <= n < 2**53 for n in numbers
        ):
            raise Bad(MANIFEST, "has lists that cannot be")
        named = (EVENTS.get(str(listed["kind"])), listed["id"], listed["run_id"], listed["origin"])
        if named != (event["type"], facts.get(f"{listed['kind']}_id"), facts.get("run_id"), self.head.origin):
            raise Bad(MANIFEST, f"is about something else than entry {self.index} of the ledger")
        self.leaves[self.index] = event
        self.about = f"{listed['kind']} {show(listed['id'])} of run {show(listed['run_id'])}"
        self.checked.append(f"manifest: the one that entry {self.index} vouches for, written {show(event['time'])}")

    def check_payload(self) -> None:
        """Every file of the payload, and none besides."""
        files: dict[str, Any] = {}
        for row in self.manifest["files"]:
            path = row["path"] if isinstance(row, dict) and set(row) == {"path", "bytes", "sha256"} else ""
            parts = str(path).split("/")
            odd = any(not SAFE.fullmatch(part) or RESERVED.fullmatch(part) for part in parts)
            if odd or parts[0].lower() in ("ledger", MANIFEST) or path.lower() in (name.lower() for name in files):
                raise Bad(MANIFEST, f"lists a file name that cannot be: {show(path)}")
            files[path] = row
        self.files = files
        present = {name for name in self.sizes if not name.startswith("ledger/") and name != MANIFEST}
        for name in sorted(present - set(files)):
            self.wrong(name, "does not belong here: the manifest does not list it")
        for name, row in files.items():
            if name not in present:
                self.wrong(name, "is missing")
            elif self.sizes[name] != row["bytes"] or self.digest(name) != row["sha256"]:
                self.wrong(name, "was altered: it is not the file that the manifest lists")
        self.checked.append(f"payload: {len(files)} files of the listed size and SHA-256, and no other file")

    def digest(self, name: str) -> str:
        """SHA-256 of a file."""
        digest = hashlib.sha256()
        with open(os.path.join(self.root, name), "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return digest.hexdigest()

    def check_ledger(self) -> None:
        """Every entry and earlier tree head that the manifest lists, and none besides."""
        entries, earlier = self.manifest["entries"], self.manifest["earlier"]
        names = {KEYS, HEAD, *(f"ledger/consistency/{size}.txt" for size in earlier)}
        names |= {f"ledger/{i:08d}.{end}" for i in (*entries, self.index) for end in ("leaf", "proof")}
        for name in sorted(names ^ {name for name in self.sizes if name.startswith("ledger/")}):
            self.wrong(name, "is missing" if name in names else "does not belong here: the manifest does not list it")
        for index in entries:
            self.attempt(lambda i: self.leaves.update({i: self.open_leaf(i)}), index)
        for size in earlier:
            self.attempt(self.open_earlier, size)
        self.checked.append(
            f"ledger: {len(self.leaves)} entries under this tree head, which continues {len(earlier)} others"
        )

    def attempt(self, check: Any, argument: int) -> None:
        """Do one check of several, so that all altered files are named."""
        try:
            check(argument)
        except Bad as bad:
            self.wrong(bad.where, bad.why)

    def open_earlier(self, size: int) -> None:
        """The root that the log had at an earlier size."""
        name = f"ledger/consistency/{size}.txt"
        self.heads[size] = check_consistency(utf8(self.read(name), name), size, self.head, name).hex()

    def check_facts(self) -> None:
        """What entries about the run say of each other, and the digest of the adapter."""
        mine: dict[str, list[Any]] = {}
        for leaf in self.leaves.values():
            if leaf["facts"].get("run_id", self.manifest["run_id"]) == self.manifest["run_id"]:
                mine.setdefault(leaf["type"], []).append(leaf)
            elif self.manifest["kind"] == "bundle":
                self.wrong(place(leaf), "is about another run")
        for i in range(0, len(RULES), 5):
            for left in mine.get(RULES[i], ()):
                for right in mine.get(RULES[i + 3], ()):
                    self.compare(left, RULES[i + 1], RULES[i + 2], right, RULES[i + 4])
        self.missing += [name for name in NEEDED[self.manifest["kind"]].split() if name not in {**mine, **self.files}]
        rows = [[name[8:], row["bytes"], row["sha256"]] for name, row in self.files.items() if name[:8] == "adapter/"]
        released, facts = hashlib.sha256(canonical(sorted(rows)).encode()).hexdigest(), self.leaves[self.index]["facts"]
        if (rows or "released_sha256" in facts) and released != facts.get("released_sha256"):
            self.wrong("adapter", "is not the adapter that the ledger says was released")
        for leaf in mine.get("audit.selftest", ()):
            if leaf["facts"].get("passed") is not True:
                self.wrong(place(leaf), "the self-test before the run did not pass")
        created = self.leaves.get(0, {"type": "", "facts": {}})
        keys = [key.get("vkey") for key in created["facts"].get("keys", ()) if isinstance(key, dict)]
        if created["type"] == "ledger.created" and keys != self.read(KEYS).decode().split():
            self.wrong(KEYS, "these are not the keys that the first entry of the log names")
        self.checked.append(
            f"facts: {len(RULES) // 5} rules between entries of the run (same adapter, within the budget, ...)"
        )

    def compare(self, left: Any, a: str, rule: str, right: Any, b: str) -> None:
        """Check one rule between two entries; entries about two evaluations have nothing to do with each other."""
        if left["facts"].get("evaluation_id") != right["facts"].get("evaluation_id"):
            return
        x, y = (pointed(e if p[0] == "^" else e["facts"], p.lstrip("^"), place(e)) for e, p in ((left, a), (right, b)))
        if rule == "=" and canonical(x) != canonical(y):
            self.wrong(place(right), f"{b} is not {a} of entry {left['index']}")
        if rule == "<=" and number(x, place(left)) > number(y, place(right)) + Decimal("0.0001") * ("charged" in a):
            self.wrong(place(left), f"{a} is above {b} of entry {right['index']}")

    def check_documents(self) -> None:
        """Every value in the documents that says where in the ledger it stands."""
        count = 0
        for name in ("report.json", "privacy_statement.json"):
            if name in self.files:
                document = parse_json(self.read(name, MAX_DOCUMENT), name, b"\n")
                count += self.check_values(document, name)
        if "report.html" in self.files:
            page = Page(self)
            page.feed(utf8(self.read("report.html", MAX_DOCUMENT), "report.html"))
            page.close()
            count += page.count
        self.check_certificate()
        self.checked.append(f"documents: {count} values are those of the entries that they point to")

    def check_values(self, value: Any, name: str) -> int:
        """Values in a JSON document: objects with `entry`, `fact` or `field`, and `value`; and tree heads."""
        if isinstance(value, list):
            return sum(self.check_values(item, name) for item in value)
        if not isinstance(value, dict):
            return 0
        if "tree_size" in value and self.heads.get(value["tree_size"]) != value.get("root"):
            raise Bad(name, "names a tree head that this log did not have")
        if value.get("run_id", self.manifest["run_id"]) != self.manifest["run_id"]:
            raise Bad(name, "is about another run")
        placed = "value" in value and ("fact" in value or "field" in value)
        if placed and canonical(self.stated(value, name)) != canonical(value["value"]):
            raise Bad(
                name, f"{show(value.get('fact') or value.get('field'))} is not what entry {value.get('entry')} states"
            )
        return placed + sum(self.check_values(item, name) for item in value.values() if not placed)

    def stated(self, at: dict[str, Any], name: str) -> Any:
        """What the ledger states at a place: a fact of an entry, a field of its leaf, or a field of a tree head."""
        if at.get("entry") is None:
            fields = {"origin": [self.head.origin], "size": list(self.heads), "root": list(self.heads.values())}
            known = fields.get(str(at.get("field")).lstrip("/"), [])
            return next((value for value in known if str(value) == str(at["value"])), None)
        leaf = self.leaves.get(at["entry"]) if type(at["entry"]) is int else None
        if leaf is None:
            raise Bad(name, f"points to entry {show(at['entry'])}, which is not here")
        return pointed(leaf["facts"] if "fact" in at else leaf, at.get("fact", at.get("field")), name)

    def check_certificate(self) -> None:
        """The certificate of the watermark: the one whose digest stands in the ledger, and no stronger than its score."""
        name, document = "watermark_certificate.json", {}
        entry = next((leaf for leaf in self.leaves.values() if leaf["type"] == "watermark.embedded"), None)
        if name in self.files:
            document = parse_json(self.read(name), name, b"\n")
            if entry is None or entry["facts"].get("certificate_sha256") != self.files[name]["sha256"]:
                raise Bad(name, "is not the certificate that the ledger records")
        for pair in CERTIFICATE:
            own, fact = (pair + "=" + pair).split("=")[:2]
            if own in document and canonical(document[own]) != canonical(entry["facts"].get(fact)):
                raise Bad(name, f"{own} is not {fact} of entry {entry['index']}")
        bound = re.fullmatch(r"2\^-([0-9]{1,4})", str(document.get("p_bound")))
        if bound and int(bound[1]) > float(number(document.get("statistic"), name)) ** 2 / 2 / math.log(2):
            raise Bad(name, "claims more than its score shows")

    def check_memory(self) -> None:
        """The tree head against the newest one that was seen before."""
        known = self.memory.get(self.head.origin)
        if known is None:
            return
        size, root = known["size"], known["root"]
        if known["keys"] != self.keys_sha256:
            self.wrong(KEYS, "these are not the keys that signed this log before")
        elif size in self.heads and self.heads[size] != root:
            self.wrong(HEAD, f"FORK: two histories of one log were signed:\n{known['note']}\nand\n{self.head.note}")
        elif size > self.head.size:
            self.stale = f"older than a tree head of {size} entries that was seen before"
        elif size not in self.heads:
            self.stale = f"carries no proof that it continues the tree head of {size} entries that was seen before"
        self.checked.append(f"memory: a tree head of {size} entries was seen before")


class Page(HTMLParser):
    """report.html: every `data` element shows what the ledger states at its place; nothing runs or loads."""

    def __init__(self, examination: Examination) -> None:
        super().__init__()
        self.examination, self.count = examination, 0
        self.open: dict[str, Any] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name: value or "" for name, value in attrs}
        active = any(n.startswith("on") or (n == "src" and not names[n].startswith("data:image/")) for n in names)
        if self.open is not None or active or tag in ("script", "iframe", "object", "embed", "base", "link", "form"):
            raise Bad("report.html", f"has an element that does not belong in it: {show(tag)}")
        if tag == "data":
            at = {key: names["data-" + key] for key in ("fact", "field") if "data-" + key in names}
            entry = whole(names["data-entry"], "report.html") if "data-entry" in names else None
            self.open = {**at, "entry": entry, "value": names.get("value"), "text": ""}
            if len(attrs) != len(names) or len(at) != 1 or at.get("value"):
                raise Bad("report.html", "a figure does not say where it stands")

    def handle_data(self, data: str) -> None:
        if self.open is not None:
            self.open["text"] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "data" and self.open is not None:
            value = self.examination.stated(self.open, "report.html")
            text = value if isinstance(value, str) else canonical(value)
            if not text == self.open["value"] == self.open["text"]:
                at = self.open.get("fact") or self.open.get("field")
                raise Bad("report.html", f"{show(at)} is not what entry {self.open['entry']} states")
            self.open, self.count = None, self.count + 1


def place(leaf: Any) -> str:
    return f"ledger/{leaf['index']:08d}.leaf"


def number(value: Any, where: str) -> Decimal:
    """A number as the ledger writes it: whole, or a decimal text."""
    if type(value) is bool or not re.fullmatch(r"-?[0-9]{1,30}(\.[0-9]{1,60})?", str(value), re.ASCII):
        raise Bad(where, f"{show(value)} is not a number")
    return Decimal(str(value))


# --- the command ----------------------------------------------------------------------------------------------------


def read_pin(words: Sequence[str], directory: str) -> list[str]:
    """The trusted keys in a file, or the one fingerprint given in words. Empty where there are none."""
    text = "".join("".join(words).split()).lower()
    if not words or re.fullmatch("[0-9a-f]{64}", text):
        return [text] if words else []
    if os.path.realpath(words[0]).startswith(os.path.join(os.path.realpath(directory), "")):
        raise CannotRun("the trusted key lies in the directory that it should vouch for: get it on another way")
    with open(words[0], "rb") as file:
        lines = utf8(file.read(MAX_TEXT), words[0]).split()
    if len(words) > 1 or not lines:
        raise CannotRun("--trusted-key wants a file of verifier keys or a fingerprint of 64 hex digits")
    return [Key(line, words[0]).text for line in lines]


def read_memory(path: str, directory: str) -> dict[str, Any]:
    """The remembered tree heads by origin."""
    if os.path.realpath(path).startswith(os.path.join(os.path.realpath(directory), "")):
        raise CannotRun("the state file must not lie in the directory that is checked")
    if not path or not os.path.exists(path):
        return {}
    with open(path, "rb") as file:
        logs = parse_json(file.read(MAX_DOCUMENT), path, b"\n")
    for origin, known in logs.items() if isinstance(logs, dict) else [("", {})]:
        head = Head(known["note"], path) if set(known) == {"size", "root", "note", "keys"} else None
        if head is None or (head.origin, head.size, head.root.hex()) != (origin, known["size"], known["root"]):
            raise Bad(path, "is not a state file of this verifier")
    return dict(logs)


def remember(path: str, memory: dict[str, Any], seen: Examination) -> None:
    """Replace the state file, whole or not at all."""
    known = {"size": seen.head.size, "root": seen.head.root.hex(), "note": seen.head.note, "keys": seen.keys_sha256}
    with open(path + ".new", "wb") as file:
        file.write(canonical({**memory, seen.head.origin: known}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


def verify(directory: str, pin: Sequence[str], state: str = "") -> Examination:
    """Check a directory; after a good verdict the tree head is remembered. Raises `CannotRun` and `OSError`."""
    try:
        trusted, memory = read_pin(pin, directory), read_memory(state, directory)
    except (Bad, AttributeError, TypeError) as bad:
        raise CannotRun(f"damaged: {bad}") from None
    seen = Examination(directory, trusted, memory).run()
    if state and seen.code == OK:
        remember(state, memory, seen)
    return seen


def report(seen: Examination) -> Iterator[str]:
    """The verdict in plain words."""
    yield from (f"checked  {line}" for line in seen.checked)
    yield from (f"PROBLEM  {where}: {why}" for where, why in seen.problems)
    yield from (f"missing  {name}" for name in seen.missing)
    if not seen.pin:
        yield "unpinned the directory carries its own key, so all of this proves nothing; give --trusted-key"
    if seen.stale:
        yield f"stale    {seen.stale}"
    yield from (f"not shown {line}" for line in NOT_SHOWN)
    yield f"verdict  {VERDICTS[seen.code]}: {seen.about or 'unknown'}; keys {seen.keys_sha256 or 'unknown'}"


def document(seen: Examination) -> dict[str, Any]:
    """The verdict as one JSON object."""
    head = {"origin": seen.head.origin, "size": seen.head.size, "root": seen.head.root.hex()} if seen.head else None
    problems = [{"file": where, "problem": why} for where, why in seen.problems]
    return {
        "schema": "appliance.verification/1", "verdict": VERDICTS[seen.code], "exit": seen.code, "about": seen.about,
        "pinned": bool(seen.pin), "keys_sha256": seen.keys_sha256, "tree_head": head, "checked": seen.checked,
        "problems": problems, "missing": seen.missing, "stale": seen.stale, "not_shown": NOT_SHOWN,
    }  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Verify a sealed directory (bundle or report) offline.")
    parser.add_argument("directory", nargs="?", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--trusted-key", nargs="+", default=[], metavar="KEY", help="key file or fingerprint")
    parser.add_argument("--state", default="", metavar="FILE", help="remembers tree heads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    try:
        seen = verify(chosen.directory, chosen.trusted_key, chosen.state)
    except (CannotRun, OSError, ValueError) as error:
        print(f"verify: error: {show(error)}", file=sys.stderr)
        return USAGE
    except Exception as bug:  # noqa: BLE001 (no traceback on any input)
        print(f"verify: a bug in this verifier: {type(bug).__name__}", file=sys.stderr)
        return BUG
    print(json.dumps(document(seen), indent=1) if chosen.json else ascii_lines(report(seen)))
    return seen.code


def ascii_lines(lines: Iterator[str]) -> str:
    """Text that every terminal can show."""
    return "\n".join(lines).encode("ascii", "backslashreplace").decode()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
