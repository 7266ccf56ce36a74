"""What another process does to a ledger between two steps of this one is no damage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest

from appliance.errors import Busy, IntegrityError
from appliance.events.key import KeyLocked
from appliance.ledger import ledger as ledgers
from appliance.ledger import verify
from appliance.ledger.anchor import Anchor
from appliance.ledger.config import LedgerConfig
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.register import Register

ACTOR = Actor("p-1", "")


def write(config: LedgerConfig) -> None:
    """Write an entry as another process does, and sign and anchor it."""
    with Ledger.open(config) as other, other.transaction(ACTOR) as tx:
        tx.append(KeyLocked())


def rotate(config: LedgerConfig) -> None:
    with Ledger.open(config) as other:
        other.rotate(ACTOR)


def before(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, meanwhile: Callable[[], None], place: int = 1
) -> None:
    """Let something happen right before the `place`th call of a function."""
    real, left = getattr(owner, name), [place]

    def call(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            meanwhile()
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("step", ["check_tables", "check_keys"])
def test_a_verification_is_of_one_moment(
    ledger: Ledger, config: LedgerConfig, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before(monkeypatch, verify, step, lambda: write(config))
    found = ledger.verify()
    assert found.problems == ()
    assert ledger.verify().entries == found.entries + (0 if step == "check_tables" else 1)


def test_keys_that_change_while_a_ledger_is_opened_are_its_own(
    ledger: Ledger, config: LedgerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, ledgers, "promote", lambda: rotate(config))
    with Ledger.open(config) as opened:
        assert opened.verify().ok


def test_keys_that_are_not_those_of_the_log_are_found_all_the_same(ledger: Ledger, config: LedgerConfig) -> None:
    for path in config.signing_dir.iterdir():
        path.unlink()
    ledgers.create_keys(config.signing_dir, config.origin)
    with pytest.raises(IntegrityError, match="signing keys"):
        Ledger.open(config)


def test_keys_that_change_between_signing_and_anchoring_have_anchored_more(
    ledger: Ledger, config: LedgerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    before(monkeypatch, Anchor, "advance", lambda: rotate(config))
    with ledger.transaction(ACTOR) as tx:
        tx.append(KeyLocked())
    head = ledger.sign()
    assert ledger.anchored().size > head.size
    assert ledger.verify().ok


def test_keys_wait_to_be_changed_while_a_copy_of_the_register_is_signed(
    ledger: Ledger, config: LedgerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = dataclasses.replace(config, register=config.signing_dir.parent / "register")
    other = Thread(target=rotate, args=(config,))

    def begin() -> None:
        other.start()
        other.join(0.5)

    with Ledger.open(kept) as opened:
        for _ in range(70):
            with opened.transaction(ACTOR) as tx:
                tx.append(KeyLocked())
        key = opened._local[0]
        with opened.read() as rows:
            rows.runs.list()
        opened.sign()
        before(monkeypatch, opened, "_signers", begin)
    other.join()
    assert Register.load(config.signing_dir.parent / "register", key) is not None
    with Ledger.open(kept) as again:
        assert len(again.key_sets) == 2
        assert again.verify().ok


def test_a_ledger_that_was_only_looked_at_closes_however_busy_others_are(
    ledger: Ledger, config: LedgerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise Busy("written by another")

    before(monkeypatch, Ledger, "sign", refuse)
    Ledger.open(config).close()
    opened = Ledger.open(config)
    with opened.transaction(ACTOR) as tx:
        tx.append(KeyLocked())
    before(monkeypatch, Ledger, "sign", refuse)
    with pytest.raises(Busy):
        opened.close()
    assert ledger.verify().signed_size < ledger.verify().entries
