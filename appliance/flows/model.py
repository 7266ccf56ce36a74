"""`model`: import, list, verify. Foreign model files are parsed only inside a worker's sandbox."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from appliance.errors import ApplianceError, ArtefactMissing, UsageError
from appliance.events.model import ModelImported, ModelRefused
from appliance.events.states import CatalogState
from appliance.files import commit, fsync_tree
from appliance.flows import launch
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.policy import active
from appliance.flows.refusals import refusals_recorded
from appliance.jobs.job import IsolationSpec
from appliance.jobs.model_import import ImportJob, ImportResult
from appliance.jobs.rundir import RunDir
from appliance.ledger.rows import ModelRow
from appliance.store.trees import tree_digest, verify_tree
from appliance.values import FileDigest


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """A base model in the home; `already` says that the same bytes were here before."""

    model: ModelRow
    already: bool


def import_model(home: Home, source: Path, name: str, operator: Operator) -> Imported:
    """Copy or convert a base model into the home: safetensors only, every file digested.

    Args:
      home: the appliance's home.
      source: a Hugging Face directory with safetensors weights, or a GGUF file.
      name: the identifier by which runs name it.
      operator: who asks.

    Raises:
      ArtefactMissing: `source` or a file that it names is not there.
      DataInvalid: pickle weights, remote code, damaged weights.
    """
    source = source.absolute()
    if not source.exists():
        raise ArtefactMissing(f"no model at {source}", hint="give a directory with safetensors, or a GGUF file")
    with home.ledger() as ledger:
        actor = home.actor(operator)
        row, policy = active(ledger)
        with ledger.read() as rows:
            known = list(rows.models.list())
        run_dir = home.run(new_id("import"))
        try:
            with refusals_recorded(ledger, actor, ModelRefused, ApplianceError, policy_sha256=row.sha256):
                result = _convert(run_dir, source, policy.rules().isolation)
                same = [model for model in known if model.sha256 == result.sha256]
                if same:
                    return Imported(model=same[0], already=True)
                if name in {model.id for model in known}:
                    raise UsageError(f"a model named {name} exists", hint="choose another name with --name")
                model = _row(name, result)
                _place(home, run_dir, result)
                with ledger.transaction(actor, reason=operator.reason or None, policy_sha256=row.sha256) as tx:
                    tx.models.add(model)
                    tx.append(_imported(model, result))
        finally:
            shutil.rmtree(run_dir.path, ignore_errors=True)
    return Imported(model=model, already=False)


def _convert(run_dir: RunDir, source: Path, isolation: IsolationSpec) -> ImportResult:
    run_dir.path.mkdir(mode=0o700)
    job = ImportJob(
        run_id=run_dir.name,
        source=str(source),
        output_dir=str(run_dir.path / "model"),
        isolation=isolation,
    )
    run_dir.write_job(job)
    with launch.supervising(run_dir):
        return launch.run_worker(run_dir, ImportResult)


def _place(home: Home, run_dir: RunDir, result: ImportResult) -> None:
    """Move the converted model to its name; its digest is taken again here, the worker's word is not enough."""
    output = run_dir.path / "model"
    verify_tree(output, result.files)
    digest, _ = tree_digest(output)
    if digest != result.sha256:
        raise ApplianceError("the worker's digest of the model is wrong")
    fsync_tree(output)
    target = home.models / result.sha256
    if target.exists():
        verify_tree(target, result.files)  # litter of an import that was cut short before its row
    else:
        commit(output, target)


def _row(name: str, result: ImportResult) -> ModelRow:
    return ModelRow(
        id=name,
        sha256=result.sha256,
        source_format=result.source_format,
        source_sha256=result.source_sha256,
        architecture=result.architecture,
        parameters=result.parameters,
        licence=result.licence,
        has_chat_template=result.has_chat_template,
        files=orjson.dumps([file.model_dump() for file in result.files]).decode(),
        shapes=orjson.dumps(result.shapes).decode(),
        state=CatalogState.ACTIVE,
    )


def _imported(model: ModelRow, result: ImportResult) -> ModelImported:
    return ModelImported(
        model_id=model.id,
        sha256=model.sha256,
        source_format=model.source_format,
        source_sha256=model.source_sha256,
        architecture=model.architecture,
        parameters=model.parameters,
        licence=model.licence,
        has_chat_template=model.has_chat_template,
        isolation=result.isolation.model_dump(),
        libraries=dict(result.libraries),
    )


def models(home: Home) -> list[ModelRow]:
    """`model list`."""
    with home.ledger(writable=False) as ledger, ledger.read() as rows:
        return list(rows.models.list())


def find(rows: Sequence[ModelRow], name_or_digest: str) -> ModelRow:
    """The base model with this name or digest; `ArtefactMissing` if there is none."""
    for row in rows:
        if name_or_digest in (row.id, row.sha256):
            return row
    raise ArtefactMissing(f"no model {name_or_digest}", hint="import it first: `appliance model import PATH`")


def directory(home: Home, row: ModelRow) -> Path:
    """Where the files of a base model lie."""
    return home.models / row.sha256


def verify(home: Home, name: str | None) -> list[ModelRow]:
    """`model verify`: compare every file of the base models with the digests in the ledger.

    Raises:
      IntegrityError: naming the first bad file.
      ArtefactMissing: a model's directory is gone.
    """
    rows = models(home)
    chosen = [find(rows, name)] if name else rows
    for row in chosen:
        check_files(home, row)
    return chosen


def check_files(home: Home, row: ModelRow) -> None:
    """Raise unless every file of one base model is what the ledger says."""
    where = directory(home, row)
    if not where.is_dir():
        raise ArtefactMissing(f"the files of model {row.id} are gone", where=str(where))
    verify_tree(where, [FileDigest.model_validate(file) for file in orjson.loads(row.files)])
