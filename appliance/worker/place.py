"""Which rank of how many this worker is. The launcher says it in the environment, in torchrun's words."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.train.engines import Ranks

RANKS = "ranks"
"""Directory in the run directory: what each rank leaves, and where they find each other."""


@dataclass(frozen=True, slots=True)
class Place:
    """This worker among the ranks of its run.

    Attributes:
      rank: from 0; the first keeps journal, snapshots and result.
      size: how many ranks there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the first or only rank."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    def result(self, run_dir: Path) -> Path:
        """Where this worker leaves its result."""
        return run_dir / RANKS / f"{self.rank}.json" if self.several else run_dir / "result.json"

    def join(self, run_dir: Path) -> Ranks:
        """Meet the others; call it inside the sandbox. Loads torch.

        Raises:
          Interrupted: one of them ended before it came.
        """
        from appliance.train.engines import Alone, Several

        if not self.several:
            return Alone()
        from torch.distributed import FileStore  # type: ignore[attr-defined]

        return Several(FileStore(str(run_dir / RANKS / "meeting"), self.size), self.rank, self.size)


def here() -> Place:
    """The place of this process."""
    return Place(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
