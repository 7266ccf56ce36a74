"""What is said of sealed directories: what left the building, and what was shown to auditors."""

from __future__ import annotations

from typing import ClassVar

from appliance.events.event import Digest, Event, Id, Refusal, Text, Whole


class ReportBuilt(Event):
    """A report of a run was sealed."""

    type: ClassVar[str] = "report.built"
    about: ClassVar[str] = "report_id"

    report_id: Id
    run_id: Id
    manifest_sha256: Digest
    tree_size: Whole
    root: Digest


class BundleExported(Event):
    """The marked adapter of a run was sealed with its proofs, to be handed out."""

    type: ClassVar[str] = "bundle.exported"
    about: ClassVar[str] = "bundle_id"

    bundle_id: Id
    run_id: Id
    manifest_sha256: Digest
    recipient: Text | None
    released_sha256: Digest


class ExportRefused(Refusal):
    """A run's adapter was not exported."""

    type: ClassVar[str] = "export.refused"
