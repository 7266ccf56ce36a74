"""One process or many: what `train.loop` asks of the others, so that the order of a step stands there once.

All ranks hold the same weights. A logical batch is drawn once, on the first rank, and dealt out: every unit of it
goes to exactly one rank. A rank's sum of clipped gradients is a vector of whole numbers in float64, exact below 2^53,
so their sum over the ranks is bit for bit the sum that one process would have made, in whatever order it is taken.
Noise is drawn, journaled and released on the first rank alone, and every rank applies the release it is sent.

Every rank takes part in the same collectives in every step, whatever its share of the batch, and what is sent has a
size that follows from the plan, the adapter and the number of units: nothing on the wire follows the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed import ProcessGroupGloo, Store  # type: ignore[attr-defined]

from appliance.errors import GateFailed, Interrupted

PATIENCE_S = 1800.0
"""How long a rank waits for the others' part of a step before it gives up; a rank that dies is noticed at once."""

Units = NDArray[np.int64]


class Ranks(Protocol):
    """The processes that take a step together, as one of them sees them."""

    @property
    def main(self) -> bool:
        """Whether this one samples, draws noise, journals and stores."""
        ...

    def deal(self, draw: Callable[[], Units], units: int) -> Units:
        """Deal out this rank's part of the batch that the first rank draws from `units` units; it may be empty."""
        ...

    def reduce(self, total: Tensor) -> None:
        """Make `total` (whole numbers in float64) the sum over all ranks, on the first; elsewhere it is used up."""
        ...

    def share(self, tensor: Tensor) -> Tensor:
        """Share the first rank's tensor; the others' gives shape, dtype and device."""
        ...

    def share_bytes(self, data: bytes | None) -> bytes | None:
        """Share the first rank's bytes, or None."""
        ...

    def agree(self, tensor: Tensor, what: str) -> None:
        """Raise `GateFailed` on every rank unless all hold the same bits; `what` says of what."""
        ...


class Alone:
    """One process. Nothing is sent."""

    main = True

    def deal(self, draw: Callable[[], Units], units: int) -> Units:
        """Deal out the whole batch."""
        return draw()

    def reduce(self, total: Tensor) -> None:
        """Do nothing: it is the sum already."""

    def share(self, tensor: Tensor) -> Tensor:
        """Give back the same."""
        return tensor

    def share_bytes(self, data: bytes | None) -> bytes | None:
        """Give back the same."""
        return data

    def agree(self, tensor: Tensor, what: str) -> None:
        """Agree with itself."""


class Several:
    """One of several processes, over gloo.

    Gloo also where the model is on a GPU: there is one exchange per logical step, and NCCL would need what the sandbox
    of a rank refuses (Unix sockets, shared memory outside the run directory).

    Args:
      store: where the ranks find each other.
      rank: this one, from 0.
      size: how many there are.
      address: the address of this host under which the others reach it.
      patience_s: see `PATIENCE_S`.

    Raises:
      Interrupted: here and in every method, when another rank has ended or does not answer in time.
    """

    def __init__(
        self, store: Store, rank: int, size: int, *, address: str = "127.0.0.1", patience_s: float = PATIENCE_S
    ) -> None:
        self.rank, self.size = rank, size
        store.set_timeout(timedelta(seconds=patience_s))
        options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=patience_s)
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
        self._group: Any = _answer(lambda: ProcessGroupGloo(store, rank, size, options))

    @classmethod
    def over(cls, group: Any, rank: int, size: int) -> Several:
        """Make a rank that talks through a group that stands already."""
        made = cls.__new__(cls)
        made.rank, made.size, made._group = rank, size, group
        return made

    @property
    def main(self) -> bool:
        """Whether this is the first rank."""
        return self.rank == 0

    def deal(self, draw: Callable[[], Units], units: int) -> Units:
        """Take every `size`-th unit of the batch. All ranks are told the whole of it, one bit for each unit."""
        chosen = np.zeros(units, dtype=np.bool_)
        if self.main:
            chosen[draw()] = True
        bits = torch.from_numpy(np.packbits(chosen)) if units else torch.zeros(1, dtype=torch.uint8)
        told = self.share(bits).numpy()
        return np.flatnonzero(np.unpackbits(told, count=units))[self.rank :: self.size].astype(np.int64)

    def reduce(self, total: Tensor) -> None:
        """See `Ranks.reduce`."""
        sent = total.cpu()
        _answer(lambda: self._group.reduce(sent, 0).wait())
        if self.main:
            total.copy_(sent)

    def share(self, tensor: Tensor) -> Tensor:
        """See `Ranks.share`."""
        sent = tensor.cpu().contiguous()
        _answer(lambda: self._group.broadcast(sent, 0).wait())
        return sent.to(tensor.device)

    def share_bytes(self, data: bytes | None) -> bytes | None:
        """See `Ranks.share_bytes`."""
        length = int(self.share(torch.tensor([-1 if data is None else len(data)]))[0])
        if length < 0:
            return None
        mine = bytearray(data or b"") if self.main else bytearray(length)
        return bytes(self.share(torch.frombuffer(mine or bytearray(1), dtype=torch.uint8)).numpy())[:length]

    def agree(self, tensor: Tensor, what: str) -> None:
        """Compare SHA-256 digests of the bytes."""
        digest = hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).digest()
        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.size)]
        _answer(lambda: self._group.allgather(found, own).wait())
        if not all(torch.equal(other, own) for other in found):
            hint = "processors of one kind, with the same number of threads and the same libraries, give the same bits"
            raise GateFailed(f"the ranks of the run do not have {what}", hint=hint)


def _answer(collective: Callable[[], Any]) -> Any:
    try:
        return collective()
    except RuntimeError:  # of gloo; its text names addresses
        raise Interrupted("another rank of the run ended or does not answer") from None
