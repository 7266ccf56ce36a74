"""A Hugging Face model directory from outside: what is in it, what is refused, and which of its files are taken.

Only the top level is looked at; sub-directories are never entered. Whatever could run code when a library opens it is
refused rather than skipped, so that nobody believes it was imported.
"""

from __future__ import annotations

import re
import stat
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from appliance.errors import ArtefactMissing, DataInvalid
from appliance.models.extent import check_extent
from appliance.models.foreign_json import MAX_BYTES, read_object
from appliance.models.safetensors_file import read_header

SINGLE = "model.safetensors"
CONFIG, MAX_CONFIG = "config.json", 1 << 20
INDEX = "model.safetensors.index.json"
TAKEN = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "README.md",
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib")
CODE = ("*.py", "*.pyc", "*.so")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
REMOTE_KEYS = ("auto_map", "custom_pipelines", "transformers_weights", "fusion_config", "kernel_config")
QUANTISED_KEYS = ("quantization_config", "compression_config")
README_BYTES = 65536


def select_files(source: Path) -> tuple[str, ...]:
    """Name the files of `source` that make up the model, sorted, after all checks that need no weights.

    Raises:
      ArtefactMissing: no config, weights or tokenizer, or the weight index names a file that is not there.
      DataInvalid: pickled weights, code, a reference to code elsewhere, a link out of the directory, or something that
        is not a regular file.
    """
    names = sorted(entry.name for entry in source.iterdir())
    for name in names:
        _check_entry(source, name)
    if "config.json" not in names:
        raise ArtefactMissing("there is no config.json", where=str(source))
    files = [name for name in names if any(fnmatchcase(name, pattern) for pattern in TAKEN) and _is_file(source, name)]
    for name in files:
        if name.endswith("config.json"):
            most = MAX_BYTES if name.startswith("tokenizer") else MAX_CONFIG
            _check_config(read_object(source / name, most), name)
    if not any(name in files for name in TOKENIZERS):
        raise ArtefactMissing("there is no tokenizer", hint="a tokenizer.json belongs to the model", where=str(source))
    return tuple(sorted({*files, *_weight_files(source, names)}))


def check_weights(directory: Path) -> None:
    """Check every safetensors header of a copied model, the index and the configuration against the headers.

    Raises:
      DataInvalid: a header lies (see `safetensors_file.read_header`), a tensor is not where the index says, or the
        configuration asks for more than the tensors can fill (see `extent.check_extent`).
    """
    weight_map = _weight_map(directory / INDEX) if (directory / INDEX).exists() else {}
    headers = {name: read_header(directory / name) for name in sorted({*weight_map.values()} or {SINGLE})}
    check_extent(read_object(directory / CONFIG, MAX_CONFIG), sum(map(len, headers.values())), CONFIG)
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            raise DataInvalid(f"tensor {tensor!r} is not in {name}, where the index says it is", where=INDEX)


def licence_of(directory: Path) -> str:
    """Read the licence stated in the front matter of README.md, or "unknown".

    For `license: other` the `license_name` is returned where there is one.
    """
    readme = directory / "README.md"
    if not readme.exists():
        return "unknown"
    with readme.open("rb") as stream:
        text = stream.read(README_BYTES).decode("utf-8", errors="replace").replace("\r\n", "\n")
    matter = re.match(r"\A---\n(.*?)\n---(?:\n|\Z)", text, re.DOTALL)
    if matter is None:
        return "unknown"
    stated = dict(re.findall(r"^(license|license_name):[ \t]*(\S[^\n]*?)[ \t]*$", matter[1], re.MULTILINE))
    licence = stated.get("license", "unknown")
    return plain_licence(stated.get("license_name", licence) if licence == "other" else licence)


def plain_licence(stated: object) -> str:
    """Take `stated` without quotes if it is a plain short name, else "unknown": it goes into ledger and reports."""
    name = str(stated).strip("\"'")
    return name if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .+_-]{0,63}", name) else "unknown"


def _check_entry(source: Path, name: str) -> None:
    path, where = source / name, str(source / name)
    if path.is_symlink() and not path.resolve().is_relative_to(source.resolve()):
        raise DataInvalid(
            "a link that leaves the model's directory",
            hint="copy the model with its links resolved: cp -rL",
            where=where,
        )
    lower = name.lower()
    if any(fnmatchcase(lower, pattern) for pattern in PICKLES):
        raise DataInvalid(
            "pickled weights can run code when they are opened, only safetensors is read",
            hint="delete it from a copy of the directory, or have the model converted to safetensors",
            where=where,
        )
    if any(fnmatchcase(lower, pattern) for pattern in CODE):
        raise DataInvalid(
            "code that comes with a model is never run",
            hint="delete it and `auto_map` from a copy of the directory, if transformers knows the architecture itself",
            where=where,
        )


def _is_file(source: Path, name: str) -> bool:
    try:
        mode = (source / name).stat().st_mode
    except OSError as error:
        raise DataInvalid("cannot be read", where=str(source / name)) from error
    if not stat.S_ISREG(mode):
        raise DataInvalid("not a regular file", where=str(source / name))
    return True


def _check_config(value: Any, name: str) -> None:
    """Refuse, at any depth, what makes transformers look for code or weights elsewhere."""
    pending: list[Any] = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, list):
            pending.extend(item)
        if not isinstance(item, dict):
            continue
        for key, child in item.items():
            if key in QUANTISED_KEYS and child:
                raise DataInvalid(
                    "the weights are quantised already, which training cannot start from",
                    hint="import the model's bfloat16 or float32 weights",
                    where=name,
                )
            # transformers takes an implementation with a slash in its name for a kernel to download.
            fetched = "_implementation" in key and "/" in str(child)
            if fetched or (key in REMOTE_KEYS and child):
                raise DataInvalid(
                    f"{key!r} makes the model depend on code or weights from elsewhere",
                    hint="delete it from a copy of the directory, if transformers knows the architecture itself",
                    where=name,
                )
            pending.append(child)


def _weight_files(source: Path, names: list[str]) -> tuple[str, ...]:
    """Find the weight files: one file, or an index and what it names. Where both lie there one may be out of date."""
    single = SINGLE in names and _is_file(source, SINGLE)
    indexed = INDEX in names and _is_file(source, INDEX)
    if single and indexed and set(_weight_map(source / INDEX).values()) != {SINGLE}:
        raise DataInvalid(
            f"there are two sets of weights: {SINGLE}, and what {INDEX} names",
            hint="delete the one that is out of date from a copy of the directory",
            where=str(source),
        )
    if single:
        _refuse_others(source, names, {SINGLE})
        return (SINGLE,)
    if not indexed:
        raise ArtefactMissing(f"there is neither {SINGLE} nor {INDEX}", where=str(source))
    shards = sorted(set(_weight_map(source / INDEX).values()))
    for shard in shards:
        if shard not in names:
            raise ArtefactMissing(f"the weights {shard!r} are named by the index but are not here", where=str(source))
        _is_file(source, shard)
    _refuse_others(source, names, {*shards})
    return (INDEX, *shards)


def _refuse_others(source: Path, names: list[str], taken: set[str]) -> None:
    """Refuse weights beside those that are read, but for the copy of the whole model that Mistral's own tools read."""
    for name in names:
        if name.lower().endswith(".safetensors") and name not in taken and not name.startswith("consolidated"):
            raise DataInvalid(
                f"the weights {name!r} are no part of what is read",
                hint="delete them from a copy of the directory, or merge them into the model if they are an adapter",
                where=str(source),
            )


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataInvalid("the index has no weight map", where=INDEX)
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise DataInvalid("the index names something that is not a safetensors file beside it", where=INDEX)
    return weight_map
