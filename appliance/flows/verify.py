"""`ledger verify`: the ledger against itself, the home against it, and every reservation worked out again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import IntegrityError
from appliance.events.home import HomeConfigured
from appliance.flows.home import Home, fingerprint
from appliance.flows.ledger import exposure, read_text
from appliance.flows.recount import Finding, recount
from appliance.ledger.reading import LedgerReader
from appliance.ledger.verify import Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A verification, and in plain words what the holder of the signing key could still alter unnoticed.

    `key_sets`: for each set of signing keys, oldest first, the smallest tree size that it signs and its fingerprint.
    """

    verification: Verification
    anchor_external: bool
    exposure: str
    fingerprint: str
    key_sets: tuple[tuple[int, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What a verifier brings along.

    Attributes:
      pinned: fingerprint of keys that the log has or had; empty when they are not pinned.
      heads: files of signed tree heads that were kept elsewhere.
      witnesses: file of witness keys; the home's own where it is None.
      body_keys: open the bodies too, with the key that the unsealed store gives.
      indexes: let the database check its indexes and pages too.
    """

    pinned: str = ""
    heads: tuple[Path, ...] = ()
    witnesses: Path | None = None
    body_keys: bool = False
    indexes: bool = True


def verify(home: Home, progress: Callable[[int, int], None], options: VerifyOptions | None = None) -> Verified:
    """Check the whole ledger against itself, its signatures, its anchor and what the verifier brings along.

    Where all that holds, the home's configuration is compared with what the ledger says of it, and every reservation is
    worked out again.

    Raises:
      IntegrityError: it is not signed by the keys of the pinned fingerprint, or too damaged to be read.
      KeyUnavailable: bodies are to be opened and the store is sealed.
    """
    options = options or VerifyOptions()
    body_key = home.agent().body_key() if options.body_keys else None
    pinned = options.pinned
    with home.reader(checked=False) as ledger:
        found = ledger.verify(
            progress,
            body_key=body_key,
            deep=options.indexes,
            witnesses=options.witnesses,
            kept=[read_text(path) for path in options.heads],
        )
        if found.ok:  # else rows or entries are not what was written, and say nothing of each other
            found = _with(found, [*_configuration(home, ledger), *recount(ledger)])
    sets = [(keys.since, fingerprint(keys.texts)) for keys in found.key_sets]
    if pinned and pinned.replace(" ", "").lower() not in [printed.replace(" ", "") for _, printed in sets]:
        raise IntegrityError(
            "the ledger is not signed by the keys of this fingerprint", hint=f"its keys: {sets[-1][1]}"
        )
    return Verified(
        verification=found,
        anchor_external=home.anchor_is_external,
        exposure=_exposure(home, found),
        fingerprint=sets[-1][1],
        key_sets=tuple(sets),
    )


def _configuration(home: Home, ledger: LedgerReader) -> Iterator[Finding]:
    """Compare the home's configuration with the newest entry about it; a ledger of an earlier release has none."""
    newest = next(ledger.entries(HomeConfigured, limit=1, newest_first=True), None)
    if newest is not None and HomeConfigured.of(newest.leaf["facts"]) != home.configuration:
        said = "says that database, anchor or epoch keys lie elsewhere than the home says"
        yield Finding(newest.index, f"entry {newest.index} {said}")


def _with(found: Verification, findings: Sequence[Finding]) -> Verification:
    first = min((finding.index for finding in findings), default=None)
    return dataclasses.replace(found, first_bad=first, problems=tuple(finding.problem for finding in findings))


def _exposure(home: Home, found: Verification) -> str:
    """Say `exposure`, told also by witnesses and heads that the verifier brought along."""
    if found.alterable_from == 0 or (found.anchor_external and not found.cosigned):
        return exposure(home, found.signed_size)
    if found.alterable_from >= found.entries:
        return "every entry is covered by a tree head that was witnessed or kept elsewhere"
    first, last = found.alterable_from, found.entries - 1
    return f"entries {first} to {last} could still be altered by whoever holds the signing keys: nobody else saw them"
