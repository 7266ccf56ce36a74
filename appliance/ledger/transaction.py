"""A transaction: rows are staged through gateways and commit only together with the entry that covers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from appliance.errors import ApplianceError
from appliance.events.event import Event
from appliance.ledger.gateways import Covered, Gateway, WritableGateway
from appliance.ledger.leaf import new_event_id
from appliance.ledger.log import Appender, Context, Head
from appliance.ledger.rows import DatasetRow, EvaluationRow, ModelRow, PolicyRow, RunRow, WatermarkKeyRow


class Reading:
    """The catalog in one snapshot, for reading.

    Args:
      connection: the snapshot.
      covered: what its rows are compared with; None believes the database.
    """

    def __init__(self, connection: Connection, covered: Covered | None) -> None:
        self.datasets = Gateway(connection, DatasetRow, covered)
        self.models = Gateway(connection, ModelRow, covered)
        self.runs = Gateway(connection, RunRow, covered)
        self.policies = Gateway(connection, PolicyRow, covered)
        self.evaluations = Gateway(connection, EvaluationRow, covered)
        self.watermark_keys = Gateway(connection, WatermarkKeyRow, covered)


class Transaction:
    """What `Ledger.transaction` hands out.

    Attributes:
      datasets, models, runs, policies, evaluations, watermark_keys: gateways; changes are staged until `append`.
    """

    def __init__(self, connection: Connection, context: Context, covered: Covered) -> None:
        self._connection = connection
        self._context = context
        self._before = covered
        self._written: dict[str, dict[str, str]] = {}  # the rows of this transaction, by table and key: their digests
        self._appender: Appender | None = None
        self.datasets = WritableGateway(connection, DatasetRow, self._covered, self._permit)
        self.models = WritableGateway(connection, ModelRow, self._covered, self._permit)
        self.runs = WritableGateway(connection, RunRow, self._covered, self._permit)
        self.policies = WritableGateway(connection, PolicyRow, self._covered, self._permit)
        self.evaluations = WritableGateway(connection, EvaluationRow, self._covered, self._permit)
        self.watermark_keys = WritableGateway(connection, WatermarkKeyRow, self._covered, self._permit)

    def append(self, event: Event) -> int:
        """Write the staged rows and the entry that covers them; no row can be changed after it.

        Returns:
          The index of the entry. It holds once the transaction is left without an exception.

        Raises:
          LeafInvalid: the entry would be too long.
        """
        event_id = new_event_id()
        rows: list[dict[str, str]] = []
        if self._appender is None:  # later there are none: see `_permit`
            flushed = [gateway.flush(event_id) for gateway in self._gateways() if gateway.dirty]
            statements = [statement for written, _ in flushed for statement in written]
            rows = [row for _, covered in flushed for row in covered]
            self._appender = Appender(self._connection, self._context, statements)
        for row in rows:
            self._written.setdefault(row["table"], {})[row["key"]] = row["sha256"]
        return self._appender.append(event, event_id=event_id, rows=rows)

    def finish(self) -> Head | None:
        """End the block that was left without an exception.

        Returns:
          The log's end as it is now; None where nothing was written.

        Raises:
          ApplianceError: rows were changed without an event.
        """
        if any(gateway.dirty for gateway in self._gateways()):
            raise ApplianceError("rows were changed without an event; nothing was written")
        return self._appender.flush() if self._appender is not None else None

    def _covered(self, table: str) -> Mapping[str, str]:
        """Say which rows a table has: by the log as it was when the transaction began, and by what it has written."""
        before, written = self._before(table), self._written.get(table)
        return before if written is None else {**before, **written}

    def _gateways(self) -> tuple[WritableGateway[Any], ...]:
        return tuple(value for value in vars(self).values() if isinstance(value, WritableGateway))

    def _permit(self) -> None:
        if self._appender is not None:
            raise ApplianceError("rows cannot be changed after the event of their transaction")
