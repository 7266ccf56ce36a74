"""Witnesses, tree heads kept elsewhere, forks, snapshots for auditors, erasure."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from appliance.errors import ArtefactMissing, IntegrityError, UsageError
from appliance.events.catalog import event
from appliance.events.key import KeyLocked
from appliance.ledger import merkle
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.note import (
    COSIGNATURE,
    MLDSA44,
    Checkpoint,
    VerifierKey,
    cosigned_message,
    decode64,
    encode64,
    witnessed_message,
)
from appliance.ledger.reading import LedgerReader
from appliance.ledger.snapshot import tile_path
from tests.databases import Behind, SQLiteFile, attack

TIME = 1_790_000_000


class Witness:
    """A witness as C2SP tlog-witness has it: remembers one head and refuses what does not continue it."""

    def __init__(self, name: str = "witness.example/w1", algorithm: int = COSIGNATURE) -> None:
        self._ed25519 = Ed25519PrivateKey.from_private_bytes(sha256(name.encode()).digest())
        self._mldsa = MLDSA44PrivateKey.from_seed_bytes(sha256(name.encode()).digest())
        key = self._ed25519 if algorithm == COSIGNATURE else self._mldsa
        self.key = VerifierKey(name, algorithm, key.public_key().public_bytes_raw())
        self.known = (0, b"")

    def answer(self, request: str) -> str:
        top, _, note = request.partition("\n\n")
        first, *proof = top.split("\n")
        text = note.rpartition("\n\n")[0] + "\n"
        checkpoint = Checkpoint.parse(text)
        assert int(first.removeprefix("old ")) == self.known[0]
        if self.known[0]:
            path = [decode64(line) for line in proof]
            merkle.check_consistency(self.known[0], checkpoint.size, self.known[1], checkpoint.root, path)
        self.known = (checkpoint.size, checkpoint.root)
        return self.line(text)

    def line(self, text: str) -> str:
        if self.key.algorithm == COSIGNATURE:
            signature = self._ed25519.sign(witnessed_message(text, TIME))
        else:
            signature = self._mldsa.sign(cosigned_message(self.key.name, Checkpoint.parse(text), TIME))
        return f"— {self.key.name} {encode64(self.key.key_id + TIME.to_bytes(8, 'big') + signature)}\n"


@pytest.fixture
def config(config: LedgerConfig, tmp_path: Path) -> LedgerConfig:
    return replace(config, witnesses=tmp_path / "witnesses.txt")


@pytest.fixture
def witnesses(config: LedgerConfig) -> list[Witness]:
    trusted = [Witness(), Witness("witness.example/w2", MLDSA44)]
    assert config.witnesses is not None
    config.witnesses.write_text("# ours\n\n" + "".join(f"{witness.key.encode()}\n" for witness in trusted))
    return trusted


def append(ledger: Ledger, count: int = 1) -> None:
    with ledger.transaction(Actor("p-1", "Ann Example"), reason="why") as tx:
        for _ in range(count):
            tx.append(KeyLocked())


def test_what_a_witness_saw_cannot_be_altered_any_more(ledger: Ledger, witnesses: list[Witness]) -> None:
    assert ledger.verify().alterable_from == 0
    for size in (4, 9, 309):
        append(ledger, size - ledger.sign().size)
        request = ledger.witness_request()
        added = ledger.add_cosignatures("".join(witness.answer(request) for witness in witnesses))
        assert [(c.size, c.time) for c in added] == [(size, TIME)] * 2
        found = ledger.verify()
        assert found.problems == ()
        assert (found.witnessed_size, found.alterable_from, found.entries) == (size, size, size)
        assert {cosigned.witness for cosigned in found.cosigned} == {witness.key.name for witness in witnesses}
    append(ledger)
    assert (ledger.verify().alterable_from, ledger.verify().entries) == (309, 310)
    assert ledger.add_cosignatures(witnesses[0].line("".join(ledger.sign().note.partition("\n\n")[0]) + "\n"))


def test_a_witness_that_knows_less_is_met_where_it_is(ledger: Ledger, witnesses: list[Witness]) -> None:
    append(ledger, 5)
    ledger.add_cosignatures(witnesses[0].answer(ledger.witness_request()))
    append(ledger)
    with pytest.raises(UsageError):
        ledger.witness_request(99)
    ledger.add_cosignatures(witnesses[1].answer(ledger.witness_request(0)))
    assert ledger.verify().witnessed_size == 7


def test_answers_that_prove_nothing_are_refused(ledger: Ledger, witnesses: list[Witness]) -> None:
    good = witnesses[0].answer(ledger.witness_request())
    stranger = Witness("witness.example/stranger")
    text = ledger.sign().note.partition("\n\n")[0] + "\n"
    refused = [
        stranger.line(text),
        good[:-10] + "\n",
        good.replace("w1", "w2"),
        witnesses[0].line(text.replace("\n1\n", "\n2\n")),
        good + stranger.line(text),
        "nonsense\n",
    ]
    for answer in refused:
        with pytest.raises(IntegrityError):
            ledger.add_cosignatures(answer)
    assert ledger.verify().cosigned == ()
    ledger.add_cosignatures(good)
    ledger.add_cosignatures(good)
    assert len(ledger.verify().cosigned) == 1


def test_without_a_trusted_witness_nothing_is_witnessed(
    ledger: Ledger, witnesses: list[Witness], config: LedgerConfig, tmp_path: Path
) -> None:
    ledger.add_cosignatures(witnesses[0].answer(ledger.witness_request()))
    nobody = tmp_path / "none.txt"
    assert ledger.verify(witnesses=nobody).cosigned == ()
    nobody.write_text(ledger.verifier_keys[0] + "\n")
    with pytest.raises(IntegrityError):
        ledger.verify(witnesses=nobody)
    assert config.witnesses is not None
    config.witnesses.unlink()
    with pytest.raises(ArtefactMissing):
        ledger.add_cosignatures("x")


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE cosig SET line = replace(line, 'w1', 'w2')",
        "UPDATE cosig SET size = 1",
        "UPDATE cosig SET size = 77",
        "UPDATE cosig SET line = 'x'",
    ],
)
def test_an_altered_cosignature_is_found(ledger: Ledger, witnesses: list[Witness], behind: Behind, damage: str) -> None:
    append(ledger, 3)
    ledger.add_cosignatures(witnesses[0].answer(ledger.witness_request()))
    attack(behind, damage)
    found = ledger.verify()
    assert any("cosig" in problem for problem in found.problems)
    assert found.witnessed_size == 0


def test_a_head_kept_elsewhere_bounds_what_can_be_altered(ledger: Ledger) -> None:
    append(ledger, 3)
    kept = ledger.sign().note
    append(ledger, 3)
    found = ledger.verify(kept=[kept])
    assert (found.problems, found.alterable_from) == ((), 4)
    with pytest.raises(IntegrityError):
        ledger.verify(kept=[kept.replace("\n4\n", "\n5\n")])


@pytest.mark.parametrize("further", [0, 2])
def test_a_fork_shows_both_signed_notes(config: LedgerConfig, behind: Behind, tmp_path: Path, further: int) -> None:
    """Whoever holds keys, database and anchor rewrites history; a head kept elsewhere convicts them."""
    with Ledger.create(config) as ledger:
        append(ledger, 2)
    copy = behind.copy()
    shutil.copy(config.anchor, tmp_path / "old-anchor")
    with Ledger.open(config) as ledger:
        append(ledger, 3)
        kept = ledger.sign().note
    behind.restore(copy)
    shutil.copy(tmp_path / "old-anchor", config.anchor)
    with Ledger.open(config) as forger:
        append(forger, 3 + further)
        forged = forger.sign().note
        assert forger.verify().ok  # nothing inside tells
        found = forger.verify(kept=[kept])
    assert found.fork == (kept, forged)
    assert any("not those" in problem for problem in found.problems)
    assert found.alterable_from == 0


def test_a_database_behind_a_head_kept_elsewhere_is_found(config: LedgerConfig, behind: Behind) -> None:
    Ledger.create(config).close()
    copy, anchor = behind.copy(), config.anchor.read_bytes()
    with Ledger.open(config) as ledger:
        append(ledger, 2)
        kept = ledger.sign().note
    behind.restore(copy)
    config.anchor.write_bytes(anchor)
    with Ledger.open(config) as older:
        found = older.verify(kept=[kept])
    assert found.problems == ("the database is behind a tree head that was kept elsewhere: entries 1 to 2 are missing",)
    assert found.first_bad == 1


@pytest.mark.parametrize("size", [1, 256, 300])
def test_a_snapshot_is_a_tiled_log(ledger: Ledger, witnesses: list[Witness], tmp_path: Path, size: int) -> None:
    if size > 1:
        append(ledger, size - 1)
    ledger.add_cosignatures(witnesses[0].answer(ledger.witness_request()))
    append(ledger)  # newer than the newest head, so not in it
    head, count = ledger.export(tmp_path / "out")
    files = {str(p.relative_to(tmp_path / "out")): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert (head.size, count) == (size, len(files))
    assert files["checkpoint"].decode().startswith(head.note)
    assert witnesses[0].key.name.encode() in files["checkpoint"]
    assert files["keys.txt"].decode().splitlines() == list(ledger.verifier_keys)
    hashes = []
    for n in range(-(-size // 256)):
        width = min(256, size - 256 * n)
        part = "" if width == 256 else f".p/{width}"
        bundle, tile = files[f"tile/entries/{tile_path(n)}{part}"], files[f"tile/0/{tile_path(n)}{part}"]
        while bundle:
            length = int.from_bytes(bundle[:2], "big")
            hashes.append(merkle.leaf_hash(bundle[2 : 2 + length]))
            bundle = bundle[2 + length :]
        assert b"".join(hashes[256 * n :]) == tile
    assert merkle.fold(merkle.extend([], 0, hashes)) == head.root
    assert not any(b"Ann Example" in data for data in files.values())
    with pytest.raises(UsageError):
        ledger.export(tmp_path / "out")


def test_tile_paths_are_those_of_the_specification() -> None:
    assert [tile_path(n) for n in (0, 67, 1000, 1234067)] == ["000", "067", "x001/000", "x001/x234/067"]


def test_entries_that_do_not_give_the_signed_root_are_not_exported(
    config: LedgerConfig, behind: Behind, tmp_path: Path
) -> None:
    with Ledger.create(config) as ledger:
        append(ledger, 3)
    attack(behind, "DELETE FROM entry WHERE idx = 2")
    with LedgerReader.open(config, checked=False) as reader, pytest.raises(IntegrityError):
        reader.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_erased_body_is_gone_from_the_file_too(ledger: Ledger, behind: Behind, body_key: bytes) -> None:
    append(ledger, 2)
    sealed = bytes(behind.rows("SELECT sealed FROM body WHERE idx = 1")[0][0])
    eraser = Actor("p-9", "")
    said = ledger.erase(2, eraser)  # of the body that entries 1 and 2 share
    assert ledger.entry(said).leaf["facts"] == {"index": 1}
    assert ledger.body(1, body_key) is None
    found = ledger.verify()
    assert (found.problems, found.bodies) == ((), {"erased": 2})
    assert found.signed_size == said + 1
    if isinstance(behind, SQLiteFile):
        assert not any(sealed[:64] in path.read_bytes() for path in behind.path.parent.glob("ledger.db*"))
    with pytest.raises(UsageError, match="erased"):
        ledger.erase(1, eraser)
    with pytest.raises(ArtefactMissing):
        ledger.erase(0, eraser)


def test_an_interrupted_erasure_is_continued(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    append(ledger)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("appliance.ledger.database.Database.erasing", crash)
        with pytest.raises(KeyboardInterrupt):
            ledger.erase(1, Actor("p-9", ""))
    assert ledger.verify().bodies == {"sealed": 1}
    assert ledger.erase(1, Actor("p-9", "")) == 2
    assert ledger.verify().bodies == {"erased": 1}


def test_entries_are_found_by_their_facts(ledger: Ledger) -> None:
    facts = {"run_id": "run_1", "attempts": 1, "journal_sha256": "00" * 32}
    with ledger.transaction(Actor("p-1", "")) as tx:
        tx.append(event("run.checkpointed", facts))
        tx.append(event("run.checkpointed", facts | {"run_id": "run_2"}))
    assert [entry.index for entry in ledger.entries(facts={"run_id": "run_2"})] == [2]
    assert list(ledger.entries(facts={"dataset_id": "run_2"})) == []
    assert list(ledger.entries(since=datetime(2999, 1, 1, tzinfo=UTC))) == []
