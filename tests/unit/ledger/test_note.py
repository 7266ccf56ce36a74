"""Signed notes: the published examples verify, and what must be rejected is."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.errors import ArtefactMissing, IntegrityError
from appliance.ledger.note import Checkpoint, VerifierKey, open_checkpoint, sign_checkpoint
from appliance.ledger.signing import create_keys, load_signers, load_verifiers

# The example of c2sp.org/signed-note, and the test key of Go's golang.org/x/mod/sumdb/note.
EXAMPLE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
EXAMPLE_SIGNATURE = "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM="
GO_KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_SIGNATURE = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
GO_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
ORIGIN = "log.example/one"


@pytest.mark.parametrize(
    ("vkey", "text", "signature"),
    [
        (EXAMPLE_KEY, "This is an example message.\n", EXAMPLE_SIGNATURE),
        (GO_KEY, GO_TEXT, GO_SIGNATURE),
    ],
)
def test_published_examples_verify(vkey: str, text: str, signature: str) -> None:
    key = VerifierKey.parse(vkey)
    raw = base64.b64decode(signature)
    assert raw[:4] == key.key_id
    assert key.encode() == vkey
    assert key.accepts(text, raw[4:])
    assert not key.accepts(text + "\n", raw[4:])


@pytest.fixture
def note(tmp_path: Path) -> tuple[str, tuple[VerifierKey, ...]]:
    create_keys(tmp_path / "keys", ORIGIN)
    signers = load_signers(tmp_path / "keys", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    note = sign_checkpoint(Checkpoint(ORIGIN, 7, bytes(range(32))), signers)
    return note, load_verifiers(tmp_path / "keys")


def test_a_note_opens_for_both_keys_and_for_each(note: tuple[str, tuple[VerifierKey, ...]]) -> None:
    text, keys = note
    for trusted in (keys, keys[:1], keys[1:]):
        assert open_checkpoint(text, trusted) == Checkpoint(ORIGIN, 7, bytes(range(32)))
    assert open_checkpoint(text, keys, exact=True).size == 7
    with pytest.raises(IntegrityError):
        open_checkpoint(text, keys[:1], exact=True)


def rejected(note: str, keys: tuple[VerifierKey, ...]) -> bool:
    try:
        open_checkpoint(note, keys)
    except IntegrityError:
        return True
    return False


def test_what_must_be_rejected_is(note: tuple[str, tuple[VerifierKey, ...]]) -> None:
    text, keys = note
    body, signatures = text.split("\n\n")
    first, second = signatures.splitlines()
    cases = {
        "no key": (text, ()),
        "one signature stripped": (f"{body}\n\n{first}\n", keys),
        "the other stripped": (f"{body}\n\n{second}\n", keys),
        "doubled": (f"{body}\n\n{first}\n{first}\n{second}\n", keys),
        "no signature": (f"{body}\n\n", keys),
        "size changed": (text.replace("\n7\n", "\n8\n"), keys),
        "leading zero": (text.replace("\n7\n", "\n07\n"), keys),
        "extension line": (text.replace("\n\n", "\nextra\n\n", 1), keys),
        "no last newline": (text[:-1], keys),
        "carriage return": (text.replace("\n", "\r\n"), keys),
        "control character": (text.replace("log", "l\x07g"), keys),
        "other dash": (text.replace("—", "-"), keys),
        "too many lines": (text + first + "\n" + "— x AAAAAAA=\n" * 20, keys),
        "too long": ("x" * 200_000 + text, keys),
    }
    for name, (changed, trusted) in cases.items():
        assert rejected(changed, trusted), name
    assert not rejected(text + "— somebody.else AAAAAAAAAAA=\n", keys)


def test_no_changed_character_passes(note: tuple[str, tuple[VerifierKey, ...]]) -> None:
    text, keys = note
    for position in range(0, len(text), 7):
        for other in ("A", "B"):
            changed = text[:position] + other + text[position + 1 :]
            assert changed == text or rejected(changed, keys), position


def test_base64_has_one_form() -> None:
    loose = EXAMPLE_KEY[:-1] + "l"  # other trailing bits of the same bytes would be another text of one key
    with pytest.raises(IntegrityError):
        VerifierKey.parse(loose)


def test_a_replaced_seed_is_noticed(tmp_path: Path) -> None:
    create_keys(tmp_path, ORIGIN)
    good = (tmp_path / "mldsa44.seed").read_bytes()
    for seed in (bytes(32), b"short", b""):
        (tmp_path / "mldsa44.seed").write_bytes(seed)
        with pytest.raises(IntegrityError):
            load_signers(tmp_path, lambda: datetime.now(UTC))
    (tmp_path / "mldsa44.seed").unlink()
    with pytest.raises(ArtefactMissing):
        load_signers(tmp_path, lambda: datetime.now(UTC))
    (tmp_path / "mldsa44.seed").write_bytes(good)
    (tmp_path / "verifier.keys").write_bytes(b"\xff")
    with pytest.raises(IntegrityError):
        load_verifiers(tmp_path)
