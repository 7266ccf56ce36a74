"""A run on several machines, as the control node sees it: its partners, and a ticket for each of them.

Ledger, root key, journal, snapshots and result stay here, with the first rank. A node gets the dataset's key only
sealed to its own key, in a ticket that says what it is to do; object and base model it may have from anywhere, since
the ticket holds their digests. A ticket is good for one start.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.errors import UsageError
from appliance.files import write_atomic
from appliance.flows.home import Home
from appliance.isolation import sandbox, tunnel
from appliance.isolation.links import links
from appliance.jobs.job import IsolationSpec
from appliance.jobs.rundir import RunDir
from appliance.jobs.ticket import Rendezvous, Ticket
from appliance.jobs.train import TrainJob
from appliance.store.nodes import NodeKey
from appliance.values import to_json

TIMEOUT_S = 1800.0
"""How long ranks wait for each other at the start, unless somebody says otherwise: time to carry the tickets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partners:
    """The other machines of a start, and where all meet: at an address of this one."""

    nodes: tuple[NodeKey, ...]
    host: str
    port: int
    timeout_s: float

    @property
    def count(self) -> int:
        """How many machines there are, with this one."""
        return 1 + len(self.nodes)

    def facts(self) -> dict[str, Any]:
        """State what the entry of the start says of them."""
        return {"nnodes": self.count, "nodes": [node.fingerprint for node in self.nodes]}

    def rendezvous(self, machine: int, ranks: int, nonce: str) -> Rendezvous:
        """Say where the ranks of one machine (0 is this one) meet the others, if each machine runs so many."""
        return Rendezvous(
            host=self.host,
            port=self.port,
            nonce=nonce,
            first=machine * ranks,
            size=self.count * ranks,
            timeout_s=self.timeout_s,
            here="" if machine else self.host,
        )


def choose_partners(nnodes: int, rendezvous: str, nodes: Sequence[str], timeout_s: float) -> Partners | None:
    """Read what the options of a start say; None if it has one machine.

    Args:
      nnodes: how many machines.
      rendezvous: HOST:PORT, numeric.
      nodes: the public key of each other machine: its line, or a file that holds it.
      timeout_s: how long ranks wait for each other.

    Raises:
      UsageError: the options do not fit together.
    """
    keys = tuple(_node(text) for text in nodes)
    if len(keys) != nnodes - 1 or len(set(keys)) != len(keys):
        hint = "--nnodes counts this machine too"
        raise UsageError(f"{nnodes} machines need {nnodes - 1} different --node, one for each of the others", hint=hint)
    if bool(keys) != bool(rendezvous):
        raise UsageError("several machines meet at --rendezvous HOST:PORT, and one machine at none")
    if not keys:
        return None
    host, port = _address(rendezvous)
    return Partners(nodes=keys, host=host, port=port, timeout_s=timeout_s)


def _node(text: str) -> NodeKey:
    try:
        line = Path(text).read_text() if Path(text).is_file() else text
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"cannot read {text}") from None
    return NodeKey.parse(line)


def _address(text: str) -> tuple[str, int]:
    """Parse `10.9.0.1:29400` or `[fd00::1]:29400`. No names: there is nobody to ask in the namespace of the ranks."""
    host, _, port = text.rpartition(":")
    try:
        if not 0 < int(port) < 1 << 16:
            raise ValueError
        return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), int(port)
    except ValueError:
        hint = "a numeric address of this machine and a port, for example 10.9.0.1:29400"
        raise UsageError(f"not a rendezvous: {text}", hint=hint) from None


def require_network(spec: IsolationSpec, partners: Partners) -> None:
    """Refuse before anything is started what the ranks would refuse.

    Raises:
      IsolationViolated: there is more than loopback and WireGuard, and the policy requires that there be not.
      UsageError: the address of the rendezvous is not one of this machine.
    """
    found = links()
    if not any(partners.host in link.addresses for link in found):
        raise UsageError(f"no network interface here has the address {partners.host}", hint=tunnel.HINT)
    sandbox.require_tunnel(spec, partners.host)


def write_tickets(
    home: Home, run_dir: RunDir, job: TrainJob, partners: Partners, ranks: int, nonce: str, evidence: bytes
) -> list[Path]:
    """Write a ticket for each of the other machines, in place of those of earlier starts.

    Args:
      home: the appliance's home.
      run_dir: the run's directory.
      job: its job.
      partners: who takes part.
      ranks: how many ranks each machine runs.
      nonce: of the entry of this start.
      evidence: that entry and its proof, for the key agent.

    Raises:
      KeyUnavailable: the key agent seals no key to one of them.
    """
    run_dir.clear(run_dir.tickets)
    run_dir.tickets.mkdir(mode=0o700)
    written = []
    for number, node in enumerate(partners.nodes, start=1):
        ticket = _ticket(job, node, partners.rendezvous(number, ranks, nonce), ranks)
        dataset = job.dataset
        sealed = home.agent().seal(
            evidence, dataset.dataset_id, dataset.wrapped_key, dataset.key_epoch, node, ticket.context()
        )
        written.append(run_dir.tickets / f"{node.fingerprint}.json")
        write_atomic(written[-1], to_json(ticket.model_copy(update={"sealed": sealed})))
    return written


def _ticket(job: TrainJob, node: NodeKey, rendezvous: Rendezvous, ranks: int) -> Ticket:
    nowhere = job.dataset.model_copy(update={"path": "", "wrapped_key": ""})
    bare = job.model_copy(update={"dataset": nowhere, "model_dir": "", "agent_socket": ""})
    return Ticket(node=node.fingerprint, rendezvous=rendezvous, ranks=ranks, job=bare, sealed="")
