"""A compute node: a directory with a key pair, no ledger and no root key. It joins a run by a ticket.

NODE/node/node.key   private key, mode 0600
NODE/node/node.pub   public key, one line, which goes to the control node
NODE/runs/           one directory per start that was joined: job.json, ticket.json, result.json
NODE/objects/, NODE/models/   where sealed objects (by BLAKE3) and base models (by SHA-256) are looked for
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from appliance.errors import (
    ApplianceError,
    ArtefactMissing,
    ConfigInvalid,
    IntegrityError,
    Interrupted,
    KeyUnavailable,
    UsageError,
)
from appliance.files import write_atomic
from appliance.flows import launch
from appliance.isolation import links, sandbox
from appliance.jobs.rundir import RunDir
from appliance.jobs.ticket import RankResult, Rendezvous, Ticket
from appliance.jobs.train import TrainJob
from appliance.store import container, nodes
from appliance.store.nodes import NodeKey
from appliance.store.trees import tree_digest
from appliance.values import to_json

_LARGEST_TICKET = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A start of a run that this node took part in to its end."""

    run_id: str
    first: int
    ranks: int
    size: int


def directory(root: Path) -> Path:
    """Say where the key pair of a node lies."""
    return root / "node"


def init(root: Path) -> NodeKey:
    """Make a node at `root`.

    Raises:
      UsageError: there is one already, or the home of an appliance.
    """
    if (root / "home.json").exists():
        hint = "a node has neither ledger nor root key: name another directory with --home"
        raise UsageError(f"{root} is the home of an appliance", hint=hint)
    return nodes.create(directory(root))


def show(root: Path) -> NodeKey:
    """Read the public key of the node at `root`."""
    return nodes.read(directory(root))


def join(root: Path, path: Path, sealed: Path | None, model: Path | None, timeout_s: float | None) -> Joined:
    """Take part in the start of a run that a ticket is for, until it ends.

    Args:
      root: the node.
      path: the ticket.
      sealed: the sealed object; None looks in the node's directory.
      model: the base model; None looks in the node's directory.
      timeout_s: how long to wait for the others; None is what the ticket says.

    Raises:
      ConfigInvalid: not a ticket.
      KeyUnavailable: the ticket is for another node.
      IntegrityError: the ticket was altered, or object or model is not the one of the run.
      IsolationViolated: there is more than loopback and WireGuard, and the run's policy requires that there be not.
      Busy: this node takes part already.
      Interrupted: not all came in time, or another rank ended.
    """
    ticket = _read(path)
    if ticket.node != show(root).fingerprint:
        raise KeyUnavailable(
            "the ticket is for another node", hint="`appliance node show` on that node", where=str(path)
        )
    rendezvous = _rendezvous(root, ticket, timeout_s)
    sandbox.require_tunnel(ticket.job.isolation, rendezvous.here)
    try:
        nodes.unseal(ticket.sealed, directory(root), ticket.context())  # again in each rank: the key is kept nowhere
    except IntegrityError as altered:
        altered.where = altered.where or str(path)
        raise
    job = _job(root, ticket, sealed, model)
    run_dir = RunDir(root.absolute() / "runs" / f"{job.run_id}-{rendezvous.nonce[:8]}")
    run_dir.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with launch.supervising(run_dir):
        run_dir.write_job(job)
        write_atomic(run_dir.ticket, to_json(ticket))
        _work(run_dir, ticket.ranks, rendezvous)
    return Joined(run_id=job.run_id, first=rendezvous.first, ranks=ticket.ranks, size=rendezvous.size)


def _read(path: Path) -> Ticket:
    try:
        with path.open("rb") as file:
            return Ticket.model_validate_json(file.read(_LARGEST_TICKET))
    except FileNotFoundError:
        raise ArtefactMissing("the ticket is not here", where=str(path)) from None
    except OSError as error:
        raise ArtefactMissing(f"the ticket cannot be read: {error.strerror}", where=str(path)) from None
    except ValidationError:
        raise ConfigInvalid("not a ticket", where=str(path)) from None


def _rendezvous(root: Path, ticket: Ticket, timeout_s: float | None) -> Rendezvous:
    asked = ticket.rendezvous
    try:
        here = links.source_address(asked.host, asked.port)
    except OSError as error:
        hint = "is this the network namespace that leads to the control node?"
        raise UsageError(f"there is no way to the rendezvous {asked.host}: {error.strerror}", hint=hint) from None
    filled = {"here": here, "node": str(directory(root.absolute())), "timeout_s": timeout_s or asked.timeout_s}
    return asked.model_copy(update=filled)


def _job(root: Path, ticket: Ticket, sealed: Path | None, model: Path | None) -> TrainJob:
    """Point the job at what lies here, once that was seen to be what the ticket says."""
    job = ticket.job
    sealed = (sealed or root / "objects" / job.dataset.blake3).absolute()
    model = (model or root / "models" / job.model_sha256).absolute()
    container.scrub(sealed, job.dataset.blake3)
    if tree_digest(model)[0] != job.model_sha256:
        raise IntegrityError("the base model is not the one of the run", where=str(model))
    dataset = job.dataset.model_copy(update={"path": str(sealed)})
    return job.model_copy(update={"dataset": dataset, "model_dir": str(model)})


def _work(run_dir: RunDir, ranks: int, rendezvous: Rendezvous) -> None:
    try:
        launch.run_worker(run_dir, RankResult, ranks=ranks, rendezvous=rendezvous)
    except (KeyboardInterrupt, Interrupted) as end:
        why = end.message if isinstance(end, ApplianceError) else "interrupted"
        hint = "the run can go on: `appliance train resume` on the control node writes a new ticket"
        raise Interrupted(why, hint=hint) from None
    finally:
        run_dir.clear(run_dir.tmp, run_dir.ranks)
