"""What is tried with CUDA's driver in the sandbox, once the last socket is denied: memory, a kernel, what it holds."""

from __future__ import annotations

import ctypes
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.isolation import cuda

_BYTES = 16 << 20
_PTX = b"""
.version 6.3
.target sm_75
.address_size 64
.visible .entry answer(.param .u64 where)
{
    .reg .u64 %a<3>;
    .reg .u32 %v<2>;
    ld.param.u64 %a1, [where];
    cvta.to.global.u64 %a2, %a1;
    mov.u32 %v1, 42;
    st.global.u32 [%a2], %v1;
    ret;
}
"""


def steps(driver: cuda.Driver, ordinal: int) -> Iterator[tuple[str, Callable[[], str], bool]]:
    """List (name, step, whether training needs it) of what is tried in the sandbox, the last socket being denied."""
    yield "library", partial(_library, driver), True
    yield "models", partial(_gpus, driver), True
    yield "free memory", partial(_free, driver, ordinal), True
    yield "device memory", partial(_copy, driver), True
    yield "pinned memory", partial(_pin, driver), True
    yield "compiled kernel", partial(_compute, driver), False
    yield "management library", _management, False
    yield "sockets", _sockets, False
    yield "threads", _threads, False


def _library(driver: cuda.Driver) -> str:
    version = driver.number("cuDriverGetVersion")
    lines = Path("/proc/self/maps").read_text().splitlines()
    paths = sorted({line.split(maxsplit=5)[-1] for line in lines if "libcuda" in line})
    return f"{', '.join(paths)} for CUDA {version // 1000}.{version % 1000 // 10}"


def _gpus(driver: cuda.Driver) -> str:
    return "; ".join(_gpu(driver, number) for number in range(driver.number("cuDeviceGetCount")))


def _gpu(driver: cuda.Driver, number: int) -> str:
    device, total = driver.number("cuDeviceGet", number), ctypes.c_size_t()
    driver.call("cuDeviceTotalMem_v2", ctypes.byref(total), device)
    major, minor = (driver.number("cuDeviceGetAttribute", attribute, device) for attribute in (75, 76))
    name, bus = driver.text("cuDeviceGetName", device), driver.text("cuDeviceGetPCIBusId", device)
    return f"{number}: {name}, {total.value >> 20} MiB, capability {major}.{minor}, at {bus}"


def _free(driver: cuda.Driver, ordinal: int) -> str:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    driver.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
    return f"{free.value >> 20} MiB of {total.value >> 20} MiB on GPU {ordinal}"


def _copy(driver: cuda.Driver) -> str:
    """Copy bytes to the GPU and back."""
    sent, back = os.urandom(_BYTES), ctypes.create_string_buffer(_BYTES)
    with closing(_Memory(driver, _BYTES)) as memory:
        driver.call("cuMemcpyHtoD_v2", memory.address, sent, ctypes.c_size_t(_BYTES))
        driver.call("cuMemcpyDtoH_v2", back, memory.address, ctypes.c_size_t(_BYTES))
    return _require_same(back.raw == sent, f"{_BYTES >> 20} MiB there and back")


def _pin(driver: cuda.Driver) -> str:
    pinned = ctypes.c_void_p()
    driver.call("cuMemHostAlloc", ctypes.byref(pinned), ctypes.c_size_t(_BYTES), 0)
    driver.call("cuMemFreeHost", pinned)
    return f"{_BYTES >> 20} MiB"


def _compute(driver: cuda.Driver) -> str:
    """Compile a kernel in the driver, which keeps it in the cache of the run directory, and let it write a number."""
    module, function, value = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_uint32()
    driver.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(_PTX))
    driver.call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"answer"))
    with closing(_Memory(driver, 4)) as memory:
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(memory.address))
        driver.call("cuLaunchKernel", function, *(1, 1, 1), *(1, 1, 1), 0, None, parameters, None)
        driver.call("cuCtxSynchronize")
        driver.call("cuMemcpyDtoH_v2", ctypes.byref(value), memory.address, ctypes.c_size_t(4))
    return _require_same(value.value == 42, "compiled and run")


class _Memory:
    """Memory of the GPU."""

    def __init__(self, driver: cuda.Driver, size: int) -> None:
        self.address, self._driver = ctypes.c_uint64(), driver
        driver.call("cuMemAlloc_v2", ctypes.byref(self.address), ctypes.c_size_t(size))

    def close(self) -> None:
        self._driver.call("cuMemFree_v2", self.address)


def _require_same(same: bool, detail: str) -> str:
    if not same:
        raise ApplianceError("the GPU gave back something else")
    return detail


def _management() -> str:
    status = cuda.start_management()
    if status:
        raise ApplianceError(f"nvmlInit_v2 returns {status}; torch would report running out of memory as a bug")
    return "cannot be loaded; torch does without" if status is None else "started"


def _sockets() -> str:
    """Try to make more, which fails; what the driver holds is said."""
    for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
        try:
            socket.socket(family, socket.SOCK_STREAM).close()
        except OSError:
            continue
        raise ApplianceError(f"a socket of family {family.name} can be made")
    held = [name for name in os.listdir("/proc/self/fd") if _is_socket(int(name))]
    return f"no new one; the driver holds {len(held)}"


def _is_socket(descriptor: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def _threads() -> str:
    """Check that all threads are filtered, those that the driver started too."""
    tasks = list(Path("/proc/self/task").iterdir())
    loose = [task for task in tasks if "Seccomp:\t2" not in (task / "status").read_text()]
    if loose:
        raise ApplianceError(f"{len(loose)} of {len(tasks)} threads are not filtered")
    return ", ".join(sorted((task / "comm").read_text().strip() for task in tasks))
