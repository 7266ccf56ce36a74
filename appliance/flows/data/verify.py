"""`data verify`: are the sealed objects what the ledger says? Needs no key."""

from __future__ import annotations

from appliance.errors import IntegrityError
from appliance.flows.catalog import find_dataset
from appliance.flows.home import Home
from appliance.ledger.rows import DatasetRow
from appliance.store import container


def verify(home: Home, named: str | None) -> list[DatasetRow]:
    """Compare the objects of one dataset, or of all, with their digests in the ledger.

    Raises:
      IntegrityError: naming the first bad chunk.
    """
    with home.rows() as rows:
        chosen = [find_dataset(rows, named)] if named else list(rows.datasets.list())
    for row in chosen:
        for digest in (row.object_blake3, row.fingerprints_blake3):
            path = home.object(digest)
            if not path.exists():
                raise IntegrityError(f"the sealed object of {row.name} is gone", where=str(path))
            container.scrub(path, digest)
    return chosen
