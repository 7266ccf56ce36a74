"""Unicode normalisation in pieces, beside that of a whole text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import UsageError
from appliance.store import normalisation
from appliance.store.normalisation import normalised

COMBINING = [chr(c) for c in range(0x10FFFF) if unicodedata.combining(chr(c))]
JAMO = [chr(c) for c in (*range(0x1100, 0x1200), *range(0xAC00, 0xAC20))]
ODD = [c for c in map(chr, range(0x30000)) if not c.isascii() and unicodedata.normalize("NFKC", c) != c]
TEXTS = st.text(st.one_of(*map(st.sampled_from, (COMBINING, JAMO, ODD)), st.characters(exclude_categories=["Cs"])))


def form(text: str) -> bytes:
    with normalised(text.encode()) as lent:
        return bytes(lent)


@given(TEXTS)
def test_the_pieces_joined_are_the_form_of_the_whole(text: str) -> None:
    assert form(text) == unicodedata.normalize("NFKC", text).encode()


@pytest.mark.parametrize(
    "text", ["", "\ufdfa" * 50, "e" + "\u0301" * 50, "\u1100\u1161\u11a8", "a\u0f73", "\u09c7\u09be"]
)
def test_the_extremes_too(text: str) -> None:
    assert form(text) == unicodedata.normalize("NFKC", text).encode()


@given(st.binary().filter(lambda text: not _is_utf8(text)))
def test_what_is_not_utf8_is_refused_without_being_shown(text: bytes) -> None:
    with pytest.raises(UsageError) as caught, normalised(text):
        pass
    assert caught.value.__suppress_context__
    assert caught.value.message == "the passphrase is not valid UTF-8"


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_what_is_lent_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    wiped: list[bytearray] = []
    real = normalisation.wipe
    monkeypatch.setattr(normalisation, "wipe", lambda buffer: (real(buffer), wiped.append(buffer)))
    with normalised(b"correct horse") as lent:
        assert bytes(lent) == b"correct horse"
    assert wiped
    assert not any(wiped[0])
