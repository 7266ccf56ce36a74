"""`model import`: a foreign model becomes a base model. Foreign files are parsed only inside a worker's sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import orjson

from appliance.errors import ApplianceError, ArtefactMissing, UsageError
from appliance.events.model import ModelImported, ModelRefused
from appliance.events.states import CatalogState
from appliance.files import commit, fsync_tree
from appliance.flows import catalog, launch, orphans
from appliance.flows.catalog import imported
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator
from appliance.flows.passing import passing_directory
from appliance.jobs.job import IsolationSpec
from appliance.jobs.model_import import ImportJob, ImportResult
from appliance.jobs.rundir import RunDir
from appliance.ledger.rows import ModelRow
from appliance.names import require_word
from appliance.store.trees import tree_digest, verify_tree


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
      UsageError: the name is not a word, or taken.
      ArtefactMissing: `source` or a file that it names is not there.
      DataInvalid: pickle weights, remote code, damaged weights.
    """
    require_word(name, "model")
    source = source.absolute()
    if not source.exists():
        raise ArtefactMissing(f"no model at {source}", hint="give a directory with safetensors, or a GGUF file")
    with orphans.tidied(home, home.models), Desk.open(home, operator) as desk:
        policy = desk.policy
        refusals = desk.refusals(ModelRefused, ApplianceError, policy_sha256=policy.digest)
        with refusals, passing_directory(home, "import") as run_dir:
            result = _convert(run_dir, source, policy.rules().isolation)
            with desk.ledger.read() as rows:
                known = {row.sha256: row for row in rows.models.list()}
            if result.sha256 in known:
                row = known[result.sha256]
                if imported(desk.ledger, row).trained is None:  # by a release that did not try it
                    desk.record(_describe(row, result), policy.digest)
                return Imported(model=row, already=True)
            if name in {row.id for row in known.values()}:
                raise UsageError(f"a model named {name} exists", hint="choose another name with --name")
            model = _row(name, result)
            _place(home, run_dir, result)
            with desk.decide(policy) as tx:
                if (same := next((row for row in tx.models.list() if row.sha256 == model.sha256), None)) is not None:
                    return Imported(model=same, already=True)  # somebody else imported it meanwhile
                tx.models.add(model)
                tx.append(_describe(model, result))
    return Imported(model=model, already=False)


def try_import(home: Home, source: Path, name: str) -> ModelRow:
    """Convert a base model and throw the result away: what `import_model` would make. Nothing is recorded.

    Raises:
      ApplianceError: as `import_model`.
    """
    with home.reader() as ledger:
        policy = catalog.policy_in_force(ledger)
        with ledger.read() as rows:
            taken = {row.id for row in rows.models.list()}
    if name in taken:
        raise UsageError(f"a model named {name} exists", hint="choose another name with --name")
    with passing_directory(home, "import") as run_dir:
        return _row(name, _convert(run_dir, source.absolute(), policy.rules().isolation))


def _convert(run_dir: RunDir, source: Path, isolation: IsolationSpec) -> ImportResult:
    job = ImportJob(
        run_id=run_dir.name,
        source=str(source),
        output_dir=str(run_dir.path / "model"),
        isolation=isolation,
    )
    run_dir.write_job(job)
    with launch.supervising(run_dir):
        return launch.run_worker(run_dir, ImportResult, within_s=launch.time_for(source))


def _place(home: Home, run_dir: RunDir, result: ImportResult) -> None:
    """Move the converted model to its name; its digest is taken again here, the worker's word is not enough."""
    output = run_dir.path / "model"
    verify_tree(output, result.files)
    digest, _ = tree_digest(output)
    if digest != result.sha256:
        raise ApplianceError("the worker's digest of the model is wrong")
    fsync_tree(output)
    target = home.model(result.sha256)
    try:
        commit(output, target)
    except UsageError:
        verify_tree(target, result.files)  # somebody else imports the same at this moment


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


def _describe(model: ModelRow, result: ImportResult) -> ModelImported:
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
        trained=dict(result.trained),
        numbers=dict(result.numbers),
        conversations=dict(result.conversations),
    )
