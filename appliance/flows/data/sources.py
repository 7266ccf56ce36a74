"""How foreign files are read, from what the operator said about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from appliance.errors import UsageError
from appliance.ingest.spec import IngestSpec
from appliance.jobs.plan import UnitKind, UnitOfPrivacy

FORMATS = ("jsonl", "csv", "tsv", "text")
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".txt": "text", ".md": "text"}


def spec_for(
    paths: Sequence[Path],
    format_name: str,
    *,
    prompt: str = "",
    completion: str = "",
    text: str = "",
    subject: str = "",
    max_records: int = 1,
    unescape_html: bool = False,
    keep: Sequence[str] = (),
) -> IngestSpec:
    """Choose the reading rules for `paths`; format "auto" goes by the first file's suffix.

    Raises:
      UsageError: the format cannot be told, or the columns named do not fit together.
    """
    if format_name == "auto":
        format_name = _by_suffix(paths[0])
    unit = UnitOfPrivacy(
        kind=UnitKind.SUBJECT if subject else UnitKind.RECORD,
        key=subject or None,
        max_records=max_records if subject else 1,
    )
    if format_name not in FORMATS:
        raise UsageError(f"no format {format_name}", hint=f"one of: auto, {', '.join(FORMATS)}")
    return IngestSpec(
        format=format_name,  # type: ignore[arg-type]
        prompt=prompt or None,
        completion=completion or None,
        text=text or None,
        unit=unit,
        unescape_html=unescape_html,
        keep=tuple(keep),
    )


def _by_suffix(path: Path) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    try:
        return SUFFIXES[suffix.lower()]
    except KeyError:
        raise UsageError(f"cannot tell the format of {path.name}", hint="say it with --format") from None
