"""A model import: a foreign directory or file in, a verified directory out."""

from __future__ import annotations

from typing import Literal

from appliance.jobs.job import IsolationSpec, Job, Result
from appliance.values import Digest, FileDigest


class ImportJob(Job):
    """`job.json` of a model import: a foreign directory or GGUF file in, a verified safetensors directory out."""

    kind: Literal["model-import"] = "model-import"
    source: str
    output_dir: str
    isolation: IsolationSpec


class ImportResult(Result):
    """`result.json` of a model import.

    Attributes:
      shapes: (out_features, in_features) of every linear module that can be adapted, by its name.
      numbers: sizes of the architecture, under transformers' names.
      conversations: which shapes of conversation the chat template carries; empty where there is none.
      trained: for each precision that was tried an empty string, or why it cannot be trained in that.
    """

    kind: Literal["model-import"] = "model-import"
    sha256: Digest
    files: tuple[FileDigest, ...]
    source_format: Literal["safetensors", "gguf"]
    source_sha256: Digest
    architecture: str
    parameters: int
    licence: str
    has_chat_template: bool
    shapes: dict[str, tuple[int, int]]
    numbers: dict[str, int]
    trained: dict[str, str]
    conversations: dict[str, bool]
