"""The GPUs of this machine as NVIDIA's management library (NVML) lists them, by ctypes: no torch, no CUDA context.

libnvidia-ml.so.1 comes with every driver, and in a container with the capability "utility". Its calls return 0 or an
error; every error here is `Unreadable`, because a number that is only partly known would be taken for the whole.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
_NAME_BYTES = 96
_NOT_SUPPORTED, _NOT_FOUND = 3, 6


class Unreadable(Exception):
    """The GPUs cannot be listed this way; the caller tries another one or says that nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One device that CUDA could compute on: a GPU or a part of one (MIG).

    Attributes:
      name: as the driver and torch call it, "NVIDIA H100 80GB HBM3".
      uuid: "GPU-..." or "MIG-...".
      total: bytes of its memory.
      free: bytes of it that nobody holds.
      parts: its MIG devices, on one of which CUDA computes and not on the whole; None where it is not split up.
    """

    name: str
    uuid: str
    total: int
    free: int
    parts: tuple[Gpu, ...] | None = None


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def gpus() -> list[Gpu]:
    """List every GPU in the order of the PCI bus, as nvidia-smi numbers them.

    Raises:
      Unreadable: there is no library, no driver, or a value is not given.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise Unreadable(LIBRARY) from None
    with _initialised(library):
        count = ctypes.c_uint()
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
        return [_gpu(library, index) for index in range(count.value)]


@contextmanager
def _initialised(library: Any) -> Iterator[None]:
    _call(library, "nvmlInit_v2")
    try:
        yield
    finally:
        library.nvmlShutdown()


def _call(library: Any, name: str, *arguments: Any) -> None:
    if _status(library, name, *arguments):
        raise Unreadable(name)


def _status(library: Any, name: str, *arguments: Any) -> int:
    function = getattr(library, name, None)
    if function is None:  # a driver that is older than the function
        raise Unreadable(name)
    return int(function(*arguments))


def _gpu(library: Any, index: int) -> Gpu:
    handle = ctypes.c_void_p()
    _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
    return _describe(library, handle, _parts(library, handle))


def _describe(library: Any, handle: ctypes.c_void_p, parts: tuple[Gpu, ...] | None = None) -> Gpu:
    memory = _Memory()
    _call(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
    name, uuid = (_text(library, call, handle) for call in ("nvmlDeviceGetName", "nvmlDeviceGetUUID"))
    return Gpu(name=name, uuid=uuid, total=memory.total, free=memory.free, parts=parts)


def _text(library: Any, name: str, handle: ctypes.c_void_p) -> str:
    buffer = ctypes.create_string_buffer(_NAME_BYTES)
    _call(library, name, handle, buffer, ctypes.c_uint(_NAME_BYTES))
    return buffer.value.decode("utf-8", "replace")


def _parts(library: Any, handle: ctypes.c_void_p) -> tuple[Gpu, ...] | None:
    current, pending, most = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    status = _status(library, "nvmlDeviceGetMigMode", handle, ctypes.byref(current), ctypes.byref(pending))
    if status == _NOT_SUPPORTED or (status == 0 and not current.value):
        return None
    _call(library, "nvmlDeviceGetMaxMigDeviceCount", handle, ctypes.byref(most))
    return tuple(part for index in range(most.value) if (part := _part(library, handle, index)))


def _part(library: Any, handle: ctypes.c_void_p, index: int) -> Gpu | None:
    """Find the MIG device at this place of a GPU; None where the place is empty."""
    name, part = "nvmlDeviceGetMigDeviceHandleByIndex", ctypes.c_void_p()
    status = _status(library, name, handle, ctypes.c_uint(index), ctypes.byref(part))
    if status == _NOT_FOUND:
        return None
    if status:
        raise Unreadable(name)
    return _describe(library, part)
