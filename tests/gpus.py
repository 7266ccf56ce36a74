"""A stand-in for a GPU where there is none: device nodes, /proc and /sys as the driver makes them, and a libcuda.so.1.

The library does at its start what published traces of the real one show (docs/adr/0011): it reads what they read,
opens the nodes, asks for the MPS daemon, binds and listens on an abstract socket, names a thread in /proc; and it is as
strict, so that a sandbox in which it starts lets through at least that. Its "GPU" is the memory of the process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define OPERATING_SYSTEM 304
#define NO_DEVICE 100

static volatile int started, named, tried;

static int readable(const char *path) {  /* 0, or -1 if it is there and refused */
    int fd = open(path, O_RDONLY);
    if (fd >= 0) { close(fd); return 0; }
    return errno == ENOENT ? 0 : -1;
}

static int device(const char *path) {  /* opened for good, as the driver does, and asked something by ioctl */
    char arguments[64];
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return -1;
    return ioctl(fd, 0x5401, arguments) < 0 && errno == EACCES ? -1 : 0;
}

static void *work(void *unused) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/task/%d/comm", gettid());
    int fd = open(path, O_RDWR);
    named = fd >= 0 && write(fd, "cuda-standin", 12) == 12;
    if (fd >= 0) close(fd);
    tried = 1;
    sleep(started ? 0 : 600);  /* it stays, so that the filter that follows has to reach it */
    return unused;
}

static int shared(void) {  /* the MPS daemon: there must be none, said as an absent one says it */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *where = getenv("CUDA_MPS_PIPE_DIRECTORY");
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, sizeof one);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/control", where ? where : "/tmp/nvidia-mps");
    int status = connect(fd, (struct sockaddr *)&address, sizeof address);
    int why = errno;
    close(fd);
    return status < 0 && why == ENOENT ? 0 : -1;
}

static int listening(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    int length = snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "cuda-uvmfd-standin-%d", getpid());
    if (bind(fd, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + length)) return -1;
    return listen(fd, 16);
}

int cuInit(unsigned flags) {
    pthread_t thread;
    struct stat found;
    static const char *files[] = {"/proc/sys/vm/mmap_min_addr", "/proc/devices", "/proc/modules", "/proc/self/maps",
        "/proc/self/status", "/proc/self/fd", "/sys/devices/system/node", "/sys/devices/system/memory/block_size_bytes",
        ROOT "/proc/driver/nvidia/params", ROOT "/sys/bus/pci/devices"};
    if (CRASH) *(volatile int *)8 = 1;
    for (unsigned i = 0; i < sizeof files / sizeof *files; i++) if (readable(files[i])) return OPERATING_SYSTEM;
    if (shared()) return OPERATING_SYSTEM;
    if (device(ROOT "/dev/nvidiactl") || device(ROOT "/dev/nvidia-uvm")) return OPERATING_SYSTEM;
    if (!stat(ROOT "/dev/nvidia-uvm-tools", &found) && device(ROOT "/dev/nvidia-uvm-tools")) return OPERATING_SYSTEM;
    if (device(ROOT "/dev/nvidia0")) return NO_DEVICE;
    unlink(ROOT "/dev/char/1:3");  /* root's driver tries this and the next, and goes on without */
    symlink("../nvidia0", ROOT "/dev/char/1:3");
    if (NEEDS[0]) { int fd = open(NEEDS, O_RDWR); if (fd < 0) return OPERATING_SYSTEM; close(fd); }
    if (memfd_create("cuda", MFD_CLOEXEC) < 0 || eventfd(0, 0) < 0) return OPERATING_SYSTEM;
    if (listening()) return OPERATING_SYSTEM;
    void *range = mmap(NULL, 1ull << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) return 2;
    if (pthread_create(&thread, NULL, work, NULL)) return OPERATING_SYSTEM;
    for (int i = 0; i < 60000 && !tried; i++) usleep(1000);
    if (!named) return OPERATING_SYSTEM;
    started = 1;
    return 0;
}

int cuGetErrorName(int code, const char **name) {
    *name = code == OPERATING_SYSTEM ? "CUDA_ERROR_OPERATING_SYSTEM" : "CUDA_ERROR_NO_DEVICE";
    return 0;
}
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal ? 101 : 0; }
int cuDeviceGetName(char *name, int size, int device) { snprintf(name, size, "Stand-in GPU"); return 0; }
int cuDeviceGetPCIBusId(char *name, int size, int device) { snprintf(name, size, "0000:01:00.0"); return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 9 : 0; return 0; }
int cuDeviceTotalMem_v2(size_t *total, int device) { *total = 80ull << 30; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &started; return started ? 0 : 3; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 79ull << 30; *total = 80ull << 30; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) { *address = (uint64_t)malloc(size); return 0; }
int cuMemFree_v2(uint64_t address) { free((void *)address); return 0; }
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t size) { memcpy((void *)to, from, size); return 0; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t size) { memcpy(to, (void *)from, size); return 0; }
int cuMemHostAlloc(void **address, size_t size, unsigned flags) { *address = malloc(size); return 0; }
int cuMemFreeHost(void *address) { free(address); return 0; }
int cuModuleLoadData(void **module, const char *image) {
    char path[512];
    mkdir(getenv("CUDA_CACHE_PATH"), 0700);
    snprintf(path, sizeof path, "%s/index", getenv("CUDA_CACHE_PATH"));
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    if (fd < 0) return OPERATING_SYSTEM;
    close(fd);
    *module = (void *)image;
    return strstr(image, ".entry answer") ? 0 : 200;
}
int cuModuleGetFunction(void **function, void *module, const char *name) { *function = module; return 0; }
int cuLaunchKernel(void *function, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned f, unsigned g,
                   void *stream, void **parameters, void **extra) {
    *(uint32_t *)*(uint64_t *)parameters[0] = 42;
    return 0;
}
int cuCtxSynchronize(void) { return 0; }
"""
NODES = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia0")


@dataclass(frozen=True)
class StandIn:
    """Where the stand-in lies: its /dev, /proc and /sys, and the directory of its library."""

    root: Path
    libraries: Path

    def start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let processes that are started from here on find the library."""
        monkeypatch.setenv("LD_LIBRARY_PATH", str(self.libraries))


def make(directory: Path, *, needs: str = "", crash: bool = False, without: tuple[str, ...] = ()) -> StandIn:
    """Make a stand-in.

    Args:
      directory: where; it is filled.
      needs: a path that this driver opens for reading and writing beside what is known.
      crash: it dies at its start.
      without: names of device nodes that are left out.
    """
    root, libraries = directory / "root", directory / "lib"
    libraries.mkdir(parents=True)
    for name in (
        "dev",
        "proc/driver/nvidia/gpus/0000:01:00.0",
        "sys/bus/pci/devices",
        "sys/devices",
        "sys/module/nvidia",
    ):
        (root / name).mkdir(parents=True)
    for name in set(NODES) - set(without):
        make_node(root / "dev" / name)
    (root / "proc/driver/nvidia/params").write_text("ResmanDebugLevel: 4294967295\n")
    (root / "proc/driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX  x86_64  580.159.04  Tue\n")
    information = "Model: \t\t Stand-in GPU\nDevice Minor: \t 0\n"
    (root / "proc/driver/nvidia/gpus/0000:01:00.0/information").write_text(information)
    _compile(libraries / "libcuda.so.1", root, needs, crash)
    return StandIn(root, libraries)


def make_node(path: Path) -> None:
    """A character device that anybody may open, and that knows no ioctl; without root a way to one that is there."""
    if os.geteuid() == 0:
        os.mknod(path, 0o20666, os.makedev(1, 3))
        path.chmod(0o666)
    else:
        path.symlink_to("/dev/full")


def _compile(library: Path, root: Path, needs: str, crash: bool) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("not run: no C compiler here")
    macros = [f'-DROOT="{root}"', f'-DNEEDS="{needs}"', f"-DCRASH={int(crash)}"]
    command = [compiler, "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", str(library), *macros, "-lpthread"]
    subprocess.run(command, input=SOURCE, text=True, check=True)
