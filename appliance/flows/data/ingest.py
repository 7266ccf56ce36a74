"""`data ingest`: foreign files become a sealed dataset.

Policy first, keys, then the files are read once as a stream and sealed as they are read; the sealed object is
on disk under its final name before the row and its leaf commit. Clear text is only ever in memory.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from appliance.errors import DataInvalid, PolicyDenied, UsageError
from appliance.events.data import DataRefused, DataSealed
from appliance.events.states import CatalogState
from appliance.files import PARTIAL, commit, unswept
from appliance.flows import catalog, orphans
from appliance.flows.data.declaring import Declaration, Part, divide
from appliance.flows.desk import Desk
from appliance.flows.home import Home, Operator, new_id
from appliance.flows.key import require_unsealed
from appliance.ingest.fingerprints import overlap
from appliance.ingest.ingestion import Ingestion, Side
from appliance.ingest.source import BadRow
from appliance.ingest.spec import IngestSpec
from appliance.isolation import process
from appliance.ledger.rows import DatasetRow
from appliance.policy import check
from appliance.policy.policy import Policy
from appliance.privacy.filter import best_order
from appliance.store import container
from appliance.values import decimal

Progress = Callable[[int], None]
Told = Callable[[BadRow], None]
_MEMORY = 2 << 30  # bytes
_GROWTH = 64  # fingerprints of very short records take up to twenty times their size; files may be compressed


class _Material(NamedTuple):
    """What sealing made; `fingerprints` and `seal_key` are private."""

    dataset: DatasetRow
    side: Side | None
    rejected: tuple[BadRow, ...]
    fingerprints: bytes
    seal_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What `data ingest` made. `rejected` is for the person at the terminal only; it holds places, never content."""

    dataset: DatasetRow
    rejected: tuple[BadRow, ...]
    overlaps: tuple[str, ...]


def ingest(
    home: Home,
    paths: Sequence[Path],
    spec: IngestSpec,
    declared: Declaration,
    operator: Operator,
    progress: Progress = lambda records: None,
    told: Told = lambda row: None,
) -> tuple[Ingested, ...]:
    """Read, validate, group and seal foreign files as one dataset; `told` is given each row that is rejected.

    Where a part is held out, the files are read once for each side, and two datasets come to be together or not at all.

    Returns:
      The dataset, and behind it the one that was held out, if any.

    Raises:
      PolicyDenied: the active policy does not allow this class, unit of privacy or declared size.
      DataInvalid: no row is usable, too many are not, or the declared number of units is far off.
      KeyUnavailable: the store is sealed.
    """
    with orphans.tidied(home, home.objects), Desk.open(home, operator) as desk:
        policy, parts = desk.policy, divide(declared)
        with desk.refusals(DataRefused, PolicyDenied, DataInvalid, policy_sha256=policy.digest):
            with desk.ledger.read() as rows:
                known = rows.datasets.list()
            _check_declared(policy, parts, spec, known)
            require_unsealed(home)
            materials = []
            for part in parts:
                tell = told if part is parts[0] else (lambda row: None)  # the same rows are rejected each time
                materials.append(_seal(desk, (paths, spec, tell), part, policy, progress))
        datasets = _book(desk, materials, known, spec, policy)
    return tuple(
        Ingested(dataset=row, rejected=material.rejected, overlaps=tuple(orjson.loads(row.overlaps)))
        for row, material in zip(datasets, materials, strict=True)
    )


def try_ingest(
    home: Home, paths: Sequence[Path], spec: IngestSpec, declared: Declaration, told: Told
) -> tuple[BadRow, ...]:
    """Read files as `ingest` would, and keep nothing; needs no key. `told` is given each row that would be rejected.

    A division of the units takes the key, so both sides are checked by what is declared alone.

    Returns:
      The rows that would be rejected.

    Raises:
      PolicyDenied, DataInvalid, UsageError: as `ingest`, but nothing is recorded.
    """
    with home.reader() as ledger:
        policy = catalog.policy_in_force(ledger)
        with ledger.read() as rows:
            _check_declared(policy, divide(declared), spec, rows.datasets.list())
    ingestion = Ingestion(paths, spec, secrets.token_bytes(32), told)
    with process.growth_limited(memory_for(paths)):
        for _ in ingestion:
            pass
    _check_contents(ingestion, declared, policy)
    return tuple(ingestion.rejected)


def _check_declared(policy: Policy, parts: Sequence[Part], spec: IngestSpec, known: Sequence[DatasetRow]) -> None:
    for declared, _ in parts:
        check.check_ingest(policy, declared.class_name, spec.unit, declared.units)
        _require_free_name(declared.name, known)


def _require_free_name(name: str, known: Sequence[DatasetRow]) -> None:
    if name in {dataset.name for dataset in known}:
        raise UsageError(f"a dataset named {name} exists", hint="choose another name with --name")


def _book(
    desk: Desk, materials: Sequence[_Material], known: Sequence[DatasetRow], spec: IngestSpec, policy: Policy
) -> list[DatasetRow]:
    """Write rows and entries; what somebody else ingested meanwhile is compared with too.

    The two sides of a division are not compared with each other: by its rule they share no unit, and a text that many
    units have, such as a fixed instruction, would make one of them of what is two.
    """
    while True:
        made: list[DatasetRow] = []
        for dataset, _, _, prints, seal_key in materials:
            overlaps = _find_overlapping(desk.home, known, seal_key, prints)
            made.append(dataclasses.replace(dataset, overlaps=orjson.dumps(overlaps).decode()))
        with desk.decide(policy) as tx:
            listed = tx.datasets.list()
            if listed == known:
                for dataset in made:
                    tx.datasets.add(dataset)
                for dataset, material in zip(made, materials, strict=True):
                    tx.append(_describe(dataset, spec, policy, _state_division(dataset, material, made)))
                return made
        known = listed


def _state_division(dataset: DatasetRow, material: _Material, made: Sequence[DatasetRow]) -> dict[str, Any]:
    if material.side is None:
        return {}
    (other,) = (row.id for row in made if row is not dataset)
    return {"held_out": decimal(float(material.side.fraction)), "divided_with": other}


def _seal(
    desk: Desk,
    files: tuple[Sequence[Path], IngestSpec, Told],
    part: Part,
    policy: Policy,
    progress: Progress,
) -> _Material:
    home, (paths, spec, told), (declared, side) = desk.home, files, part
    dataset_id = new_id("ds")
    data_key, wrapped, epoch, fingerprint_key = home.agent().ingest_keys(dataset_id)
    mac_key, seal_key = _fingerprint_keys(fingerprint_key)
    ingestion = Ingestion(paths, spec, mac_key, told, side=side)
    with process.growth_limited(memory_for(paths)), _staging(home) as staging:
        sealed = container.seal_records(_encode(ingestion, progress), staging, data_key, dataset_id)
        _check_contents(ingestion, declared, policy)
        prints = _seal_fingerprints(home, dataset_id, seal_key, ingestion.fingerprints)
        commit(staging, home.object(sealed.blake3))
    dataset = DatasetRow(
        id=dataset_id,
        name=declared.name,
        purpose=declared.purpose,
        class_=declared.class_name,
        unit_kind=spec.unit.kind,
        unit_key=spec.unit.key,
        max_records=spec.unit.max_records,
        declared_units=declared.units,
        format=spec.reading,
        state=CatalogState.ACTIVE,
        object_blake3=sealed.blake3,
        object_bytes=sealed.bytes,
        chunks=sealed.chunks,
        wrapped_key=wrapped,
        key_epoch=epoch,
        fingerprints_blake3=prints,
        source=f"unsigned local files{_name_side(side)}",
    )
    return _Material(dataset, side, tuple(ingestion.rejected), ingestion.fingerprints, seal_key)


def _name_side(side: Side | None) -> str:
    """Say which units of the files a dataset has, where that is not all."""
    if side is None:
        return ""
    percent = f"{float(side.fraction) * 100:g}%"
    return f"; the {percent} of units that are held out" if side.held_out else f"; without the {percent} held out"


def memory_for(paths: Sequence[Path]) -> int:
    """Allow bytes to be taken by the size of the files, which are foreign, and are parsed in this process."""
    return _MEMORY + _GROWTH * sum(path.stat().st_size for path in paths if path.exists())


@contextmanager
def _staging(home: Home) -> Iterator[Path]:
    """Offer a name beside the objects that is gone afterwards, whatever happens; no other ingest sweeps it away."""
    path = home.objects / f".incoming-{secrets.token_hex(8)}{PARTIAL}"
    with unswept(home.objects):
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _encode(ingestion: Ingestion, progress: Progress) -> Iterator[bytes]:
    for n, record in enumerate(ingestion, 1):
        if n % 1000 == 0:
            progress(n)
        yield record.encode()


def _check_contents(ingestion: Ingestion, declared: Declaration, policy: Policy) -> None:
    """Compare what was read with what was declared; the messages give no count, since the exact one is private."""
    units = ingestion.units.reveal()
    if units < declared.units / 2 or units > declared.units * 2:
        raise DataInvalid(
            f"the files do not hold about {declared.units} units of privacy",
            hint="declare a round number within a factor of two of the truth with --units",
        )
    accepted, rejected = ingestion.accepted_count.reveal(), ingestion.rejected_count.reveal()
    check.check_ingested(policy, declared.class_name, accepted=accepted, rejected=rejected, units=units)


def _fingerprint_keys(key: bytes) -> tuple[bytes, bytes]:
    """Separate keys for making fingerprints and for sealing the list of them."""
    mac, seal = (hashlib.blake2b(label, key=key, digest_size=32).digest() for label in (b"make/v1", b"seal/v1"))
    return mac, seal


def _seal_fingerprints(home: Home, dataset_id: str, seal_key: bytes, fingerprints: bytes) -> str:
    with _staging(home) as staging:
        sealed = container.seal_records([fingerprints], staging, seal_key, f"fingerprints/{dataset_id}")
        commit(staging, home.object(sealed.blake3))
    return sealed.blake3


def _find_overlapping(home: Home, known: Sequence[DatasetRow], seal_key: bytes, fingerprints: bytes) -> list[str]:
    """Find the datasets that share a record, subject or long field with the new one: it inherits what they spent."""
    found = []
    for other in known:
        path = home.object(other.fingerprints_blake3)
        with container.open_records(path, seal_key, f"fingerprints/{other.id}") as prints:
            if overlap(prints[0], fingerprints):
                found.append(other.id)
    return found


def _describe(dataset: DatasetRow, spec: IngestSpec, policy: Policy, division: Mapping[str, Any]) -> DataSealed:
    some_have: dict[str, Any] = {**({"kept": list(spec.keep)} if spec.keep else {}), **division}
    return DataSealed(
        dataset_id=dataset.id,
        name=dataset.name,
        purpose=dataset.purpose,
        class_=dataset.class_,
        unit_kind=dataset.unit_kind.value,
        unit_key=dataset.unit_key,
        max_records=dataset.max_records,
        declared_units=dataset.declared_units,
        format=dataset.format,
        object_blake3=dataset.object_blake3,
        key_epoch=dataset.key_epoch,
        fingerprints_blake3=dataset.fingerprints_blake3,
        overlaps=orjson.loads(dataset.overlaps),
        source=dataset.source,
        filter_order=decimal(best_order(*catalog.limits(policy, dataset.class_, dataset.declared_units))),
        **some_have,
    )
