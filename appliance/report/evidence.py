"""Which entries of the ledger a report about one run rests on, and the signed tree head that covers them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from appliance.errors import ArtefactMissing
from appliance.events.catalog import types
from appliance.events.evaluation import EvaluationFailed, EvaluationSettled
from appliance.events.event import Told
from appliance.events.logged import LoggedEvent
from appliance.events.run import RunAborted, RunEnded, RunFailed, RunSettled
from appliance.events.states import RunState
from appliance.report.figures import Figure

RUN_ENDS: dict[str, type[RunEnded]] = {kind.type: kind for kind in (RunSettled, RunFailed, RunAborted)}
EVALUATION_ENDS = (EvaluationSettled.type, EvaluationFailed.type)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedHead:
    """A signed tree head.

    Attributes:
      origin: name of the log.
      size: how many entries it covers.
      root: root hash, hex.
      note: the signed text (a C2SP checkpoint).
    """

    origin: str
    size: int
    root: str
    note: str

    def figure(self, field: str) -> Figure:
        """Cite one of `origin`, `size`, `root`."""
        return Figure("head", -1, f"/{field}", {"origin": self.origin, "size": self.size, "root": self.root}[field])


@dataclass(frozen=True, slots=True)
class Evidence:
    """The entries about one run, in order, and those that say what other work cost the same datasets."""

    run_id: str
    head: SignedHead
    events: tuple[LoggedEvent, ...]
    others: tuple[LoggedEvent, ...]

    def last(self, *types: str) -> LoggedEvent | None:
        """Find the newest entry about the run of one of these types."""
        return next((event for event in reversed(self.events) if event.type in types), None)

    def first(self, *types: str) -> LoggedEvent | None:
        """Find the oldest entry about the run of one of these types."""
        return next((event for event in self.events if event.type in types), None)

    def all(self, *types: str) -> tuple[LoggedEvent, ...]:
        """List every entry about the run of one of these types, oldest first."""
        return tuple(event for event in self.events if event.type in types)

    @property
    def evaluation(self) -> tuple[LoggedEvent | None, LoggedEvent | None]:
        """Reservation and end of the evaluation that counts: the newest that was settled, else the newest."""
        ending = self.last("evaluation.settled")
        reservations = self.all("evaluation.reserved")
        if ending is not None:
            wanted = ending.facts["evaluation_id"]
            return next((e for e in reservations if e.facts["evaluation_id"] == wanted), None), ending
        if not reservations:
            return None, self.last(*EVALUATION_ENDS)
        wanted = reservations[-1].facts["evaluation_id"]
        ends = (e for e in self.all(*EVALUATION_ENDS) if e.facts["evaluation_id"] == wanted)
        return reservations[-1], next(ends, None)

    @property
    def reserved(self) -> LoggedEvent:
        """The entry that reserved the run; every report has one."""
        event = self.first("run.reserved")
        if event is None:
            raise ArtefactMissing(f"the ledger has no run {self.run_id}")
        return event

    @property
    def ending(self) -> LoggedEvent | None:
        """The entry that closed the run."""
        return self.last(*RUN_ENDS)

    @property
    def settled(self) -> LoggedEvent | None:
        """The entry of a run that finished."""
        ending = self.ending
        return ending if ending is not None and ending.type == "run.settled" else None

    @property
    def state(self) -> RunState:
        """How far the run had come."""
        ending = self.ending
        if ending is not None:
            return RUN_ENDS[ending.type].state
        return RunState.RUNNING if self.first("run.started", "run.resumed") else RunState.RESERVED


def gather(run_id: str, events: Iterable[LoggedEvent], head: SignedHead) -> Evidence:
    """Choose what concerns a run from entries of the ledger, in any order and with others among them.

    Raises:
      ArtefactMissing: no entry reserves the run.
    """
    known = sorted({event.index: event for event in events if event.index < head.size}.values(), key=_index)
    own = concerning(run_id, known)
    spent = [event for event in known if event.type in types(charges=True)]
    datasets = {event.facts["dataset_id"] for event in own if "dataset_id" in event.facts}
    others = [e for e in spent if e.facts["run_id"] != run_id and e.facts["dataset_id"] in datasets]
    return Evidence(run_id, head, tuple(own), tuple(others))


def concerning(run_id: str, known: Sequence[LoggedEvent]) -> list[LoggedEvent]:
    """Choose the entries about a run, its base model and its policy, for report and bundle alike.

    A detection counts where it was made on what the run released: what others were suspected of is not told.

    Args:
      run_id: the run.
      known: entries of the ledger, oldest first.

    Raises:
      ArtefactMissing: no entry reserves the run.
    """
    own = [event for event in known if event.type in types(Told.REPORT) and event.facts.get("run_id") == run_id]
    reserved = next((event for event in own if event.type == "run.reserved"), None)
    if reserved is None:
        raise ArtefactMissing(f"the ledger has no run {run_id}", hint="`appliance train status` lists the runs")
    keys = {event.facts["key_id"] for event in own if event.type.startswith("watermark.")}
    released = {event.facts["released_sha256"] for event in own if event.type == "watermark.embedded"}
    chosen = [event for event in own if event.type != "watermark.detected" or event.facts["suspect_sha256"] in released]
    chosen += [event for event in known if event.type == "watermark.keyed" and event.facts["key_id"] in keys]
    stated = {event.facts["dataset_id"]: event for event in own if event.type == "budget.stated"}  # the newest of each
    chosen = [event for event in chosen if event.type != "budget.stated" or event in stated.values()]
    chosen += _newest(known, reserved, "model.imported", "model_id", reserved.facts["model_id"])
    chosen += _newest(known, reserved, "policy.activated", "sha256", reserved.policy_sha256)
    return sorted(chosen, key=_index)


def _newest(known: Sequence[LoggedEvent], before: LoggedEvent, type_: str, name: str, value: Any) -> list[LoggedEvent]:
    """Find the newest entry of a type, older than `before`, that states `value`; in a list, which may be empty."""
    found = [e for e in known if e.type == type_ and e.facts[name] == value and e.index < before.index]
    return found[-1:]


def _index(event: LoggedEvent) -> int:
    return event.index
