#!/usr/bin/env python3
# ruff: noqa: B905, SIM905 (made for Python 3.9, where zip takes no strict=; lists of words are split)
"""Verify a sealed directory (a bundle or a report) offline. One file, standard library only, Python 3.9 or newer.

    python3 -I verify.py [DIR] --trusted-key KEY [--state FILE] [--json]

DIR is the directory to check; by default the one this file lies in. KEY is what you got from the appliance on another
way than the directory: a file with its verifier keys, or the fingerprint that its `init` printed. FILE remembers the
newest tree head you saw, so that an older directory (a rollback) or another history (a fork) is noticed.

Exit: 0 everything holds; 8 altered, swapped, added or removed; 14 no trusted key, or a part is missing; 15 older than
what FILE remembers, or not shown to continue it; 2 called wrongly, or it cannot be read; 1 a bug in this file.
Whoever can alter the directory can alter the copy of this file in it. Run a copy that you got elsewhere.

Read it from the top: what is demanded, the command, the checks (methods of `Examination`, in the order of `run`), and
what they rest on: tree heads and proofs, text and JSON, two kinds of signature.
"""

import sys  # built in, so no file can stand in for it; __future__ could, and is not used

if __name__ == "__main__":  # from here on only modules of this Python are found, not those beside this file
    beside = [] if sys.flags.isolated else sys.path[:1]
    roots = [home.rstrip("/\\") + end for home in (sys.base_prefix, sys.base_exec_prefix) for end in "/\\"]
    sys.path[:] = [path for path in sys.path if path.startswith(tuple(roots)) and path not in beside]

import argparse
import base64
import contextlib
import functools
import hashlib
import html
import json
import math
import operator
import os
import re
import stat
from collections.abc import Iterator, Sequence
from decimal import ROUND_UP, Context, Decimal
from typing import Any, NamedTuple

# --- what is demanded ------------------------------------------------------------------------------------------------

OK, BUG, USAGE, TAMPERED, INCOMPLETE, STALE = 0, 1, 2, 8, 14, 15
VERDICTS = {OK: "intact", TAMPERED: "tampered", INCOMPLETE: "incomplete", STALE: "stale"}
NOT_SHOWN = (
    "that the appliance ran what it says it ran: the entries are its own word, signed for good",
    "privacy curves: epsilon for these steps, noise and sampling rate; recompute with the appliance",
    "that the documents choose well among the sentences that they may say; and what their drawings show",
    "that this is the newest directory of its log, beyond what --state remembers",
)
OLD = "what the documents say: they are of version 1, where only values that point to an entry are compared, not words"

MAX_FILES, MAX_DEPTH, MAX_TEXT, MAX_DOCUMENT, MAX_LEAF = 20_000, 9, 100_000, 16_000_000, 65_535  # the last three bytes
REMEMBERED = 5000  # earlier tree heads of one log that the state file keeps

MANIFEST, KEYS, HEAD = "manifest.json", "ledger/keys.txt", "ledger/head.txt"
MANIFEST_MEMBERS = set("schema kind id run_id origin created files entries earlier".split())
LEAF_MEMBERS = set("v origin index time boot_id actor actor_auth type event_id subject policy_sha256".split())
LEAF_MEMBERS |= {"software", "facts", "rows", "body"}
EVENTS = {"bundle": "bundle.exported", "report": "report.built"}  # the entry that hands a directory out
NEEDED = {"report": "ledger.created run.reserved report.html report.json verify.py".split()}  # entries and files
NEEDED["bundle"] = NEEDED["report"] + "policy.activated model.imported watermark.committed watermark.embedded".split()
NEEDED["bundle"] += "run.started run.settled audit.selftest README.md privacy_statement.json".split()
NEEDED["bundle"] += ["watermark_certificate.json", "adapter/adapter_config.json"]
PAGE, CARD, CERTIFICATE, WORDING = "report.html", "README.md", "watermark_certificate.json", "wording.txt"
JSON = {"report.json": "appliance.report/", "privacy_statement.json": "appliance.privacy/"}  # schemas, then a version
WORDINGS = {  # SHA-256 of the lists that are known
    "a29b2e200a53560e3ad739ddacdd8e0164bd9e16d4d0d598acb426586bd54818",
    "eca400d404920b93195549f8e2b78b1e5792e27c8bedd2796d7e1b4d969d5e70",
}
FILES = {PAGE, CARD, CERTIFICATE, WORDING, "verify.py", *JSON}  # what the payload may hold besides the adapter
ADAPTER = re.compile(r"adapter/(?!(?i:con|prn|aux|nul|com\d|lpt\d)\.)\w[\w.-]{0,99}\.(json|safetensors)", re.ASCII)
ROTATION = b"appliance/ledger/rotation/v1\n"  # what the statement of a change of keys begins with

BASE64 = re.compile("([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)")
ACTIVE = re.compile(
    r"(?i)<(script|iframe|object|embed|base|link|form|animate|set|foreignobject)|[\s/\"']on[a-z]+\s*=|javascript:|"
    r"srcset|@import|expression\(|url\((?!#)|http-equiv=\"?refresh|\ssrc=(?!\"data:image/)"
)
FIGURE = re.compile(
    r'<data class="(figure|leaf|head|key)"(?: data-look="digest")?(?: data-entry="([0-9]+)")? data-(fact|field)='
    r'"([^"<>]*)"(?: title="(?:tree head|entry \2, \3 \4)(?:, exactly ([^"<>]*))?")? value="([^"<>]*)">([^"<>]*)</data>'
)
FOUR, DECIMAL = Context(4, ROUND_UP), re.compile(r"-?[0-9]+\.[0-9]+")  # how the page may shorten a number
ROW = re.compile("(/(?:checks|comparisons|epsilon_curve|exports|open|phases|score_predicted|libraries)/)([^/]+)")
SOURCE = re.compile("\1([0-9]+)[.]([0-9a-f]*)\1")  # entry and row of a place: not a part of what is said
SHAPE = re.compile(  # a tag of a drawing, with attributes that load nothing
    r"<svg role=\"img\" aria-labelledby=\"[\w -]+\" viewBox=\"[\d. ]+\">|</svg>|"
    r"</?(?:g|path|use|defs|clipPath|rect|pattern|title|desc)(?:\s(?:xlink:href=\"#|style=\"(?:fill|stroke)|"
    r"(?:id|d|transform|x|y|width|height|fill|clip-path|patternUnits)=\")"
    r"(?:[\w\s.,:;#)-]|url\(#|translate\(|scale\(|rotate\()*\")*\s*/?>"
)


class Rule(NamedTuple):
    """What two entries about the run, or about one evaluation of it, must agree on."""

    left: str  # type of an entry
    a: str  # pointer into its facts, or with ^ into the whole leaf
    relation: str  # "=" or "<="
    right: str
    b: str


RULES = (
    Rule("run.reserved", "/epsilon_before", "<=", "run.reserved", "/epsilon_after"),
    Rule("run.reserved", "/epsilon_after", "<=", "run.reserved", "/cap"),
    Rule("run.reserved", "/plan/epsilon", "<=", "run.reserved", "/cap"),
    Rule("run.reserved", "/dataset_id", "=", "run.settled", "/dataset_id"),
    Rule("run.reserved", "/plan/delta", "=", "run.settled", "/delta"),
    Rule("run.reserved", "/plan/sample_rate", "=", "run.settled", "/sample_rate"),
    Rule("run.reserved", "^/policy_sha256", "=", "run.settled", "^/policy_sha256"),
    Rule("run.reserved", "/plan/noise_multiplier", "=", "run.settled", "/noise_multiplier"),
    Rule("run.reserved", "/model_id", "=", "model.imported", "/model_id"),
    Rule("run.reserved", "/dataset_id", "=", "run.resumed", "/dataset_id"),
    Rule("run.reserved", "/dataset_id", "=", "run.started", "/dataset_id"),
    Rule("run.reserved", "^/index", "<=", "run.started", "^/index"),
    Rule("run.reserved", "^/policy_sha256", "=", "policy.activated", "/sha256"),
    Rule("run.reserved", "^/index", "<=", "audit.selftest", "^/index"),
    Rule("run.reserved", "^/index", "<=", "watermark.committed", "^/index"),
    Rule("watermark.committed", "^/index", "<=", "run.started", "^/index"),
    Rule("run.started", "^/index", "<=", "run.settled", "^/index"),
    Rule("run.settled", "/epsilon_pld", "<=", "run.settled", "/epsilon_charged"),
    Rule("run.settled", "/epsilon_prv", "<=", "run.settled", "/epsilon_charged"),
    Rule("run.settled", "/sampler_delta", "<=", "run.settled", "/delta"),
    Rule("run.settled", "/steps", "<=", "run.settled", "/attempts"),
    Rule("run.settled", "/attempts", "<=", "run.reserved", "/plan/attempts"),
    Rule("run.settled", "/epsilon_charged", "<=", "run.reserved", "/plan/epsilon"),
    Rule("run.settled", "/adapter_sha256", "=", "watermark.embedded", "/adapter_sha256"),
    Rule("run.settled", "^/index", "<=", "watermark.embedded", "^/index"),
    Rule("model.imported", "/sha256", "=", "watermark.embedded", "/model_sha256"),
    Rule("model.imported", "/sha256", "=", "watermark.committed", "/model_sha256"),
    Rule("watermark.embedded", "/released_sha256", "=", "bundle.exported", "/released_sha256"),
    Rule("watermark.embedded", "^/index", "<=", "bundle.exported", "^/index"),
    Rule("watermark.committed", "/algorithm_sha256", "=", "watermark.embedded", "/algorithm_sha256"),
    Rule("watermark.committed", "/commitment", "=", "watermark.embedded", "/commitment"),
    Rule("watermark.committed", "/key_id", "=", "watermark.embedded", "/key_id"),
    Rule("evaluation.reserved", "/dataset_id", "=", "evaluation.settled", "/dataset_id"),
    Rule("evaluation.reserved", "/delta", "=", "evaluation.settled", "/delta"),
    Rule("evaluation.reserved", "^/index", "<=", "evaluation.settled", "^/index"),
    Rule("evaluation.settled", "/epsilon_charged", "<=", "evaluation.reserved", "/epsilon"),
    Rule("evaluation.settled", "^/index", "=", "evaluation.settled", "^/index"),
    Rule("evaluation.reserved", "/epsilon_before", "<=", "evaluation.reserved", "/epsilon_after"),
    Rule("evaluation.reserved", "/epsilon_after", "<=", "evaluation.reserved", "/cap"),
)
ROUNDING = Decimal("0.0001")  # by so much a charge, which is rounded up, may be above what it is held against

# Members of the watermark's certificate, and the fact of watermark.embedded that each must be.
CERTIFIED = {
    name: name for name in "run_id key_id commitment p_bound model_sha256 algorithm_sha256 escrow_sha256".split()
}
CERTIFIED.update(suspect_sha256="released_sha256", statistic="score", predicted="score_predicted", base="model_sha256")
CERTIFIED.update(algorithm="algorithm_sha256", escrow="escrow_sha256", suspect="released_sha256")


class Bad(Exception):
    """A file (first argument) is not what it must be: exit 8."""


class CannotRun(Exception):
    """It was called wrongly, or something cannot be read: exit 2."""


def refuse_if(wrong: Any, where: str, why: str) -> None:
    """Raise `Bad` if something is wrong."""
    if wrong:
        raise Bad(where, why)


# --- the command -----------------------------------------------------------------------------------------------------
def main(arguments: Sequence[str]) -> int:
    """Check a directory, print what was found, and return the exit status."""
    parser = argparse.ArgumentParser(description="Verify a sealed directory (bundle or report) offline.")
    parser.add_argument("directory", nargs="?", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--trusted-key", nargs="+", default=[], metavar="KEY", help="key file or fingerprint")
    parser.add_argument("--state", default="", metavar="FILE", help="remembers tree heads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = parser.parse_args(arguments)
    try:
        seen = verify(chosen.directory, chosen.trusted_key, chosen.state)
        text = json.dumps(document(seen), indent=1) if chosen.json else "\n".join(report(seen))
    except Exception as error:  # noqa: BLE001 (no traceback on any input)
        known = isinstance(error, (CannotRun, OSError))
        print("verify:", show(error) if known else f"a bug in this verifier: {type(error).__name__}", file=sys.stderr)
        return USAGE if known else BUG
    print(text.encode("ascii", "backslashreplace").decode())
    return seen.code


def verify(directory: str, pin: Sequence[str], state: str = "") -> "Examination":
    """Check a directory; after a good verdict the tree head is remembered. Raises `CannotRun` and `OSError`."""
    for path in (*filter(os.path.isfile, pin[:1]), state):
        if path and os.path.realpath(path).startswith(os.path.join(os.path.realpath(directory), "")):
            raise CannotRun(f"{path} lies in the directory that is checked: get it on another way")
    try:
        trusted, memory = read_pin(pin), read_memory(state)
    except (AttributeError, Bad, KeyError, TypeError) as bad:
        raise CannotRun(f"the key file or the state file is damaged: {bad}") from None
    seen = Examination(directory, trusted, memory).run()
    if state and seen.code == OK:
        remember(state, memory, seen)
    return seen


def report(seen: "Examination") -> Iterator[str]:
    """Write the lines that are printed."""
    yield from (f"checked   {line}" for line in seen.checked)
    yield from (f"PROBLEM   {where}: {why}" for where, why in seen.problems)
    yield from (f"missing   {name}" for name in seen.missing)
    if not seen.pin:
        yield "unpinned  the directory carries its own key, so all of this proves nothing; give --trusted-key"
    if seen.stale:
        yield f"stale     {seen.stale}"
    yield from (f"not shown {line}" for line in seen.not_shown)
    yield f"verdict   {VERDICTS[seen.code]}: {seen.about or 'unknown'}; keys {seen.keys_sha256 or 'unknown'}"


def document(seen: "Examination") -> dict[str, Any]:
    """Make the JSON object that is printed."""
    head = {"origin": seen.head.origin, "size": seen.head.size, "root": seen.head.root.hex()} if seen.head else None
    return {
        "schema": "appliance.verification/1",
        "verdict": VERDICTS[seen.code],
        "exit": seen.code,
        "about": seen.about,
        "pinned": bool(seen.pin),
        "keys_sha256": seen.keys_sha256,
        "tree_head": head,
        "problems": [{"file": where, "problem": why} for where, why in seen.problems],
        "checked": seen.checked,
        "missing": seen.missing,
        "stale": seen.stale,
        "not_shown": seen.not_shown,
    }


def read_pin(words: Sequence[str]) -> list[str]:
    """Read the trusted keys in a file, or the one fingerprint given in words. Empty where there are none."""
    text = "".join("".join(words).split()).lower()
    if re.fullmatch("([0-9a-f]{64})?", text):
        return [text] if words else []
    if len(words) > 1:
        raise CannotRun("--trusted-key wants a file of verifier keys or a fingerprint of 64 hex digits")
    with open(words[0], "rb") as file:
        return [Key(line, words[0]).text for line in utf8(file.read(MAX_TEXT), words[0]).split()] or [""]


def read_memory(path: str) -> dict[str, Any]:
    """Read what the state file remembers, by origin of the log: `size`, `root`, `note`, `keys` and `roots`."""
    if not path or not os.path.exists(path):
        return {}
    with open(path, "rb") as file:
        logs = parse_json(file.read(MAX_DOCUMENT), path)
    for origin, known in logs.items():
        head = Head(str(known["note"]), path)
        said = {"size": head.size, "root": head.root.hex(), "note": head.note, "keys": known["keys"]}
        said["roots"] = {str(whole(at, path)): root[:64] for at, root in known.get("roots", {}).items()}
        refuse_if((origin, {"roots": {}, **known}) != (head.origin, said), path, "is not a state file of this verifier")
    return dict(logs)


def remember(path: str, memory: dict[str, Any], seen: "Examination") -> None:
    """Keep the newest tree head of the log, and the roots of those that were seen or proven before it."""
    roots = {**memory.get(seen.head.origin, {}).get("roots", {}), **{str(at): root for at, root in seen.heads.items()}}
    known = {
        "size": seen.head.size,
        "root": seen.head.root.hex(),
        "note": seen.head.note,
        "keys": seen.keys_sha256,
        "roots": {at: roots[at] for at in sorted(roots, key=int)[-REMEMBERED:]},
    }
    with open(path + ".new", "wb") as file:
        file.write(canonical({**memory, seen.head.origin: known}).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)


# --- the checks ------------------------------------------------------------------------------------------------------
class Examination:
    """The checks of one directory, each relying on those before it, and what they found."""

    def __init__(self, root: str, pin: Sequence[str], memory: dict[str, Any]) -> None:
        self.root, self.pin, self.memory = root, pin, memory
        self.sizes: dict[str, int] = {}  # every file that is there
        self.files: dict[str, Any] = {}  # every file of the payload, as the manifest lists it
        self.manifest: Any = None
        self.index = 0  # of the entry that hands the directory out
        self.leaves: dict[int, Any] = {}  # the entries that are here and proven
        self.head: Any = None
        self.heads: dict[int, str] = {}  # root of each tree head that is signed or proven, by size
        self.named: dict[int, str] = {}  # those of them that documents name
        self.sets: dict[int, list[str]] = {}  # the log's keys, by the first size that they sign
        self.page_head, self.wording = "", set[str]()  # what documents of version 2 may say
        self.keys_sha256, self.about, self.stale, self.not_shown = "", "", "", [*NOT_SHOWN]
        self.problems: list[tuple[str, str]] = []
        self.missing: list[str] = []
        self.checked: list[str] = []

    @property
    def code(self) -> int:
        """Give the exit status."""
        incomplete = self.missing or not self.pin
        return TAMPERED if self.problems else INCOMPLETE if incomplete else STALE if self.stale else OK

    def run(self) -> "Examination":
        """Make every check, until one finds a problem. Raises `OSError`."""
        steps = (
            *(self.check_keys, self.check_manifest, self.check_payload, self.check_ledger, self.check_chain),
            *(self.check_facts, self.check_adapter, self.check_documents, self.check_memory),
        )
        try:
            self.list_files()
            for step in steps:
                if not self.problems:
                    step()
        except Bad as bad:
            self.wrong(*bad.args)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as odd:
            self.wrong(step.__name__, f"met something that nobody writes: {type(odd).__name__}")
        return self

    def list_files(self) -> None:
        """List every file below the directory with its size; links are not followed."""
        todo = [""]
        while todo:
            prefix = todo.pop()
            names = [prefix + name for name in sorted(os.listdir(os.path.join(self.root, prefix)))]
            refuse_if(prefix and not names, show(prefix), "an empty directory does not belong here")
            for name in names:
                info = os.lstat(os.path.join(self.root, name))
                link = stat.S_ISLNK(info.st_mode) or getattr(info, "st_file_attributes", 0) & 0x400  # Windows junctions
                if not link and stat.S_ISDIR(info.st_mode) and name.count("/") < MAX_DEPTH:
                    todo.append(name + "/")
                elif link or not stat.S_ISREG(info.st_mode) or len(self.sizes) >= MAX_FILES:
                    raise Bad(show(name), "is a link, a device, nested too deeply or one file too many")
                else:
                    self.sizes[name] = info.st_size

    def wrong(self, where: str, why: str) -> None:
        """Note a problem and go on."""
        self.problems.append((show(where), why))

    def read(self, name: str, limit: int = MAX_TEXT) -> bytes:
        """Read the bytes of a file, which must be there and not larger than this."""
        there = name in self.sizes
        refuse_if(self.sizes.get(name, limit + 1) > limit, show(name), "is too large" if there else "is missing")
        with open(os.path.join(self.root, name), "rb") as file:
            return file.read(limit + 1)

    def check_keys(self) -> None:
        """Check the keys, pinned or not, and the tree head that they signed."""
        lines = utf8(self.read(KEYS), KEYS).split("\n")
        keys = [Key(line, KEYS) for line in lines[:-1]]
        distinct = len({key.text for key in keys})
        refuse_if(lines[-1] or not 1 <= distinct == len(keys) <= 16, KEYS, "is not a list of verifier keys")
        self.keys_sha256, self.sets = fingerprint(lines[:-1]), {0: lines[:-1]}
        self.head = open_head(utf8(self.read(HEAD), HEAD), keys, HEAD)
        self.heads[self.head.size] = self.head.root.hex()
        by = " and ".join({1: "Ed25519", 6: "ML-DSA-44"}[key.type] for key in keys)
        self.checked.append(f"tree head of {show(self.head.origin)}, {self.head.size} entries: signed with {by}")

    def check_manifest(self) -> None:
        """Check the entry that hands the directory out, the newest one here, and the manifest that it vouches for."""
        found = (re.fullmatch(r"ledger/([0-9]{8,18})\.leaf", name, re.ASCII) for name in self.sizes)
        self.index = max((int(match[1]) for match in found if match), default=0)
        self.open_leaf(self.index)
        event, data = self.leaves[self.index], self.read(MANIFEST, MAX_DOCUMENT)
        wrong = hashlib.sha256(data).hexdigest() != event["facts"].get("manifest_sha256")
        refuse_if(wrong, MANIFEST, f"is not the one that entry {self.index} of the ledger vouches for")
        self.manifest = parse_json(data, MANIFEST)
        good = set(self.manifest) == MANIFEST_MEMBERS and self.manifest["schema"] == "appliance.manifest/1"
        refuse_if(not good, MANIFEST, "is not a manifest of version 1")
        kind, facts = str(self.manifest["kind"]), event["facts"]
        named = (EVENTS.get(kind), *(self.manifest[name] for name in ("id", "run_id", "origin")))
        own = (event["type"], facts.get(f"{kind}_id"), facts.get("run_id"), self.head.origin)
        refuse_if(named != own, MANIFEST, f"is about something else than entry {self.index} of the ledger")
        self.about = f"{kind} {show(self.manifest['id'])} of run {show(self.manifest['run_id'])}"
        self.checked.append(f"manifest: the one that entry {self.index} vouches for, written {show(event['time'])}")

    def check_payload(self) -> None:
        """Check that the manifest lists what may be here, and that all of it is here, byte for byte, and no more."""
        for row in self.manifest["files"]:
            path = str(row["path"]) if isinstance(row, dict) and set(row) == {"path", "bytes", "sha256"} else ""
            good = path in FILES or ADAPTER.fullmatch(path)
            refuse_if(not good, MANIFEST, f"lists a file that does not belong in such a directory: {show(path)}")
            self.files[path] = row
        names = {name.lower() for name in self.files}
        refuse_if(len(names) != len(self.manifest["files"]), MANIFEST, "lists a file twice")
        present = {name for name in self.sizes if not name.startswith("ledger/") and name != MANIFEST}
        for name in sorted({*present, *self.files}):
            row = self.files.get(name, {})
            if not row or name not in present:
                self.wrong(name, "is missing" if row else "does not belong here: the manifest does not list it")
            elif self.sizes[name] != row["bytes"] or self.digest(name) != row["sha256"]:
                self.wrong(name, "was altered: it is not the file that the manifest lists")
        self.checked.append(f"payload: size and SHA-256 of the {len(self.files)} listed files, and if there are others")

    def digest(self, name: str) -> str:
        """Take the SHA-256 of a file."""
        digest = hashlib.sha256()
        with open(os.path.join(self.root, name), "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return digest.hexdigest()

    def check_ledger(self) -> None:
        """Check every entry and earlier tree head that the manifest lists, and that there are none besides."""
        entries, earlier = self.manifest["entries"], self.manifest["earlier"]
        names = {KEYS, HEAD, *(f"ledger/consistency/{size}.txt" for size in earlier)}
        names |= {f"ledger/{i:08d}.{end}" for i in (*entries, self.index) for end in ("leaf", "proof")}
        for name in sorted(names ^ {name for name in self.sizes if name.startswith("ledger/")}):
            self.wrong(name, "is missing" if name in names else "does not belong here: the manifest does not list it")
        if not self.problems:
            for index in entries:
                self.open_leaf(index)
            for size in earlier:
                name = f"ledger/consistency/{size}.txt"
                self.heads[size] = check_consistency(utf8(self.read(name), name), size, self.head, name).hex()
        self.checked.append(f"ledger: {len(self.leaves)} entries under this head, {len(earlier)} earlier heads")

    def open_leaf(self, index: int) -> None:
        """Read an entry, which must stand at this place under the tree head."""
        stem = f"ledger/{index:08d}"
        data, proof = self.read(stem + ".leaf", MAX_LEAF), self.read(stem + ".proof", 2 * MAX_TEXT)
        check_inclusion(utf8(proof, stem + ".proof"), data, index, self.head, stem + ".proof")
        leaf = parse_json(data, stem + ".leaf", "")
        good = set(leaf) == LEAF_MEMBERS and isinstance(leaf["facts"], dict) and leaf["v"] == "appliance.ledger.leaf/1"
        good = good and (leaf["index"], leaf["origin"]) == (index, self.head.origin)
        refuse_if(not good, stem + ".leaf", "is not the leaf of this place in this log")
        self.leaves[index] = leaf

    def check_chain(self) -> None:
        """Follow the keys of the log from its first entry on: each set hands over in an entry that both sign."""
        if 0 in self.leaves:
            self.sets = {0: [key["vkey"] for key in self.leaves[0]["facts"]["keys"]]}
        for _, leaf in sorted(self.leaves.items()):
            if leaf["type"] == "ledger.rekeyed":
                self.check_rotation(leaf)
        sets = [*self.sets.values()]
        refuse_if(fingerprint(sets[-1]) != self.keys_sha256, KEYS, "these are not the keys that the log's entries name")
        pinned = [number for number, keys in enumerate(sets) if trusts(self.pin, keys)]
        refuse_if(self.pin and not pinned, KEYS, "not the keys you trust: somebody else signed this directory")
        summary = f"keys: sets 0 to {len(sets) - 1}, handed over one by one; you trust set {pinned}; pin the newest"
        self.checked += [summary] if len(sets) > 1 else []

    def check_rotation(self, leaf: Any) -> None:
        """Check one change of keys: the old keys and the new, two of each, signed the same statement."""
        where, facts, old = place(leaf), leaf["facts"], [*self.sets.values()][-1]
        new = [key["vkey"] for key in facts["keys"]]
        said = {"index": leaf["index"], "new": new, "old": old, "origin": self.head.origin, "root": facts["root"]}
        message, keys = ROTATION + canonical(said).encode(), [Key(text, where) for text in old + new]
        signed = [key.signed(message, decode64(text, where)) for key, text in zip(keys, facts["signatures"])]
        good = signed + facts["signatures"][4:] == [True] * 4 and {key.name for key in keys} == {self.head.origin}
        good = good and [key.type for key in keys] == [1, 6, 1, 6] and facts["old"] == old
        good = good and self.heads.get(leaf["index"]) == facts["root"]
        refuse_if(not good, where, "changes the keys of the log, but the old and the new ones did not both sign this")
        self.sets[leaf["index"] + 1] = new

    def check_facts(self) -> None:
        """Compare what entries about the run, and the first entry of the log, say of each other."""
        mine = self.sort_entries()
        for rule in RULES:
            for left in mine.get(rule.left, ()):
                for right in mine.get(rule.right, ()):
                    self.check_rule(rule, left, right)
        self.missing += [name for name in NEEDED[self.manifest["kind"]] if name not in {**mine, **self.files}]
        for types in (["run.reserved"], ["run.settled", "run.failed", "run.aborted"]):
            twice = [leaf for type_ in types for leaf in mine.get(type_, ())][1:]
            if twice:
                self.wrong(place(twice[0]), "the run was reserved, or ended, a second time")
        if any(leaf["facts"].get("passed") is not True for leaf in mine.get("audit.selftest", ())):
            self.wrong(place(mine["audit.selftest"][0]), "the self-test before the run did not pass")
        self.checked.append(f"facts: {len(RULES)} rules between entries of the run")

    def sort_entries(self) -> dict[str, list[Any]]:
        """Sort the entries that are about no other run by type. A bundle has none about another."""
        mine: dict[str, list[Any]] = {}
        for leaf in self.leaves.values():
            if leaf["facts"].get("run_id", self.manifest["run_id"]) == self.manifest["run_id"]:
                mine.setdefault(str(leaf["type"]), []).append(leaf)
            elif self.manifest["kind"] == "bundle":
                self.wrong(place(leaf), "is about another run")
        return mine

    def check_rule(self, rule: Rule, left: Any, right: Any) -> None:
        """Check one rule between two entries; entries about two evaluations have nothing to do with each other."""
        if left["facts"].get("evaluation_id") != right["facts"].get("evaluation_id"):
            return
        x, y = look_up(left, rule.a, place(left)), look_up(right, rule.b, place(right))
        if rule.relation == "=" and canonical(x) != canonical(y):
            self.wrong(place(right), f"{rule.b} is not {rule.a} of entry {left['index']}")
        slack = ROUNDING if "charged" in rule.a else 0
        if rule.relation == "<=" and decimal(x, place(left)) > decimal(y, place(right)) + slack:
            self.wrong(place(left), f"{rule.a} is above {rule.b} of entry {right['index']}")

    def check_adapter(self) -> None:
        """Check the adapter and the watermark's certificate: those whose digests the ledger records."""
        adapter = {name[8:]: row for name, row in self.files.items() if name[:8] == "adapter/"}
        rows = sorted([name, row["bytes"], row["sha256"]] for name, row in adapter.items())
        released = hashlib.sha256(canonical(rows).encode()).hexdigest() if rows else None
        if released != self.leaves[self.index]["facts"].get("released_sha256"):
            self.wrong("adapter", "is not the adapter that the ledger says was released")
        if CERTIFICATE in self.files:
            self.check_certificate()

    def check_certificate(self) -> None:
        """Check the certificate, its members, and that it claims no more than its score shows."""
        marks = [leaf for leaf in self.leaves.values() if leaf["type"] == "watermark.embedded"]
        certificate = parse_json(self.read(CERTIFICATE), CERTIFICATE)
        digests = [leaf["facts"].get("certificate_sha256") for leaf in marks]
        refuse_if(self.files[CERTIFICATE]["sha256"] not in digests, CERTIFICATE, "is not the one in the ledger")
        for own, fact in CERTIFIED.items():
            if own in certificate and canonical(certificate[own]) != canonical(marks[-1]["facts"].get(fact)):
                self.wrong(CERTIFICATE, f"{own} is not {fact} of entry {marks[-1]['index']}")
        bound = re.fullmatch(r"2\^-([0-9]{1,4})", str(certificate.get("p_bound")))
        if bound:  # without the key, P <= 2 exp(-score^2 / 2)
            score = float(decimal(certificate["statistic"], CERTIFICATE)) + 5e-4
            if int(bound[1]) > score**2 / 2 / math.log(2) - 1:
                self.wrong(CERTIFICATE, "claims more than its score shows")

    def check_documents(self) -> None:
        """Check every figure in the documents, and in those of version 2 every word."""
        documents = {name: parse_json(self.read(name, MAX_DOCUMENT), name) for name in JSON if name in self.files}
        version = "2" if WORDING in self.files else "1"
        for name, value in documents.items():
            refuse_if(value.get("schema") != JSON[name] + version, name, f"is not of version {version}")
        if version == "2":
            refuse_if(self.files[WORDING]["sha256"] not in WORDINGS, WORDING, "is not a list that this verifier knows")
            self.page_head, _, lines = utf8(self.read(WORDING, MAX_DOCUMENT), WORDING).partition("</head>\n")
            self.wording = {*lines.split("\n")}
        else:
            self.not_shown.append(OLD)
        count = sum(self.check_value(value, name) for name, value in documents.items())
        count += self.check_page() if PAGE in self.files else 0
        if self.wording and CARD in self.files:
            self.check_card(documents["privacy_statement.json"]["values"])
        if self.wording and CERTIFICATE in self.files:
            for key, item in parse_json(self.read(CERTIFICATE), CERTIFICATE).items():
                said = f"{key}: {canonical(item)}".replace(str(self.manifest["run_id"]), "{run_id}")
                refuse_if(key not in CERTIFIED and said not in self.wording, CERTIFICATE, f"says {show(said)}")
        self.checked.append(f"documents: {count} values are those of the entries that they point to")

    def check_value(self, value: Any, name: str) -> int:
        """Check a part of a JSON document: tree heads and figures are what the ledger states, and texts are listed."""
        if isinstance(value, list):
            return sum(self.check_value(item, name) for item in value)
        if not isinstance(value, dict):
            refuse_if(self.wording and value not in self.wording, name, f"says what is not listed: {show(value)}")
            return 0
        if "tree_size" in value or (self.wording and "root" in value):
            known = self.heads.get(whole(str(value.get("tree_size")), name))
            refuse_if(known != value.get("root"), name, "names a tree head that this log did not have")
            self.named[value["tree_size"]] = value["root"]
        about = {"run_id": self.manifest["run_id"], "origin": self.head.origin}
        refuse_if(any(value.get(key, own) != own for key, own in about.items()), name, "is about another run or log")
        if "value" in value and ("fact" in value or "field" in value):
            self.check_named(value, name)
            return 1
        rest = [[key, item] for key, item in value.items() if key not in ("tree_size", "root", *about)]
        return sum(self.check_value(item, name) for item in rest)

    def check_named(self, figure: dict[str, Any], name: str) -> None:
        """Check a figure: what its entry states, under a name for its place (in version 1 one like it)."""
        value, place = self.stated(figure, name)
        wrong = canonical(value) != canonical(figure["value"])
        refuse_if(wrong, name, f"{show(place)} is not what entry {figure.get('entry')} states")
        named, pointer = f"{figure.get('name')} = {SOURCE.sub('', place)}", str(figure.get("fact", figure.get("field")))
        alike = {*re.findall("[a-z]+", str(figure.get("name")))} & {*re.findall("[a-z]+", pointer)}
        listed = set(figure) <= {"name", "entry", "fact", "field", "value"}
        listed = listed and ("name" not in figure or named in self.wording)
        refuse_if(not (listed if self.wording else alike), name, f"gives a figure another name: {show(named)}")

    def check_page(self) -> int:
        """Check the page: its figures are what they say, nothing in it runs or loads, and its lines are listed."""
        text = utf8(self.read(PAGE, MAX_DOCUMENT), PAGE)
        refuse_if("\1" in text, PAGE, "has a control character")
        text, count = FIGURE.subn(self.check_figure, text)
        refuse_if(re.search("</?data", text, re.I), PAGE, "has a malformed figure")
        refuse_if(ACTIVE.search(text), PAGE, "has an element that runs or loads something")
        if self.wording:
            head, _, body = text.partition("</head>\n")
            refuse_if(head != self.page_head, PAGE, "does not begin as every report does")
            self.check_lines(SHAPE.sub("", body).split("\n"))
        return count

    def check_figure(self, found: "re.Match[str]") -> str:
        """Compare one figure of the page, or the name under which one stands, with its place. Returns the place."""
        look, entry, kind, pointer, title, exact, shown = map(html.unescape, found.groups(""))
        at: dict[str, Any] = {kind: pointer, "value": exact, "entry": whole(entry, PAGE) if entry else None}
        value, place = self.stated(at, PAGE)
        if look == "key":
            value, place = pointer.rpartition("/")[2].replace("~1", "/").replace("~0", "~"), f"name of {place}"
        few = format(FOUR.create_decimal(exact), "f") if DECIMAL.fullmatch(exact) else exact
        same = (value if isinstance(value, str) else canonical(value)) == exact
        refuse_if(
            not same or shown not in (exact, few) or title not in ("", exact), PAGE, f"{show(at)} is not stated there"
        )
        return f"{{{place}}}"

    def check_lines(self, lines: Sequence[str]) -> None:
        """Check that each line of the page is listed, a row with its caption, and takes its figures from one place."""
        caption = ""
        for line in lines:
            caption = line if line.startswith("<caption>") else caption
            said = SOURCE.sub("", caption + line if line.startswith(("<tr>", "<thead>")) else line)
            refuse_if(said.strip() and said not in self.wording, PAGE, f"says what is not listed: {show(said)}")
            entries, rows = ({found[i] for found in SOURCE.findall(line)} - {""} for i in (0, 1))
            mixed = len(rows) > 1 or len({self.leaves[int(entry)]["type"] for entry in entries}) < len(entries)
            refuse_if(mixed, PAGE, f"mixes entries or rows: {show(said)}")

    def check_card(self, values: Any) -> None:
        """Check that each line of the model card is listed, or states a value of the statement under its name."""
        stated = {f"| {row['name']} | `{row['value']}` |" for row in values}
        stated |= {f'{row["name"]}{more}: "{row["value"]}"' for row in values for more in ("", "_name")}
        for line in utf8(self.read(CARD), CARD).split("\n"):
            text = re.sub(r"\\u(.{4})|\\U(.{8})", lambda code: chr(int(code[1] or code[2], 16)), line)
            plain = re.fullmatch(r"[\w \"\\:.|`^/+-]*", line, re.ASCII) and text in stated
            refuse_if(not plain and line not in self.wording, CARD, f"says what is not listed: {show(line)}")

    def stated(self, at: dict[str, Any], name: str) -> "tuple[Any, str]":
        """Find what the ledger states at a place, and the place as wording.txt names it, followed by entry and row."""
        pointer = str(at["fact"] if "fact" in at else f"^{at.get('field')}")
        if at.get("entry") in (None, -1):
            known: Any = {"^/origin": [self.head.origin], "^/size": [*self.named], "^/root": [*self.named.values()]}
            found = [value for value in known.get(pointer, []) if str(value) == str(at["value"])]
            refuse_if(not found, name, f"names a tree head that this log did not have: {show(at)}")
            return found[0], f"tree head {pointer}"
        leaf = self.leaves.get(at["entry"], {})
        refuse_if(not leaf, name, f"points to entry {show(at['entry'])}, which is not here")
        other = leaf["facts"].get("run_id", self.manifest["run_id"]) != self.manifest["run_id"]
        row, general = ROW.search(pointer), ROW.sub(r"\1*", pointer, 1)
        source = f"\1{at['entry']}.{row[2].encode().hex() if row else ''}\1"
        return look_up(leaf, pointer, name), f"{'other ' * other}{leaf['type']} {general}{source}"

    def check_memory(self) -> None:
        """Compare the tree head with the newest one of this log that was seen before."""
        known = self.memory.get(self.head.origin)
        if known is None:
            return
        size, roots = known["size"], {**known.get("roots", {}), str(known["size"]): known["root"]}
        signing = [fingerprint(keys) for since, keys in self.sets.items() if since <= size][-1]
        if any(roots.get(str(at), root) != root for at, root in self.heads.items()):
            self.wrong(HEAD, f"FORK: two histories of one log were signed:\n{known['note']}\nand\n{self.head.note}")
        elif size > self.head.size:
            self.stale = f"older than a tree head of {size} entries that was seen before"
        elif known["keys"] != signing:
            self.wrong(KEYS, "these are not the keys that signed this log before")
        elif size not in self.heads:
            self.stale = f"carries no proof that it continues the tree head of {size} entries that was seen before"
        self.checked.append(f"memory: a tree head of {size} entries was seen before")


def look_up(leaf: Any, pointer: str, where: str) -> Any:
    """Find what a leaf states: a fact, or with ^ before the pointer another field."""
    return pointed(leaf if pointer[0] == "^" else leaf["facts"], pointer.lstrip("^"), where)


def place(leaf: Any) -> str:
    """Name the file that a leaf lies in."""
    return f"ledger/{leaf['index']:08d}.leaf"


# --- tree heads and Merkle proofs (C2SP signed-note, tlog-checkpoint, tlog-cosignature, tlog-proof; RFC 6962) --------
class Key:
    """A C2SP verifier key: name+id+base64(type || public key)."""

    def __init__(self, text: str, where: str) -> None:
        name, hexid, encoded = [*text.split("+", 2), "", ""][:3]
        raw = decode64(encoded, where)
        good = valid_name(name) and len(raw) == {1: 33, 6: 1313}.get(raw[0])
        refuse_if(not good, where, "a verifier key is malformed")
        self.text, self.name, self.type, self.public = text, name, raw[0], raw[1:]
        self.id = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
        refuse_if(self.id.hex() != hexid, where, "a verifier key does not have its own id")

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Tell whether this key signed the message."""
        return (ed25519_accepts if self.type == 1 else mldsa44_accepts)(self.public, message, signature)

    def accepts(self, head: "Head", signature: bytes) -> bool:
        """Tell whether this key signed the tree head; an ML-DSA-44 line begins with the time of signing."""
        if self.type == 1:
            return self.signed(head.text.encode(), signature)
        name, origin = (bytes([len(text.encode())]) + text.encode() for text in (self.name, head.origin))
        message = b"subtree/v1\n\0" + name + signature[:8] + origin + bytes(8) + head.size.to_bytes(8, "big")
        return self.signed(message + head.root, signature[8:])


class Head:
    """A tree head: origin, size, root. `lines` are its signature lines."""

    def __init__(self, note: str, where: str) -> None:
        text, blank, rest = note.rpartition("\n\n")
        control = any((ord(c) < 32 and c != "\n") or ord(c) == 127 for c in note)
        self.lines, lines = rest.split("\n"), text.split("\n")
        wrong = self.lines.pop() or len(self.lines) > 16 or len(note) > MAX_TEXT or len(lines) != 3
        refuse_if(not blank or control or wrong, where, "a tree head is malformed")
        self.note, self.text, self.origin = note, text + "\n", lines[0]
        self.size, self.root = whole(lines[1], where), decode64(lines[2], where, 32)
        refuse_if(not valid_name(self.origin), where, "a tree head is malformed")


def valid_name(name: str) -> bool:
    """Tell whether a key or a log may have this name."""
    return bool(name) and name.isprintable() and not set(" +") & set(name) and len(name.encode()) <= 255


def fingerprint(keys: Sequence[str]) -> str:
    """Take the SHA-256 of keys, each on a line of its own."""
    return hashlib.sha256("".join(f"{key}\n" for key in keys).encode()).hexdigest()


def trusts(pin: Sequence[str], keys: Sequence[str]) -> bool:
    """Tell whether these keys are pinned, by their fingerprint or by name."""
    mine = {line for line in pin if line.partition("+")[0] == keys[0].partition("+")[0]}
    return [*pin] == [fingerprint(keys)] or bool(mine and mine <= set(keys))


def open_head(note: str, keys: Sequence[Key], where: str) -> Head:
    """Open the tree head in a note that every key signed, once, and nobody else."""
    head, seen = Head(note, where), set()
    mine = keys and all(key.name == head.origin for key in keys)
    refuse_if(not mine, where, "the tree head is of another log than the keys")
    known = {(key.name, key.id): key for key in keys}
    for line in head.lines:
        dash, name, encoded = [*line.split(" ", 2), "", ""][:3]
        raw = decode64(encoded, where)
        refuse_if(dash != "\u2014" or not valid_name(name) or len(raw) < 5, where, "a signature line is malformed")
        key = known.get((name, raw[:4]))
        refuse_if(key is None or key in seen, where, "the tree head has a signature of an unknown key, or one twice")
        refuse_if(key and not key.accepts(head, raw[4:]), where, "a signature of the tree head does not verify")
        seen.add(key)
    refuse_if(len(seen) != len(keys), where, "the tree head lacks the signature of a key")
    return head


def check_inclusion(text: str, leaf: bytes, index: int, head: Head, where: str) -> None:
    """Check a tlog-proof that the leaf stands at `index` under exactly this signed tree head."""
    top, _, note = text.partition("\n\n")
    lines = top.split("\n")
    good = lines[:2] == ["c2sp.org/tlog-proof@v1", f"index {index}"] and index < head.size and note == head.note
    refuse_if(not good, where, f"the proof is malformed, or of another entry or tree head than {HEAD}")
    path, root = [decode64(line, where, 32) for line in lines[2:]], b""
    with contextlib.suppress(IndexError):  # a path that is too short
        root = root_of(index, head.size, hashlib.sha256(b"\0" + leaf).digest(), path)
    leads = root == head.root and not path
    refuse_if(not leads, where, f"does not lead from {where[:-6]}.leaf to the tree head: one of the two was altered")


def check_consistency(text: str, old: int, head: Head, where: str) -> bytes:
    """Check a proof that the log continues its first `old` entries; the root that these had."""
    lines = text.split("\n")
    good = lines[:2] == ["appliance.consistency/1", f"old {old}"] and len(lines) >= 4 and not lines[-1]
    refuse_if(not good or not 0 < old <= head.size, where, "the consistency proof is malformed")
    old_root, *path = [decode64(line, where, 32) for line in lines[2:-1]]
    roots = (b"", b"")
    with contextlib.suppress(IndexError):  # a path that is too short
        roots = roots_of(old, head.size, old_root, path)
    refuse_if(path or roots != (old_root, head.root), where, "the tree head does not continue the earlier one")
    return old_root


def node(left: bytes, right: bytes) -> bytes:
    """Take the hash of an inner node of the tree."""
    return hashlib.sha256(b"\1" + left + right).digest()


def root_of(index: int, size: int, digest: bytes, path: list[bytes]) -> bytes:
    """Follow an audit path to its root (RFC 6962, 2.1.1); uses the path up from its end."""
    if size == 1:
        return digest
    k, sibling = 1 << (size - 1).bit_length() - 1, path.pop()
    if index < k:
        return node(root_of(index, k, digest, path), sibling)
    return node(sibling, root_of(index - k, size - k, digest, path))


def roots_of(old: int, size: int, old_root: bytes, path: list[bytes], left: bool = True) -> tuple[bytes, bytes]:
    """Find the old and new root that a consistency proof leads to (RFC 6962, 2.1.2); uses the path up from its end."""
    if old == size:
        return (old_root, old_root) if left else (path[-1], path.pop())
    k, sibling = 1 << (size - 1).bit_length() - 1, path.pop()
    if old <= k:
        first, second = roots_of(old, k, old_root, path, left)
        return first, node(second, sibling)
    first, second = roots_of(old - k, size - k, old_root, path, left=False)
    return node(sibling, first), node(sibling, second)


# --- text, numbers and JSON ------------------------------------------------------------------------------------------
def show(text: Any) -> str:
    """Show foreign text, safe and short enough to print."""
    return ascii(str(text)[:200])[1:-1]


def utf8(data: bytes, where: str) -> str:
    """Decode the text in bytes."""
    text = data.decode("utf-8", "replace")
    refuse_if(text.encode() != data, where, "is not UTF-8")
    return text


def decode64(text: str, where: str, size: int = 0) -> bytes:
    """Decode base64 in its one canonical form; `size` bytes of it, if it is given."""
    data = base64.b64decode(text) if BASE64.fullmatch(text) else b""
    wrong = not data or base64.b64encode(data).decode() != text or len(data) != (size or len(data))
    refuse_if(wrong, where, "base64 is malformed")
    return data


def whole(text: str, where: str) -> int:
    """Read a whole number in its one form."""
    refuse_if(not re.fullmatch(r"0|[1-9][0-9]{0,17}", text, re.ASCII), where, "a number is malformed")
    return int(text)


def decimal(value: Any, where: str) -> Decimal:
    """Read a number as the ledger writes it: whole, or a decimal text."""
    good = type(value) is not bool and re.fullmatch(r"-?[0-9]{1,30}(\.[0-9]{1,60})?", str(value), re.ASCII)
    refuse_if(not good, where, f"{show(value)} is not a number")
    return Decimal(str(value))


def canonical(value: Any) -> str:
    """Write canonical JSON (RFC 8785) of a value without floats, whose names are ASCII."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def parse_json(data: bytes, where: str, end: str = "\n") -> Any:
    """Parse canonical JSON bytes, an object that ends in `end`. What is cut here does not come out as it went in."""
    text, cut = utf8(data, where), {"parse_float": lambda _: 0, "parse_constant": lambda _: 0}
    try:
        value = json.loads(text, parse_int=lambda digits: int(digits[:16]), **cut)  # type: ignore[arg-type]
        good = isinstance(value, dict) and canonical(value) + end == text
    except (ValueError, RecursionError):
        good = False
    refuse_if(not good, where, "is not canonical JSON")
    return value


def pointed(value: Any, pointer: Any, where: str) -> Any:
    """Find the part of a JSON value that an RFC 6901 pointer names."""
    refuse_if(not isinstance(pointer, str) or not pointer.startswith("/"), where, "a pointer is malformed")
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and re.fullmatch("0|[1-9][0-9]{0,6}", name) and int(name) < len(value):
            value = value[int(name)]
        else:
            raise Bad(where, f"nothing is stated at {show(pointer)}")
    return value


# --- Ed25519 (RFC 8032, section 5.1.7); points are in extended coordinates X, Y, Z, T --------------------------------

P, ORDER = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D, ZERO = -121665 * pow(121666, -1, P) % P, (0, 1, 1, 0)
Point = tuple[int, int, int, int]


def ed25519_accepts(public: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether a signature holds; S, R and the key must be in canonical form, and the key not of small order."""
    key = point_decode(public) if len(public) == 32 and len(signature) == 64 else None
    base = point_decode((4 * pow(5, -1, P) % P).to_bytes(32, "little"))
    s = int.from_bytes(signature[32:], "little")
    if key is None or base is None or s >= ORDER or point_encode(point_multiply(8, key)) == point_encode(ZERO):
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % ORDER
    minus = (P - key[0], key[1], key[2], P - key[3])
    return point_encode(point_add(point_multiply(s, base), point_multiply(k, minus))) == signature[:32]


def point_add(p: Point, q: Point) -> Point:
    """Add two points."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def point_multiply(n: int, p: Point) -> Point:
    """Multiply a point by n."""
    total = ZERO
    while n:
        total = point_add(total, p) if n & 1 else total
        p, n = point_add(p, p), n >> 1
    return total


def point_decode(data: bytes) -> "Point | None":
    """Decode the point in 32 bytes; None where they are not the one encoding of a point."""
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
    """Encode a point in 32 bytes."""
    inverse = pow(p[2], -1, P)
    return (p[1] * inverse % P | (p[0] * inverse % P & 1) << 255).to_bytes(32, "little")


# --- ML-DSA-44, verification (FIPS 204, algorithm 8 and those it calls), pure mode -----------------------------------

Q, GAMMA1, GAMMA2, TAU, BETA, OMEGA = 8380417, 1 << 17, 8380416 // 88, 39, 78, 80
Poly = list[int]


def mldsa44_accepts(public: bytes, message: bytes, signature: bytes, context: bytes = b"") -> bool:
    """Tell whether a signature holds; it must be in its one encoding."""
    if len(public) != 1312 or len(signature) != 2420:
        return False
    z = [[GAMMA1 - x for x in unpack(signature[i : i + 576], 18)] for i in range(32, 2336, 576)]
    hinted = hints(signature[2336:])
    if hinted is None or any(abs(x) >= GAMMA1 - BETA for row in z for x in row):
        return False
    message = bytes((0, len(context))) + context + message
    mu = hashlib.shake_256(hashlib.shake_256(public).digest(64) + message).digest(64)
    c, z, packed = ntt(challenge(signature[:32])), [ntt(row) for row in z], b""
    for r in range(4):
        t = ntt([x << 13 for x in unpack(public[32 + 320 * r : 352 + 320 * r], 10)])
        rows = [expand(public[:32] + bytes((s, r))) for s in range(4)]
        w = ntt_inverse([(sum(rows[s][i] * z[s][i] for s in range(4)) - c[i] * t[i]) % Q for i in range(256)])
        packed += sum(use_hint(x, i in hinted[r]) << 6 * i for i, x in enumerate(w)).to_bytes(192, "little")
    return hashlib.shake_256(mu + packed).digest(32) == signature[:32]


@functools.cache
def powers() -> list[Poly]:
    """List the powers 0 to 256 of the 256 roots at which the transform evaluates, in the transform's order."""
    roots = [pow(1753, 2 * int(f"{i:08b}"[::-1], 2) + 1, Q) for i in range(256)]
    return [[pow(root, power, Q) for power in range(257)] for root in roots]


def ntt(w: Poly) -> Poly:
    """Transform by the definition: slower than algorithm 41, but plain, and one signature is checked."""
    return [sum(map(operator.mul, w, row)) % Q for row in powers()]


def ntt_inverse(values: Poly) -> Poly:
    """Transform back; a root's power -j is minus its power 256 - j, and -1/256 is 32736 mod Q."""
    columns = list(zip(*powers()))[:0:-1]
    return [sum(map(operator.mul, values, column)) * 32736 % Q for column in columns]


def unpack(data: bytes, bits: int) -> Poly:
    """Unpack 256 little-endian numbers of so many bits."""
    number = int.from_bytes(data, "little")
    return [number >> bits * i & (1 << bits) - 1 for i in range(256)]


def expand(seed: bytes) -> Poly:
    """Expand a polynomial of the matrix, transformed already (algorithm 30)."""
    stream = hashlib.shake_128(seed).digest(3072)  # 1024 numbers, of which one in a thousand is too large
    numbers = (int.from_bytes(stream[i : i + 3], "little") & 0x7FFFFF for i in range(0, 3072, 3))
    return [number for number in numbers if number < Q][:256]


def challenge(seed: bytes) -> Poly:
    """Draw a polynomial with 39 coefficients of 1 or -1 (algorithm 29)."""
    stream, c, at = hashlib.shake_256(seed).digest(8192), [0] * 256, 8
    signs = int.from_bytes(stream[:8], "little")
    for i in range(256 - TAU, 256):
        at = next(j for j in range(at, len(stream)) if stream[j] <= i)
        c[i], c[stream[at]] = c[stream[at]], 1 - 2 * (signs & 1)
        at, signs = at + 1, signs >> 1
    return c


def hints(data: bytes) -> "list[set[int]] | None":
    """Find the places of the hints of each polynomial; None where they are not in the one encoding (algorithm 21)."""
    found, start = list[set[int]](), 0
    for end in data[OMEGA:]:
        places = list(data[start:end])
        if not start <= end <= OMEGA or places != sorted(set(places)):
            return None
        found.append(set(places))
        start = end
    return None if any(data[start:OMEGA]) else found


def use_hint(r: int, hinted: bool) -> int:
    """Take the high bits of r, moved by a hint (algorithms 36 and 40)."""
    low = r % (2 * GAMMA2)
    low -= 2 * GAMMA2 if low > GAMMA2 else 0
    high, low = (0, low - 1) if r - low == Q - 1 else ((r - low) // (2 * GAMMA2), low)
    return (high + (1 if low > 0 else -1)) % 44 if hinted else high


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
