"""`watermark keygen`: a key to which the runs that are reserved from now on are committed."""

from __future__ import annotations

from appliance.events.states import KeyState
from appliance.events.watermark import WatermarkKeyed
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.key import require_unsealed
from appliance.ledger.rows import WatermarkKeyRow
from appliance.store.commitment import commit_to


def keygen(home: Home, operator: Operator) -> WatermarkKeyRow:
    """Draw a watermark key and make it the current one; runs that were reserved before keep theirs.

    Raises:
      KeyUnavailable: the store is sealed.
    """
    require_unsealed(home)
    key_id = new_id("wmk")
    master, wrapped, epoch, _ = home.agent().ingest_keys(key_id)
    row = WatermarkKeyRow(
        id=key_id, commitment=commit_to(master), wrapped_key=wrapped, key_epoch=epoch, state=KeyState.CURRENT
    )
    with Desk.open(home, operator) as desk, desk.transact() as tx:
        for old in tx.watermark_keys.list():
            tx.watermark_keys.update(old, state=KeyState.RETIRED)
        tx.watermark_keys.add(row)
        tx.append(WatermarkKeyed(key_id=row.id, commitment=row.commitment, key_epoch=row.key_epoch))
    return row
