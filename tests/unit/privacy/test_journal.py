from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from appliance.errors import IntegrityError, WillNotFit
from appliance.privacy.journal import Journal, JournalState, _line, charge, read

RUN, PLAN = "run-1", "ab" * 32
RATE = Fraction(32, 500)


def written(path: Path, attempts: int) -> JournalState:
    with Journal.open(path, RUN, PLAN) as journal:
        for _ in range(attempts):
            n = journal.attempt(RATE, 1.25)
            journal.record_release(n, "cd" * 32)
        journal.record_checkpoint(attempts, "ef" * 32)
        return journal.state


def test_reading_gives_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    state = written(path, 3)
    assert read(path, RUN) == state
    assert (state.attempts, state.sampled, state.steps, state.lines) == (3, 3, 3, 8)
    assert state.intact
    assert not state.torn_tail
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_journal_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = written(path, 2)
    with Journal.open(path, RUN, PLAN) as journal:
        assert journal.attempt(RATE, 1.25) == 3
    after = read(path, RUN)
    assert after is not None
    assert after.attempts == 3
    assert after.attempts_at[first.head_sha256] == 2


def test_a_missing_journal_is_none_and_charges_everything(tmp_path: Path) -> None:
    assert read(tmp_path / "journal", RUN) is None
    assert charge(None, 10, None) == 10


def test_an_empty_journal_or_a_pipe_is_not_intact(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    for name in ("empty", "pipe"):
        state = read(tmp_path / name, RUN)
        assert state is not None
        assert not state.intact
        assert charge(state, 10, None) == 10


def test_a_symlink_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "journal", 1)
    (tmp_path / "link").symlink_to(tmp_path / "journal")
    with pytest.raises(IntegrityError):
        read(tmp_path / "link", RUN)


@pytest.mark.parametrize(("run", "plan"), [("run-2", PLAN), (RUN, "00" * 32)])
def test_the_journal_of_another_run_or_plan_is_not_continued(tmp_path: Path, run: str, plan: str) -> None:
    written(tmp_path / "journal", 1)
    with pytest.raises(IntegrityError):
        Journal.open(tmp_path / "journal", run, plan)


def test_the_journal_of_another_run_charges_everything(tmp_path: Path) -> None:
    written(tmp_path / "journal", 1)
    state = read(tmp_path / "journal", "run-2")
    assert state is not None
    assert not state.intact
    assert charge(state, 10, None) == 10


def test_a_torn_line_counts_and_still_counts_after_continuing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, 2)
    with path.open("ab") as file:
        file.write(b'{"entry":{"n":3,')
    torn = read(path, RUN)
    assert torn is not None
    assert (torn.attempts, torn.sampled, torn.torn_tail, torn.intact) == (3, 2, True, True)
    recorded = (torn.attempts, torn.head_sha256)
    with Journal.open(path, RUN, PLAN) as journal:
        assert journal.state.attempts == 3
        assert journal.attempt(RATE, 1.25) == 4
    after = read(path, RUN)
    assert after is not None
    assert (after.attempts, after.sampled, after.intact, after.torn_tail) == (4, 3, True, False)
    assert charge(after, 10, recorded) == 4


def test_charge_sees_a_journal_rolled_back_behind_the_record(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, 2)
    early = path.read_bytes()
    later = written(path, 3)
    recorded = (later.attempts, later.head_sha256)
    assert charge(read(path, RUN), 10, recorded) == 5
    path.write_bytes(early)
    assert charge(read(path, RUN), 10, None) == 2  # why the ledger records as it goes
    assert charge(read(path, RUN), 10, recorded) == 10


def test_charge_sees_a_journal_rewritten_with_a_valid_chain(tmp_path: Path) -> None:
    real = written(tmp_path / "real", 3)
    forged = written(tmp_path / "forged", 2)
    with Journal.open(tmp_path / "forged", RUN, PLAN) as journal:
        journal.attempt(RATE, 9.0)
        forged = journal.state
    assert forged.attempts == real.attempts
    assert charge(forged, 10, (real.attempts, real.head_sha256)) == 10


def test_charge_is_capped_at_the_reservation_only_for_what_was_never_sampled() -> None:
    assert charge(JournalState(attempts=11, sampled=10), 10, None) == 10
    assert charge(JournalState(attempts=12, sampled=12), 10, None) == 12


def test_what_may_have_been_made_unseen_is_charged_up_to_the_reservation(tmp_path: Path) -> None:
    state = written(tmp_path / "journal", 3)
    recorded = (3, state.head_sha256)
    assert charge(state, 20, recorded, 2) == 5
    assert charge(state, 4, recorded, 2) == 4
    assert charge(state, 20, recorded, 0) == charge(state, 20, None, 2) == 3
    assert charge(state, 20, None, 4) == 4  # nothing is recorded yet, and four were permitted
    assert charge(None, 20, recorded, 2) == 20


def test_missed_attempts_count_and_stay_in_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, 2)
    with Journal.open(path, RUN, PLAN) as journal:
        journal.miss(3)
        assert journal.state.attempts == 5
        assert journal.attempt(RATE, 1.25) == 6
    state = read(path, RUN)
    assert state is not None
    assert state.intact
    assert (state.attempts, state.sampled) == (6, 3)
    assert charge(state, 20, None) == 6


def test_what_was_made_is_read_of_every_attempt(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.open(path, RUN, PLAN) as journal:
        journal.attempt(RATE, 1.25)
        journal.miss(1)
        journal.attempt(Fraction(1), 0.5)
    state = read(path, RUN)
    assert state is not None
    assert state.made == {1: (RATE, 1.25), 3: (Fraction(1), 0.5)}


@pytest.mark.parametrize("rate", ["1/0", "0.5", "-1/2", "1", "", "1/2/3", None, 1])
def test_an_attempt_at_what_is_no_rate_is_damage(tmp_path: Path, rate: object) -> None:
    path = tmp_path / "journal"
    head = written(path, 1).head_sha256
    entry = {"type": "attempt", "n": 2, "sample_rate": rate, "noise_multiplier": "1.25"}
    with path.open("ab") as file:
        file.write(_line(bytes.fromhex(head), entry))
    state = read(path, RUN)
    assert state is not None
    assert not state.intact
    assert charge(state, 20, None) == 20


def test_a_full_disk_is_said_and_nothing_is_built_on_the_failed_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    with Journal.open(path, RUN, PLAN) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
            with pytest.raises(WillNotFit):
                journal.attempt(RATE, 1.25)
        with pytest.raises(IntegrityError, match="failed before"):
            journal.attempt(RATE, 1.25)


_LIMITED = """
import resource, signal, sys
from fractions import Fraction
from pathlib import Path
from appliance.errors import ApplianceError
from appliance.privacy.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
made = 0
with Journal.open(Path(sys.argv[1]), "run-1", "ab" * 32) as journal:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
    try:
        while True:
            made = journal.attempt(Fraction(1, 10), 1.0)
    except ApplianceError:
        print(made)
"""


def test_a_file_that_cannot_grow_leaves_a_torn_line_that_counts(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    made = int(subprocess.run([sys.executable, "-c", _LIMITED, path], check=True, capture_output=True).stdout)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    state = read(path, RUN)
    assert state is not None
    assert state.torn_tail
    assert (state.sampled, state.attempts) == (made, made + 1)


_KILLED = """
import os, sys
from fractions import Fraction
from pathlib import Path
from appliance.privacy.journal import Journal
with Journal.open(Path(sys.argv[1]), "run-1", "ab" * 32) as journal:
    while True:
        os.write(1, b"%d\\n" % journal.attempt(Fraction(1, 10), 1.0))
"""


def test_kill_9_never_loses_an_attempt(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    charged_so_far = 0
    for lines in (1, 5, 17):
        with subprocess.Popen([sys.executable, "-c", _KILLED, path], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            process.kill()
            said = process.stdout.read().split()
            process.wait()
        state = read(path, RUN)
        assert state is not None
        assert state.intact
        assert state.attempts >= charged_so_far + lines + len(said)
        charged_so_far = state.attempts
