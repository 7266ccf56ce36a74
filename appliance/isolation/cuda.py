"""CUDA's driver, by ctypes: start it in the sandbox before the last socket is denied, and say by name what it refuses.

Its start is where it needs most of the system: a Unix socket for processes that would share its memory, names for its
threads, its device nodes. A job starts it here, before torch is loaded, so that what is refused has one place and a
name, and so that nothing needs a socket any more when data are opened (`isolation.sandbox`).
"""

from __future__ import annotations

import ctypes

from appliance.errors import WillNotFit

LIBRARY, MANAGEMENT = "libcuda.so.1", "libnvidia-ml.so.1"
_DOCTOR = "`appliance doctor` says what is refused, and whether the sandbox does it"
_HINTS = {  # of enum cudaError_enum in cuda.h
    2: "other processes hold the memory of the GPU: `nvidia-smi` lists them",
    46: "another process has the GPU for itself: `nvidia-smi -q -d COMPUTE` shows the compute mode",
    100: f"see CUDA_VISIBLE_DEVICES; {_DOCTOR}",
    802: "start nvidia-fabricmanager, and wait until `nvidia-smi -q` says that the fabric is completed",
    803: "kernel module and library of the driver differ: reload the module, or restart the machine",
}


class Driver:
    """The driver's library. Loading it starts nothing.

    Raises:
      WillNotFit: it cannot be loaded.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            hint = f"install the driver's libraries, or say in LD_LIBRARY_PATH where they are; {_DOCTOR}"
            raise WillNotFit(f"the GPU driver's library cannot be loaded: {error}", hint=hint) from None

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of the driver.

        Raises:
          WillNotFit: it returned anything but success, or there is no such function.
        """
        try:
            code = int(getattr(self._library, name)(*arguments))
        except AttributeError:
            raise WillNotFit(f"the GPU driver is too old: it has no {name}") from None
        if code:
            refusal = f"the GPU driver refuses {name}: {self._name_of(code)} ({code})"
            raise WillNotFit(refusal, hint=_HINTS.get(code, _DOCTOR))

    def number(self, name: str, *arguments: object) -> int:
        """Call a function that returns an int through its first argument. Raises `WillNotFit`."""
        value = ctypes.c_int()
        self.call(name, ctypes.byref(value), *arguments)
        return value.value

    def text(self, name: str, *arguments: object) -> str:
        """Call a function that fills a buffer of 256 bytes, its first arguments. Raises `WillNotFit`."""
        buffer = ctypes.create_string_buffer(256)
        self.call(name, buffer, 256, *arguments)
        return buffer.value.decode(errors="replace")

    def _name_of(self, code: int) -> str:
        name = ctypes.c_char_p()
        try:
            self._library.cuGetErrorName(code, ctypes.byref(name))
        except AttributeError:
            return "unknown error"
        return name.value.decode(errors="replace") if name.value else "unknown error"


def start(ordinal: int) -> Driver:
    """Start the driver and open the context that torch will use too; it stays open as long as this process lives.

    Args:
      ordinal: which of the visible GPUs this process uses.

    Raises:
      WillNotFit: the driver does not start, or there are not so many GPUs.
    """
    driver = Driver()
    driver.call("cuInit", 0)
    count = driver.number("cuDeviceGetCount")
    if ordinal >= count:
        hint = f"the driver shows {count}: see CUDA_VISIBLE_DEVICES, or use fewer processes (--nproc)"
        raise WillNotFit(f"process {ordinal} of this machine has no GPU of its own", hint=hint)
    context = ctypes.c_void_p()
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), driver.number("cuDeviceGet", ordinal))
    driver.call("cuCtxSetCurrent", context)
    start_management()
    return driver


def start_management() -> int | None:
    """Start the driver's management library, which torch asks how much memory is taken when memory runs out.

    It may want a socket as well, and works without torch's having to start it later. A refusal is no reason to stop.

    Returns:
      The status that it gives, 0 for success; None if it cannot be loaded.
    """
    try:
        return int(ctypes.CDLL(MANAGEMENT).nvmlInit_v2())
    except (OSError, AttributeError):
        return None
