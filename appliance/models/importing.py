"""A model from removable media becomes a base model: a directory of safetensors and tokenizer files, all checked."""

from __future__ import annotations

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import rfc8785

from appliance.errors import ArtefactMissing, DataInvalid, UsageError, WillNotFit
from appliance.models import directory
from appliance.models.conversion import convert
from appliance.models.loading import inspect
from appliance.models.offline import NO_SPACE
from appliance.models.stored import check_finite, find_stored

_WRITERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What was imported.

    Attributes:
      architecture: class of the model, such as "LlamaForCausalLM".
      parameters: number of parameters, shared ones counted once.
      licence: as the model's metadata states it, or "unknown".
      has_chat_template: whether the tokenizer brings a chat template.
      shapes: (out_features, in_features) of every linear module of the decoder and of the head, by module name.
      numbers: sizes, as transformers names them.
      source_format: "safetensors" or "gguf".
      source_sha256: of a GGUF file its SHA-256; of a directory the SHA-256 of the canonical JSON (RFC 8785) of
        `[[name, bytes, sha256], ...]` over the files taken, sorted by name.
    """

    architecture: str
    parameters: int
    licence: str
    has_chat_template: bool
    shapes: dict[str, tuple[int, int]]
    numbers: dict[str, int]
    source_format: Literal["safetensors", "gguf"]
    source_sha256: str


def import_model(source: Path, output: Path) -> Imported:
    """Check a foreign model and write it to `output`; `source` is only read, nothing is fetched, no code is run.

    Args:
      source: a Hugging Face directory with safetensors weights, or a GGUF file.
      output: the directory to write; absent or empty. After a failure it may hold a part and is to be discarded.

    Raises:
      ArtefactMissing: the source, its config, weights or tokenizer are not there.
      DataInvalid: the source is refused; the message says why.
      UsageError: `output` is in use.
      WillNotFit: memory or disk does not suffice.
    """
    try:
        return _import(source.resolve(), output)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise WillNotFit("the disk is full", where=str(output)) from error
        raise DataInvalid(f"cannot be read or written ({error.strerror})", where=str(error.filename)) from error


def _import(source: Path, output: Path) -> Imported:
    output.mkdir(mode=0o700, exist_ok=True)
    if any(output.iterdir()):
        raise UsageError("the output directory is not empty", where=str(output))
    source_format: Literal["safetensors", "gguf"]
    if source.is_dir():
        source_format = "safetensors"
        source_sha256, licence = _take_directory(source, output)
    elif source.is_file():
        source_format = "gguf"
        source_sha256, licence = _take_gguf(source, output)
    else:
        raise ArtefactMissing("there is no such file or directory", where=str(source))
    structure = inspect(output)
    check_finite(find_stored(output))
    return Imported(
        architecture=structure.architecture,
        parameters=structure.parameters,
        licence=licence,
        has_chat_template=structure.has_chat_template,
        shapes=structure.shapes,
        numbers=structure.numbers,
        source_format=source_format,
        source_sha256=source_sha256,
    )


def _take_directory(source: Path, output: Path) -> tuple[str, str]:
    names = directory.select_files(source)
    needed = sum((source / name).stat().st_size for name in names)
    if needed > shutil.disk_usage(output).free:
        raise WillNotFit(f"the model takes {needed} bytes, more than the disk has free", where=str(output))
    with ThreadPoolExecutor(max_workers=_WRITERS) as pool:  # copying and hashing leave the interpreter alone
        rows = list(pool.map(lambda name: _copy(source / name, output / name), names))
    # What counts is what was copied: the medium may have answered differently the second time.
    if directory.select_files(output) != names:
        raise DataInvalid("the source changed while it was copied", where=str(source))
    directory.check_weights(output)
    return hashlib.sha256(rfc8785.dumps(rows)).hexdigest(), directory.licence_of(output)


def _copy(source: Path, target: Path) -> list[str | int]:
    """Copy the bytes alone, with no permissions or links; returns the row for the digest."""
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
    return [target.name, target.stat().st_size, _sha256(target)]


def _take_gguf(source: Path, output: Path) -> tuple[str, str]:
    header = convert(source, output)
    return _sha256(source), directory.plain_licence(header.metadata.get("general.license", "unknown"))


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
