"""Opening a base model with the adapters of a run on it; no key is needed, since an adapter is a DP release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.errors import IntegrityError
from appliance.jobs.job import IsolationReport
from appliance.jobs.rundir import RunDir
from appliance.jobs.variants import VariantsJob
from appliance.store.trees import tree_digest
from appliance.worker import confinement
from appliance.worker.opening import load_base

if TYPE_CHECKING:
    from appliance.evaluate.generation import Writer
    from appliance.evaluate.losses import Meter
    from appliance.evaluate.variants import Variants
    from appliance.train.logits import Logits


@dataclass(frozen=True, slots=True)
class Opened:
    """A model whose adapters can be switched.

    Attributes:
      tokenizer: of the base.
      variants: the model and its adapters.
      logits: the model's own way from hidden states to logits.
      physical_tokens: computed at once.
    """

    tokenizer: Any
    variants: Variants
    logits: Logits
    physical_tokens: int

    def meter(self) -> Meter:
        """Make what measures losses."""
        from appliance.evaluate.losses import Meter

        pad = int(self.tokenizer.pad_token_id or 0)
        return Meter(self.variants, pad, self.physical_tokens, self.logits)

    def writer(self) -> Writer:
        """Make what writes text."""
        from appliance.evaluate.generation import Writer

        return Writer(self.variants, self.tokenizer, self.logits)


def enter(job: VariantsJob, run_dir: RunDir, *more: Path) -> IsolationReport:
    """Enter the sandbox with the files of the job, on its GPU if it has one."""
    places = [Path(job.model_dir), *(directory for directory, _ in job.adapters.values()), *more]
    return confinement.enter(job.isolation, run_dir, *places, gpu=confinement.gpu_of(job.engine))


def open_variants(job: VariantsJob) -> Opened:
    """Load the base and attach the adapters.

    Raises:
      IntegrityError: one of them is not the one of the job.
    """
    from appliance.evaluate.variants import Variants
    from appliance.train.adapting import body
    from appliance.train.logits import find_logits

    model, tokenizer = load_base(job.model_dir, job.model_sha256, job.engine)
    logits = find_logits(model, body(model))
    variants = Variants(model)
    for name, (directory, sha256) in job.adapters.items():
        if tree_digest(directory)[0] != sha256:
            raise IntegrityError("the adapter is not the one of the job", where=str(directory))
        variants.attach(name, directory)
    return Opened(tokenizer, variants, logits, job.engine.physical_tokens)
