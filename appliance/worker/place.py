"""Which rank of how many this worker is. The launcher says it in the environment, in torchrun's words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.isolation.tunnel import End
from appliance.jobs.rundir import RunDir
from appliance.jobs.ticket import Rendezvous
from appliance.worker import meeting

if TYPE_CHECKING:
    from appliance.train.engines import Ranks


@dataclass(frozen=True, slots=True)
class Place:
    """This worker among the ranks of its run.

    Attributes:
      rank: from 0; the first keeps journal, snapshots and result.
      size: how many ranks there are.
      local: which of the ranks on this machine it is, from 0.
      rendezvous: where it meets those on other machines; None if there are none.
      declared: the interface that the administrator declares to be WireGuard in user space (`isolation.tunnel`).
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    rendezvous: Rendezvous | None = None
    declared: str = ""

    @property
    def main(self) -> bool:
        """Whether this is the first or only rank."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    @property
    def end(self) -> End | None:
        """This machine's end of the tunnel, if there are ranks on others."""
        return End(self.rendezvous.here, self.declared) if self.rendezvous else None

    def result(self, run_dir: RunDir) -> Path:
        """Name where this worker leaves its result."""
        return run_dir.ranks / f"{self.rank}.json" if self.several else run_dir.result

    def join(self, run_dir: RunDir, key: bytes) -> Ranks:
        """Meet the others, who hold the same key of the run; call it inside the sandbox. Loads torch.

        Raises:
          Interrupted: one of them ended before it came, or did not come in time.
          Busy: the port at which they are to meet is taken.
        """
        from appliance.train.engines import Alone, Several

        if not self.several:
            return Alone()
        if self.rendezvous:
            return meeting.meet(self.rendezvous, self.rank, key)
        from torch.distributed import FileStore  # type: ignore[attr-defined]

        return Several(FileStore(str(run_dir.ranks / "meeting"), self.size), self.rank, self.size)


def here() -> Place:
    """Find the place of this process."""
    rank, size, local = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    meets = os.environ.get("APPLIANCE_RENDEZVOUS")
    rendezvous = Rendezvous.model_validate_json(meets) if meets else None
    return Place(rank, max(1, size), local, rendezvous, os.environ.get("APPLIANCE_LINK", ""))
