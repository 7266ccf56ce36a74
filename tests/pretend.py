"""A GPU that is none: real numbers, kept apart from the CPU's, so that code for a device can run without one.

A tensor on `DEVICE` holds its values in a tensor of the CPU. What a GPU refuses is refused here: operations on tensors
of both sides (numbers and indices apart), and `.numpy()`. What it does not show: kernels, their rounding, and libraries
that ask for CUDA by name (bitsandbytes). Importing this registers a backend for good: do it in a process of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

ops = torch.ops.aten
_MOVES = (ops._to_copy.default, ops.copy_.default)
_INDEXED = (ops.index.Tensor, ops.index_put.default, ops.index_put_.default)
_ANSWERS = (ops._local_scalar_dense.default, ops.equal.default, ops.is_nonzero.default, ops.nonzero.default)
_ANSWERS += (ops.masked_select.default, ops._unique2.default, ops.unique_dim.default, ops.bincount.default)

waits: list[str] = []
"""What the host would have waited for on a GPU since this was emptied: answers from it, and copies that block."""


class _Backend(_DummyBackendModule):  # type: ignore[misc]
    """What activation checkpointing asks of a backend."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)


_setup_privateuseone_for_python_backend("pretend", backend_module=_Backend())  # type: ignore[no-untyped-call]
DEVICE = torch.device("pretend", 0)


class OnDevice(Tensor):
    """A tensor that says it is on the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def tolist(self) -> Any:
        """Allowed by a GPU, refused by torch for subclasses."""
        waits.append("tolist")
        return self.held.tolist()

    def data_ptr(self) -> int:
        """Tells tied weights, as on a GPU."""
        return self.held.data_ptr()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class Pretending(TorchDispatchMode):
    """Within the block the device can be used."""

    def __enter__(self) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)  # else torch.tensor(..., device=DEVICE) asks for a real one
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, shape = tree.tree_flatten((args, kwargs))
    ours = [value for value in flat if isinstance(value, OnDevice)]
    _refuse_both_sides(func, flat, ours)
    _note_wait(func, args, kwargs, flat, ours)
    args_held, kwargs_held = tree.tree_unflatten([_held(value) for value in flat], shape)
    with torch.inference_mode(False), torch.no_grad():
        made = func(*args_held, **kwargs_held)
        return _wrapped(made, ours, onto=_lands_here(func, args, kwargs, ours))


def _refuse_both_sides(func: Any, flat: list[Any], ours: list[OnDevice]) -> None:
    if not ours or func in _MOVES or func in _INDEXED:
        return
    if any(isinstance(value, Tensor) and not isinstance(value, OnDevice) and value.dim() for value in flat):
        raise RuntimeError(f"expected all tensors to be on the same device: {func}")


def _note_wait(func: Any, args: Any, kwargs: dict[str, Any], flat: list[Any], ours: list[OnDevice]) -> None:
    crosses = False
    if func is ops._to_copy.default:
        crosses = isinstance(args[0], OnDevice) != _lands_here(func, args, kwargs, ours)
    elif func is ops.copy_.default:
        crosses = isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice)
    blocks = crosses and not (kwargs.get("non_blocking") or args[2:] == (True,))
    masked = func in _INDEXED and any(isinstance(v, OnDevice) and v.dtype == torch.bool for v in flat[1:])
    if blocks or masked or (ours and func in _ANSWERS):
        waits.append(str(func))


def _lands_here(func: Any, args: Any, kwargs: dict[str, Any], ours: list[OnDevice]) -> bool:
    if func is ops.copy_.default:
        return isinstance(args[0], OnDevice)
    device = kwargs.get("device")
    return bool(ours) if device is None else torch.device(device).type == DEVICE.type


def _held(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.held
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _wrapped(made: Any, ours: list[OnDevice], *, onto: bool) -> Any:
    known = {id(value.held): value for value in ours}  # an operation in place returns what it was given

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or not onto:
            return value
        return known[id(value)] if id(value) in known else OnDevice(value)

    return tree.tree_map(wrap, made)
