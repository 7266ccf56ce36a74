"""What an import found of a model is read from the ledger and holds where it matters; older entries refuse nothing."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.cli import planning
from appliance.errors import ConfigInvalid, IntegrityError
from appliance.events.model import ModelImported
from appliance.flows import catalog
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.rows import ModelRow

ROW = ModelRow(
    id="m", sha256="22" * 32, source_format="safetensors", source_sha256="33" * 32, architecture="x", parameters=10,
    licence="mit", has_chat_template=True, files="[]", shapes="{}", state="active",
)  # fmt: skip


def note(ledger: Ledger, actor: Actor, **found: Any) -> None:
    shared = ("sha256", "source_format", "source_sha256", "architecture", "parameters", "licence", "has_chat_template")
    facts = {name: getattr(ROW, name) for name in shared}
    with ledger.transaction(actor) as tx:
        tx.append(ModelImported(model_id="m", **facts, isolation={}, libraries={}, **found))


def test_an_entry_of_an_earlier_release_refuses_nothing(ledger: Ledger, actor: Actor) -> None:
    note(ledger, actor)
    assert catalog.imported(ledger, ROW).trained is None
    catalog.require_trainable(ledger, ROW, "nf4")


def test_the_newest_entry_counts(ledger: Ledger, actor: Actor) -> None:
    note(ledger, actor)
    note(ledger, actor, trained={"float32": "", "nf4": "its layers are round"})
    catalog.require_trainable(ledger, ROW, "float32")
    catalog.require_trainable(ledger, ROW, "int8")  # was not tried
    with pytest.raises(ConfigInvalid, match="model m cannot be trained in nf4: its layers are round"):
        catalog.require_trainable(ledger, ROW, "nf4")


def test_an_entry_of_another_model_says_nothing(ledger: Ledger, actor: Actor) -> None:
    with pytest.raises(IntegrityError, match="no entry"):
        catalog.imported(ledger, ROW)


def test_a_plan_says_which_conversations_are_carried() -> None:
    found = {"one turn": True, "a system message": False}
    assert planning.template({}, "base") == []
    assert planning.template({"one turn": True}, "base") == ["carries every shape of conversation that was tried"]
    kept, left, _ = planning.template(found, "base")
    assert kept == "carries one turn"
    assert left.startswith("conversations with a system message are not learned from; template.from: fallback")
    assert "become plain text" in planning.template(found, "fallback")[1]
