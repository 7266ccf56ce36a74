from __future__ import annotations

import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.privacy import journal
from appliance.privacy.journal import Journal, JournalState, charge, read

RUN, PLAN = "run-1", "ab" * 32
EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("attempt"),
            st.fractions(min_value=Fraction(1, 10**9), max_value=1),
            st.floats(min_value=1e-3, max_value=1e3),
        ),
        st.tuples(st.just("record_release"), st.integers(1, 10**6), st.just("cd" * 32)),
        st.tuples(st.just("record_checkpoint"), st.integers(1, 10**6), st.just("ef" * 32)),
        st.tuples(st.just("reopen")),
    ),
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(EVENTS)
def test_reading_gives_what_was_written(events: list[tuple]) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "journal")
        open_journal = Journal.open(path, RUN, PLAN)
        for name, *arguments in events:
            if name == "reopen":
                open_journal.close()
                open_journal = Journal.open(path, RUN, PLAN)
            else:
                getattr(open_journal, name)(*arguments)
        open_journal.close()
        state = read(path, RUN)
        assert state == open_journal.state
        assert state is not None
        assert state.intact
        assert state.attempts == sum(event[0] == "attempt" for event in events)
        assert state.steps == max((event[1] for event in events if event[0] == "record_release"), default=0)


def _sample(path: Path, attempts: int) -> bytes:
    with Journal.open(path, RUN, PLAN) as writer:
        for _ in range(attempts):
            writer.record_release(writer.attempt(Fraction(3, 40), 1.5), "cd" * 32)
        writer.attempt(Fraction(3, 40), 1.5)
    return path.read_bytes()


def _state_of(path: Path, content: bytes) -> JournalState:
    path.write_bytes(content)
    state = read(path, RUN)
    assert state is not None
    return state


def test_every_flipped_byte_is_detected_or_counted(tmp_path: Path, stress_count: Callable[[int, int], int]) -> None:
    """The law: after any change of one byte, `intact` is false or no attempt is lost."""
    whole = _sample(tmp_path / "whole", 3)
    step = stress_count(61, 1)
    for offset in range(len(whole)):
        for mask in range(1 + offset % step, 256, step):
            flipped = bytearray(whole)
            flipped[offset] ^= mask
            state = journal._parse(bytes(flipped), RUN)
            assert not state.intact or state.attempts >= 4, (offset, mask)
            assert charge(state, 20, None) >= 4


def test_every_truncation_is_counted_or_seen_by_charge(tmp_path: Path) -> None:
    """Inside a line it counts one more than the lines left; at a line's end only the ledger's record can tell."""
    whole = _sample(tmp_path / "whole", 3)
    full = read(tmp_path / "whole", RUN)
    assert full is not None
    boundaries = [i + 1 for i, byte in enumerate(whole) if byte == 10]
    unseen = 0
    for length in range(len(whole)):
        state = journal._parse(whole[:length], RUN)
        if length < boundaries[0]:
            assert not state.intact
            continue
        assert state.intact
        assert state.torn_tail == (length not in boundaries)
        assert state.attempts == whole[: whole.rfind(b"\n", 0, length) + 1].count(b'"attempt"') + state.torn_tail
        assert charge(state, 20, (full.attempts, full.head_sha256)) >= 4
        unseen += charge(state, 20, None) < 4
    assert unseen  # so the ledger's record is needed: without it some truncations under-charge


def test_removed_swapped_or_doubled_lines_are_detected(tmp_path: Path) -> None:
    lines = _sample(tmp_path / "whole", 3).splitlines(keepends=True)
    for i in range(len(lines) - 1):
        assert not _state_of(tmp_path / "cut", b"".join(lines[:i] + lines[i + 1 :])).intact
        swapped = [*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]]
        assert not _state_of(tmp_path / "cut", b"".join(swapped)).intact
    for i in range(len(lines)):
        assert not _state_of(tmp_path / "cut", b"".join([*lines[: i + 1], *lines[i:]])).intact
