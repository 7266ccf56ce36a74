"""A model import: a foreign directory or GGUF file in, a verified safetensors directory out, its architecture tried."""

from __future__ import annotations

from pathlib import Path

from appliance.files import fsync_tree
from appliance.isolation import process
from appliance.jobs.model_import import ImportJob, ImportResult
from appliance.jobs.rundir import RunDir
from appliance.store.trees import tree_digest
from appliance.worker import confinement
from appliance.worker.trial import try_architecture

JOB = ImportJob
_MEMORY = 4 << 30  # bytes; importing torch and transformers takes 0.4 GiB of it, the weights are copied
_GROWTH = 40  # a GGUF file is held in float32, which is up to 21 times as large, and is written from there


def run(job: ImportJob, run_dir: RunDir) -> ImportResult:
    """Import `job.source` into `job.output_dir`."""
    source, output = Path(job.source), Path(job.output_dir)
    process.limit_memory(_memory_for(source))
    isolation = confinement.enter(job.isolation, run_dir, source)
    from appliance.models.importing import import_model
    from appliance.models.loading import load_tokenizer
    from appliance.train.templates import probe

    made = import_model(source, output)
    trained = try_architecture(output, made.parameters)
    fsync_tree(output)
    digest, files = tree_digest(output)
    return ImportResult(
        run_id=job.run_id,
        sha256=digest,
        files=files,
        source_format=made.source_format,
        source_sha256=made.source_sha256,
        architecture=made.architecture,
        parameters=made.parameters,
        licence=made.licence,
        has_chat_template=made.has_chat_template,
        shapes=made.shapes,
        numbers=made.numbers,
        trained=trained,
        conversations=probe(load_tokenizer(output)),
        isolation=isolation,
        libraries=confinement.libraries(),
    )


def _memory_for(source: Path) -> int:
    return _MEMORY + (_GROWTH * source.stat().st_size if source.is_file() else 0)
