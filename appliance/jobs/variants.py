"""What every job says that opens a base model and the adapters of a run on it."""

from __future__ import annotations

from pathlib import Path

from appliance.jobs.job import EngineOptions, IsolationSpec, Job
from appliance.jobs.train import TrainSpec
from appliance.values import Digest

BASE, ADAPTER, MARKED = "base", "adapter", "marked"


class VariantsJob(Job):
    """A base model, the adapter of a run, and the marked one if there is one; template and lengths are the run's."""

    train: TrainSpec
    engine: EngineOptions
    isolation: IsolationSpec
    model_dir: str
    model_sha256: Digest
    adapter_dir: str
    adapter_sha256: Digest
    released_dir: str | None
    released_sha256: Digest | None

    @property
    def adapters(self) -> dict[str, tuple[Path, str]]:
        """The adapters by name, in order: directory and digest."""
        found = {ADAPTER: (Path(self.adapter_dir), self.adapter_sha256)}
        if self.released_dir is not None and self.released_sha256 is not None:
            found[MARKED] = (Path(self.released_dir), self.released_sha256)
        return found
