"""A conversion: the marked adapter merged into its base, quantised, and compared on public text with what it was.

No key and no private record: the adapter is a differentially private release, and the mark in it goes along.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import IntegrityError, PolicyDenied
from appliance.files import fsync_tree, make_directory
from appliance.jobs.conversion import Comparison, ConvertJob, ConvertResult
from appliance.jobs.rundir import RunDir
from appliance.jobs.variants import MARKED
from appliance.store.trees import tree_digest
from appliance.values import decimal
from appliance.worker import confinement
from appliance.worker.variants import enter, open_variants

if TYPE_CHECKING:
    from appliance.evaluate.predictions import Predictions

JOB = ConvertJob
_BFLOAT16 = 2


def run(job: ConvertJob, run_dir: RunDir) -> ConvertResult:
    """Make the artefact in `job.output_dir`."""
    isolation = enter(job, run_dir)
    from appliance.models.merging import is_four_bit, merge
    from appliance.watermark.adapters import read_adapter

    base, adapter, output = _checked(job), *_places(job)
    factors = read_adapter(adapter)
    merged = output if job.format == "merged" else run_dir.path / "merged"
    make_directory(merged)
    pairs = {name: (factors.a[name], factors.b[name]) for name in factors.names}
    count = merge(base, pairs, factors.scale, merged)
    if job.format != "merged":
        make_directory(output)
        _quantise(job, merged, output)
    comparison = _compare(job, merged, output, run_dir) if job.predictions else None
    run_dir.clear(*(path for path in (run_dir.path / "merged", run_dir.path / "again") if path != output))
    fsync_tree(output)
    return ConvertResult(
        run_id=job.run_id,
        artefact_sha256=tree_digest(output)[0],
        bytes=_weight_bytes(output),
        bytes_bfloat16=count * _BFLOAT16,
        base_four_bit=is_four_bit(base, pairs),
        comparison=comparison,
        isolation=isolation,
        libraries=confinement.libraries(),
    )


def _checked(job: ConvertJob) -> Path:
    if tree_digest(Path(job.model_dir))[0] != job.model_sha256:
        raise IntegrityError("the base model is not the one of the job", where=job.model_dir)
    return Path(job.model_dir)


def _places(job: ConvertJob) -> tuple[Path, Path]:
    if MARKED not in job.adapters:
        raise PolicyDenied("only a marked adapter is merged")
    directory, sha256 = job.adapters[MARKED]
    if tree_digest(directory)[0] != sha256:
        raise IntegrityError("the adapter is not the one of the job", where=str(directory))
    return directory, Path(job.output_dir)


def _quantise(job: ConvertJob, merged: Path, output: Path) -> None:
    from appliance.models.gguf_writing import write_gguf
    from appliance.models.packing import pack

    match job.format:
        case "int8" | "nf4":
            pack(merged, job.format, output)
        case "gguf-q8_0":
            write_gguf(merged, "q8_0", output, job.name, job.licence)
        case "gguf-q4_1":
            write_gguf(merged, "q4_1", output, job.name, job.licence)
        case "gguf-q4_0":
            write_gguf(merged, "q4_0", output, job.name, job.licence)


def _weight_bytes(output: Path) -> int:
    return sum(path.stat().st_size for path in output.iterdir() if path.suffix in (".safetensors", ".gguf"))


# --- what it changed ------------------------------------------------------------------------------------------------


def _compare(job: ConvertJob, merged: Path, output: Path, run_dir: RunDir) -> Comparison:
    """Compare a merged model with its adapter beside the base, and a quantised one with the merged model."""
    from appliance.evaluate import public_text
    from appliance.evaluate.predictions import shift

    if job.format == "merged":
        before, after = _beside(job), _predict(job, merged, run_dir)
    else:
        before, after = _predict(job, merged, run_dir), _predict(job, output, run_dir)
    found = shift(before, after)
    numbers = {
        "accuracy_before": before.accuracy,
        "accuracy_after": after.accuracy,
        "change": found.points,
        "low": found.low,
        "high": found.high,
        "agreement": found.agreement,
        "loss_before": float(before.loss.mean()),
        "loss_after": float(after.loss.mean()),
    }
    return Comparison(
        against="adapter beside its base" if job.format == "merged" else "merged model",
        predictions=before.right.size,
        text_sha256=public_text.digest(),
        **{name: decimal(round(value, 6)) for name, value in numbers.items()},
    )


def _beside(job: ConvertJob) -> Predictions:
    opened = open_variants(job)
    opened.variants.use(MARKED)
    return _predictions(job, opened.variants.model, opened.tokenizer)


def _predict(job: ConvertJob, directory: Path, run_dir: RunDir) -> Predictions:
    """Open what was made as its users will; a GGUF file is read by the importer, which knows nothing of its writing."""
    import torch

    from appliance.models.gguf_writing import NAME
    from appliance.models.loading import load
    from appliance.models.packing import open_packed

    if (directory / NAME).exists():
        from appliance.models.conversion import convert

        again = run_dir.path / "again"
        make_directory(again)
        convert(directory / NAME, again)
        directory = again
    if job.format in ("int8", "nf4") and directory == Path(job.output_dir):
        model, tokenizer = open_packed(directory, job.engine.device)
    else:
        model, tokenizer = load(directory, getattr(torch, job.engine.dtype))
        model.to(job.engine.device)
    return _predictions(job, model, tokenizer)


def _predictions(job: ConvertJob, model: Any, tokenizer: Any) -> Predictions:
    from appliance.evaluate.predictions import predict
    from appliance.evaluate.utility import blocks
    from appliance.train.adapting import body
    from appliance.train.logits import find_logits

    inner = body(model)
    return predict(inner, find_logits(model, inner), blocks(tokenizer, job.predictions))
