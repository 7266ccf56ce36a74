"""What several jobs open: the base model, checked against its digest, and sealed records as a sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from appliance.errors import IntegrityError, WillNotFit
from appliance.jobs.job import EngineOptions
from appliance.jobs.record import Record
from appliance.store import container
from appliance.store.trees import tree_digest


def load_base(
    directory: str, sha256: str, engine: EngineOptions, quantize: Literal["none", "nf4", "int8"] = "none"
) -> tuple[Any, Any]:
    """Load the base model in the engine's dtype on its device, quantised if asked for, and its tokenizer.

    Products in float32 are exact to float32 from here on: no TF32, whatever the machine's default is.

    Raises:
      IntegrityError: the directory does not have the digest of the job.
      WillNotFit: the job wants a GPU, and there is none that this process may use.
    """
    import torch

    from appliance.models.loading import load
    from appliance.models.quantising import load_quantised

    if engine.device == "cuda" and not torch.cuda.is_available():
        raise WillNotFit("the worker sees no GPU", hint="`appliance doctor` looks for GPUs; `--device cpu` needs none")
    torch.set_float32_matmul_precision("highest")
    if engine.threads:
        torch.set_num_threads(engine.threads)
    if tree_digest(Path(directory))[0] != sha256:
        raise IntegrityError("the base model is not the one of the job", where=directory)
    if quantize != "none":
        return load_quantised(Path(directory), getattr(torch, engine.dtype), quantize, engine.device)
    model, tokenizer = load(Path(directory), getattr(torch, engine.dtype))
    model.to(engine.device)
    return model, tokenizer


class DecodedRecords:
    """The records of an open sealed object as a sequence; each is decrypted when it is asked for."""

    def __init__(self, sealed: container.SealedRecords) -> None:
        self._sealed = sealed

    def __len__(self) -> int:
        return len(self._sealed)

    def __getitem__(self, index: int) -> Record:
        return Record.decode(self._sealed[index])
