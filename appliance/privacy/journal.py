"""The write-ahead journal of attempts: what a run has spent, whatever happened to the run.

The worker appends, the supervisor reads. An attempt is on the disk before its batch is sampled, so a crash can lose
a step but never the record that it was paid for. One JSON object per line:

    {"entry":{"n":1,"noise_multiplier":"0.81","sample_rate":"32/500","type":"attempt"},"sha256":"5b0c..."}

`sha256` is SHA-256 over the previous line's digest (32 zero bytes before the first) and the bytes of `entry`. The
chain carries no key: it finds accidents and careless edits. What bounds a forger is that the ledger records
(attempts, head) as it goes, that no worker goes further beyond the record than it is permitted (`jobs.permits`), and
that `charge` takes the full reservation for a journal that does not extend the record.

An attempt counts before anything of it is known, and a crash right behind it changes nothing:

    >>> path = directory / "journal.jsonl"
    >>> with Journal.open(path, "run_1", "ab" * 32) as journal:
    ...     for step in (1, 2):
    ...         n = journal.attempt(Fraction(32, 500), 0.81)
    ...     journal.record_release(1, "cd" * 32)
    >>> read(path, "run_1")
    JournalState(attempts=2, sampled=2, steps=1, head_sha256='...', lines=4, intact=True, torn_tail=False, ...)
    >>> charge(read(path, "run_1"), reserved=10, recorded=None)
    2
    >>> charge(None, reserved=10, recorded=None)
    10

What is detected, exactly: any changed, inserted or removed byte inside the complete lines makes `intact` false; a last
line without its newline counts as one attempt; lines lost whole from the end are seen by `charge` as far as the ledger
had recorded them, and charged as far as they may have been made.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import orjson

from appliance.errors import ApplianceError, IntegrityError, WillNotFit
from appliance.files import write_all, write_atomic

SCHEMA = "appliance.journal/1"
_START = bytes(32)
_RATE = re.compile("([0-9]{1,40})/([0-9]{1,40})", re.ASCII)


@dataclass(frozen=True, slots=True)
class JournalState:
    """What a journal says.

    Attributes:
      attempts: attempts to account for; a torn line counts as one.
      sampled: attempts whose line is complete; only these can have been sampled, as the line comes first.
      steps: the highest step whose noised release was journaled.
      head_sha256: digest of the last complete line.
      lines: complete lines read, the opening one included.
      intact: every complete line follows from the one before, and the journal is of the run that was asked for.
      torn_tail: the last line has no newline.
      plan_sha256: digest of the plan the journal was opened for.
      attempts_at: for the digest of every line, the attempts up to and including it.
      made: for every attempt whose line is complete, by its number, at which sample rate and noise multiplier.
    """

    attempts: int = 0
    sampled: int = 0
    steps: int = 0
    head_sha256: str = _START.hex()
    lines: int = 0
    intact: bool = True
    torn_tail: bool = False
    plan_sha256: str = ""
    attempts_at: dict[str, int] = field(default_factory=dict, repr=False)
    made: dict[int, tuple[Fraction, float]] = field(default_factory=dict, repr=False)


class Journal:
    """The append side. Use `Journal.open`; close it, or use it as a context manager."""

    def __init__(self, path: Path, descriptor: int, state: JournalState) -> None:
        self._path = path
        self._descriptor = descriptor
        self._state = state
        self._failed = False

    @classmethod
    def open(cls, path: Path, run_id: str, plan_sha256: str) -> Journal:
        """Create the journal, or continue it; a torn last line is first turned into a line that counts.

        Raises:
          IntegrityError: the file is not an intact journal of this run and plan.
          WillNotFit: the disk is full.
        """
        try:
            content = _content(path)
            if content is None:
                opening = {"type": "opened", "schema": SCHEMA, "run_id": run_id, "plan_sha256": plan_sha256}
                content = _line(_START, opening)
                write_atomic(path, content)
            state = _parse(content, run_id)
            if not state.intact or state.plan_sha256 != plan_sha256:
                raise IntegrityError("the journal is damaged or belongs to another run or plan", where=str(path))
            if state.torn_tail:
                whole = content[: content.rfind(b"\n") + 1]
                content = whole + _line(bytes.fromhex(state.head_sha256), {"type": "torn"})
                write_atomic(path, content)
                state = _parse(content, run_id)
            return cls(path, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW), state)
        except OSError as error:
            raise _refusal(error, path) from None

    @property
    def state(self) -> JournalState:
        """What has been journaled so far."""
        return self._state

    def attempt(self, sample_rate: Fraction, noise_multiplier: float) -> int:
        """Journal that a step is about to be sampled; on the disk when this returns. Returns n of the n-th attempt.

        The n counts every attempt to account for, torn lines included.
        """
        n = self._state.attempts + 1
        rate = f"{sample_rate.numerator}/{sample_rate.denominator}"
        self._append(
            {"type": "attempt", "n": n, "sample_rate": rate, "noise_multiplier": repr(float(noise_multiplier))}
        )
        return n

    def miss(self, attempts: int) -> None:
        """Journal attempts that may have been made and were lost; each counts, like one whose line was torn."""
        for _ in range(attempts):
            self._append({"type": "torn"})

    def record_release(self, step: int, sha256: str) -> None:
        """Journal the digest of the noised sum of a step, before it is applied."""
        self._append({"type": "released", "step": step, "sha256": sha256})

    def record_checkpoint(self, step: int, sha256: str) -> None:
        """Journal the digest of the training checkpoint taken after a step."""
        self._append({"type": "checkpointed", "step": step, "sha256": sha256})

    def close(self) -> None:
        """Close the file. Everything is on the disk already."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, entry: dict[str, Any]) -> None:
        # After a failed write or fsync nobody knows what is on the disk, so nothing more is built on it.
        if self._failed:
            raise IntegrityError("the journal failed before; open it anew", where=str(self._path))
        line = _line(bytes.fromhex(self._state.head_sha256), entry)
        self._failed = True
        try:
            write_all(self._descriptor, line)
            os.fsync(self._descriptor)
        except OSError as error:
            raise _refusal(error, self._path) from None
        self._state = _advance(self._state, entry, orjson.loads(line)["sha256"])
        self._failed = False


def read(path: Path, run_id: str) -> JournalState | None:
    """Read what the journal says of `run_id`; None where there is none. Never raises for what the file contains.

    Raises:
      IntegrityError: the file is there and cannot be read.
    """
    try:
        content = _content(path)
    except OSError as error:
        raise _refusal(error, path) from None
    return None if content is None else _parse(content, run_id)


def charge(state: JournalState | None, reserved: int, recorded: tuple[int, str] | None, unseen: int = 0) -> int:
    """Count the attempts to charge: never fewer than were sampled.

    Args:
      state: what `read` returned.
      reserved: attempts reserved before the run began.
      recorded: the last (attempts, head_sha256) that the ledger recorded of this journal, if any.
      unseen: how many attempts beyond those recorded may have been made and cut off the journal since.

    Returns:
      The whole reservation when the journal is missing, damaged, or does not extend what was recorded. Otherwise the
      attempts it shows, or those that were recorded with the unseen ones, if that is more. Beyond the reservation only
      a complete attempt is charged, which no correct worker writes: a torn or an unseen one was never sampled.
    """
    if state is None or not continues(state, recorded):
        return max(reserved, state.sampled if state else 0)
    made = max(state.attempts, (recorded[0] if recorded else 0) + unseen)
    return max(state.sampled, min(made, reserved))


def continues(state: JournalState | None, recorded: tuple[int, str] | None) -> bool:
    """Tell whether the journal is there, intact, and extends the (attempts, head_sha256) recorded last."""
    if state is None or not state.intact:
        return False
    return recorded is None or (state.attempts >= recorded[0] and recorded[1] in state.attempts_at)


def _line(previous: bytes, entry: dict[str, Any]) -> bytes:
    body = orjson.dumps(entry, option=orjson.OPT_SORT_KEYS)
    digest = hashlib.sha256(previous + body).hexdigest()
    return b'{"entry":' + body + b',"sha256":"' + digest.encode() + b'"}\n'


def _parse(content: bytes, run_id: str) -> JournalState:
    *lines, tail = content.split(b"\n")
    state = JournalState()
    for number, line in enumerate(lines):
        after = _follow(state, line + b"\n", run_id if number == 0 else None)
        if after is None:
            return replace(state, intact=False)
        state = after
    if not lines:
        return replace(state, intact=False)
    return replace(state, attempts=state.attempts + 1, torn_tail=True) if tail else state


def _follow(state: JournalState, line: bytes, opening: str | None) -> JournalState | None:
    """Follow `line` to the next state; None if it does not follow. Writing it again must give the same bytes."""
    try:
        value = orjson.loads(line)
        entry = value["entry"]
        if _line(bytes.fromhex(state.head_sha256), entry) != line:
            return None
        if (entry["type"] == "opened") != (opening is not None):
            return None
        if opening is not None and (entry["run_id"], entry["schema"]) != (opening, SCHEMA):
            return None
        return _advance(state, entry, value["sha256"])
    except (ValueError, KeyError, TypeError):
        return None


def _advance(state: JournalState, entry: dict[str, Any], head: str) -> JournalState:
    kind = entry["type"]
    attempts, sampled, steps, plan = state.attempts, state.sampled, state.steps, state.plan_sha256
    if kind == "attempt":
        attempts, sampled = attempts + 1, sampled + 1
        if entry["n"] != attempts:
            raise ValueError("attempt out of order")
        state.made[attempts] = _mechanism(entry)
    elif kind == "torn":
        attempts += 1
    elif kind == "released":
        steps = max(steps, entry["step"])
    elif kind == "opened":
        plan = entry["plan_sha256"]
    elif kind != "checkpointed":
        raise ValueError("unknown entry")
    state.attempts_at[head] = attempts
    return JournalState(
        attempts, sampled, steps, head, state.lines + 1, True, False, plan, state.attempts_at, state.made
    )


def _mechanism(entry: dict[str, Any]) -> tuple[Fraction, float]:
    """Read the sample rate and the noise multiplier of an attempt. Raises `ValueError` for what none ever wrote."""
    rate = _RATE.fullmatch(entry["sample_rate"])
    if rate is None or not int(rate[2]):
        raise ValueError("not a sample rate")
    return Fraction(int(rate[1]), int(rate[2])), float(entry["noise_multiplier"])


def _content(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        # Anything but a regular file is not a journal; reading a pipe could also wait for ever.
        return file.read() if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""


def _refusal(error: OSError, path: Path) -> ApplianceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WillNotFit("the disk is full; the journal cannot be written", where=str(path))
    reason = errno.errorcode.get(error.errno or 0, "unknown")
    return IntegrityError(f"the journal cannot be read or written ({reason})", where=str(path))
