"""A start on several machines: where the ranks meet, and what each node is given to take part."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from appliance.jobs.train import TrainJob
from appliance.values import Count, Digest, Positive, Value, to_json

Few = Annotated[int, Field(ge=1, le=64)]
"""Machines of a run, and ranks of a machine."""


class Rendezvous(Value):
    """Where the ranks of a run on several machines meet, and which of them one machine starts. All of it is public.

    Attributes:
      host: numeric address at which the first rank listens.
      port: its port.
      nonce: of the entry that started the run; ranks of another start do not meet these.
      first: number of the first rank on this machine.
      size: how many ranks there are on all machines.
      timeout_s: how long a rank waits until all have come.
      here: address of this machine; filled in there.
      node: directory with the node's private key, on a machine that was given a ticket; filled in there.
    """

    host: str
    port: Annotated[int, Field(ge=1, le=65535)]
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    first: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(ge=1, le=64 * 64)]
    timeout_s: Positive
    here: str = ""
    node: str = ""


class Ticket(Value):
    """What one node needs to join one start of a run. Public, but for the dataset's key, which is sealed to the node.

    The key opens only together with all the rest (`store.nodes`). In `job` the paths and the wrapped key are empty:
    object and model are known by their digests, wherever they lie. Whoever knows the node's public key can write one,
    so nothing in it may reach further than a run does: no path, no more ranks than a machine may have, not the first.
    """

    schema_: Literal["appliance.ticket/1"] = Field(default="appliance.ticket/1", alias="schema")
    node: Digest
    rendezvous: Rendezvous
    ranks: Few
    job: TrainJob
    sealed: str

    @model_validator(mode="after")
    def _ranks_of_a_node(self) -> Self:
        if not 1 <= self.rendezvous.first <= self.rendezvous.size - self.ranks:
            raise ValueError("the ranks are not those of a node of this run")
        return self

    def context(self) -> str:
        """Digest the ticket without its key (SHA-256, hex): what the key is sealed with."""
        return hashlib.sha256(to_json(self.model_copy(update={"sealed": ""}))).hexdigest()


class RankResult(Value):
    """What a rank other than the first leaves when it is done."""

    schema_: Literal["appliance.rank/1"] = Field(default="appliance.rank/1", alias="schema")
    rank: Count
