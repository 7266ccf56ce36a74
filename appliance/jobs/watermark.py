"""Watermark jobs: put the mark of a run into its adapter, or look for it in a suspect."""

from __future__ import annotations

from typing import Literal

from appliance.jobs.job import EngineOptions, IsolationSpec, Job, Result
from appliance.values import Count, Digest, Value


class WatermarkKey(Value):
    """A watermark key as it lies in the catalog, wrapped, with the commitment to it."""

    key_id: str
    commitment: Digest
    wrapped_key: str
    key_epoch: Count


class EmbedJob(Job):
    """`job.json` of embedding a watermark in the adapter of a run."""

    kind: Literal["watermark-embed"] = "watermark-embed"
    engine: EngineOptions
    isolation: IsolationSpec
    model_dir: str
    model_sha256: Digest
    adapter_dir: str
    adapter_sha256: Digest
    key: WatermarkKey
    agent_socket: str


class EmbedResult(Result):
    """`result.json` of an embedding. Scores and strength are decimal text."""

    kind: Literal["watermark-embed"] = "watermark-embed"
    released_sha256: Digest
    escrow_sha256: Digest
    certificate_sha256: Digest
    algorithm_sha256: Digest
    strength: str
    modules: Count
    score: str
    score_predicted: dict[str, str]
    p_bound: str


class DetectJob(Job):
    """`job.json` of looking for the watermark of a run in a suspect adapter or model."""

    kind: Literal["watermark-detect"] = "watermark-detect"
    engine: EngineOptions
    isolation: IsolationSpec
    model_dir: str
    model_sha256: Digest
    suspect: str
    escrow: str
    escrow_sha256: Digest
    keys_tested: Count
    key: WatermarkKey
    agent_socket: str


class DetectResult(Result):
    """`result.json` of a detection."""

    kind: Literal["watermark-detect"] = "watermark-detect"
    suspect_sha256: Digest
    suspect_kind: Literal["adapter", "model"]
    score: str
    p_bound: str
    detected: bool
    certificate_sha256: Digest
