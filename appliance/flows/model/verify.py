"""`model verify`: are the files of the base models what the ledger says?"""

from __future__ import annotations

import orjson

from appliance.errors import ArtefactMissing
from appliance.flows.catalog import find_model
from appliance.flows.home import Home
from appliance.ledger.rows import ModelRow
from appliance.store.trees import verify_tree
from appliance.values import FileDigest


def verify(home: Home, named: str | None) -> list[ModelRow]:
    """Compare every file of one base model, or of all, with its digest in the ledger.

    Raises:
      IntegrityError: naming the first bad file.
      ArtefactMissing: a model's directory is gone.
    """
    with home.rows() as rows:
        chosen = [find_model(rows, named)] if named else list(rows.models.list())
    for row in chosen:
        check_files(home, row)
    return chosen


def check_files(home: Home, row: ModelRow) -> None:
    """Raise unless every file of one base model is what the ledger says."""
    where = home.model(row.sha256)
    if not where.is_dir():
        raise ArtefactMissing(f"the files of model {row.id} are gone", where=str(where))
    verify_tree(where, [FileDigest.model_validate(file) for file in orjson.loads(row.files)])
