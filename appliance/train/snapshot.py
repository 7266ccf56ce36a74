"""Training state and releases as bytes: safetensors with a JSON header. No sampler and no noise state exists to store.

The caller's `Snapshots` seals what is saved. Per step the noised sum ("release-000012") is saved before it is applied;
every ten steps one "snapshot" replaces the releases before it. Snapshot plus replayed releases give the state bit
for bit, and nothing private is spent by the replay, because a release is already differentially private.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import orjson
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from appliance.errors import IntegrityError

_FORMAT = "appliance.training/1"


class Snapshots(Protocol):
    """Where training state is kept; the worker seals it."""

    def save(self, name: str, data: bytes) -> None:
        """Store durably, replacing atomically what had this name."""
        ...

    def load(self, name: str) -> bytes | None:
        """Load what was stored under this name, or None."""
        ...

    def delete(self, name: str) -> None:
        """Remove it; nothing happens when it is not there."""
        ...


@dataclass(frozen=True, slots=True)
class State:
    """Everything a run needs to go on.

    Attributes:
      step: applied steps.
      attempts: sampled attempts, for the reader; the journal decides.
      plan: SHA-256 of plan, adapter and training settings, so that a state is never continued under another one.
      weights: A and B in the layout of `appliance.train.lora`, float32 [P].
      first_moment: AdamW's exp_avg, same layout.
      second_moment: AdamW's exp_avg_sq, same layout.
    """

    step: int
    attempts: int
    plan: str
    weights: Tensor
    first_moment: Tensor
    second_moment: Tensor


@dataclass(frozen=True, slots=True)
class Release:
    """The noised sum of one step, float32 [P], the settings it belongs to, and the attempt in which it was sampled."""

    step: int
    plan: str
    gradient: Tensor
    attempt: int


def encode_state(state: State) -> bytes:
    """Write a training state."""
    tensors = {"weights": state.weights, "exp_avg": state.first_moment, "exp_avg_sq": state.second_moment}
    return _encode(tensors, {"kind": "state", "step": state.step, "attempts": state.attempts, "plan": state.plan})


def decode_state(data: bytes, parameters: int) -> State:
    """Read what `encode_state` wrote. Raises `IntegrityError` for anything else."""
    tensors, header = _decode(data, "state", ("weights", "exp_avg", "exp_avg_sq"), parameters)
    return State(
        step=header["step"],
        attempts=header["attempts"],
        plan=header["plan"],
        weights=tensors["weights"],
        first_moment=tensors["exp_avg"],
        second_moment=tensors["exp_avg_sq"],
    )


def encode_release(release: Release) -> bytes:
    """Write a release."""
    header = {"kind": "release", "step": release.step, "plan": release.plan, "attempt": release.attempt}
    return _encode({"gradient": release.gradient}, header)


def decode_release(data: bytes, parameters: int) -> Release:
    """Read what `encode_release` wrote. Raises `IntegrityError` for anything else."""
    tensors, header = _decode(data, "release", ("gradient",), parameters)
    attempt = header.get("attempt", header["step"])  # releases before there were phases do not name it
    return Release(step=header["step"], plan=header["plan"], gradient=tensors["gradient"], attempt=attempt)


def digest(data: bytes) -> str:
    """Digest stored bytes by SHA-256, as journaled."""
    return hashlib.sha256(data).hexdigest()


def _encode(tensors: dict[str, Tensor], header: dict[str, Any]) -> bytes:
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    body = orjson.dumps({"format": _FORMAT, **header}, option=orjson.OPT_SORT_KEYS).decode()
    data: bytes = save(contiguous, metadata={"header": body})
    return data


def _decode(
    data: bytes, kind: str, names: tuple[str, ...], parameters: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors: dict[str, Tensor] = load(data)
        length = int.from_bytes(data[:8], "little")
        header = orjson.loads(orjson.loads(data[8 : 8 + length])["__metadata__"]["header"])
        fits = header["format"] == _FORMAT and header["kind"] == kind and set(tensors) == set(names)
        fits = fits and all(isinstance(header.get(key, 0), int) for key in ("step", "attempts", "attempt"))
        fits = fits and isinstance(header["plan"], str)
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError):
        fits = False
    if not fits or any(t.shape != (parameters,) or t.dtype != torch.float32 for t in tensors.values()):
        raise IntegrityError(f"the stored training {kind} is damaged or of another run")
    return tensors, header
