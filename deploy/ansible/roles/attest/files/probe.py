"""What can be reached from where this runs: tried, not read from settings. Prints one line of JSON, {probe: verdict}.

Run by attest.py inside a copy of each unit, and outside of all as root. "blocked" and "absent" are well; "open" is not.
Nothing that is sent says anything; addresses are those that are reserved for documents.
"""

import ctypes
import errno
import json
import os
import socket
import struct
import sys

SOMEWHERE, SOMEWHERE6 = "198.51.100.1", "2001:db8:ffff::1"
REFUSED = (errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ENETUNREACH, errno.ENOSYS)
REFUSED += (
    errno.ENOBUFS,
    errno.EADDRNOTAVAIL,
    errno.EHOSTUNREACH,
    errno.EROFS,
    errno.ENOENT,
    errno.EINVAL,
    errno.ENODEV,
)
LIBC = ctypes.CDLL(None, use_errno=True)


def _syscall(*arguments):
    if LIBC.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def tcp(family, address):
    """Connect; a connection that is merely not answered has left this process, and that counts."""
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(0.4)
        try:
            stream.connect((address, 443))
        except (TimeoutError, ConnectionRefusedError):
            return


def udp(family, address, port=443):
    with socket.socket(family, socket.SOCK_DGRAM) as packet:
        packet.sendto(b"probe", (address, port))


def icmp(family, address, protocol):
    with socket.socket(family, socket.SOCK_RAW, protocol) as raw:
        raw.sendto(struct.pack("!BBHHH", 8 if protocol == 1 else 128, 0, 0, 1, 1), (address, 0))


def frame(interface):
    """Write a frame to an interface itself, past the hooks of IP."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as raw:
        raw.bind((interface, 0))
        raw.send(b"\xff" * 6 + b"\x02" + b"\0" * 5 + b"\x88\xb5" + b"probe" * 10)


def dns():
    """Ask a resolver by hand: what the C library asks depends on settings."""
    udp(socket.AF_INET, SOMEWHERE, 53)


def interfaces():
    """Find an interface beside loopback; in units of several machines another than that of the link, or none."""
    link = sys.argv[sys.argv.index("--link") + 1 :][:1] if "--link" in sys.argv else []
    if sorted(_interfaces()) != sorted(["lo", *link]):
        return
    raise OSError(errno.ENODEV, "")


def _interfaces():
    with open("/proc/self/net/dev") as file:
        return [line.partition(":")[0].strip() for line in file.read().splitlines()[2:]]


def write(path):
    place = os.path.join(path, ".appliance-probe")
    descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.close(descriptor)
    os.unlink(place)


def read(path):
    if os.path.isdir(path):
        os.listdir(path)
    else:
        os.close(os.open(path, os.O_RDONLY))


def device(path):
    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


def family(number):
    socket.socket(number, socket.SOCK_RAW if number != 40 else socket.SOCK_STREAM).close()


def privileges():
    """Gain something by executing, or have something already."""
    with open("/proc/self/status") as file:
        said = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    kept = [int(said[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
    if said["NoNewPrivs"].strip() == "1" and not any(kept) and os.geteuid() and said["Seccomp"].strip() == "2":
        raise OSError(errno.EPERM, "")


def cores():
    import resource

    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        raise OSError(errno.EPERM, "")


NETWORK = {
    "tcp4": lambda: tcp(socket.AF_INET, SOMEWHERE),
    "tcp6": lambda: tcp(socket.AF_INET6, SOMEWHERE6),
    "udp4": lambda: udp(socket.AF_INET, SOMEWHERE),
    "udp6": lambda: udp(socket.AF_INET6, SOMEWHERE6),
    "icmp4": lambda: icmp(socket.AF_INET, SOMEWHERE, 1),
    "icmp6": lambda: icmp(socket.AF_INET6, SOMEWHERE6, 58),
    "dns": dns,
}
INSIDE = {
    **NETWORK,
    "interfaces": interfaces,
    "packet": lambda: family(17),
    "vsock": lambda: family(40),
    "bluetooth": lambda: family(31),
    "alg": lambda: family(38),
    "io-uring": lambda: _syscall(425, 1, None),
    "keyring": lambda: _syscall(250, 0, -4, 0),
    "bpf": lambda: _syscall(321, 0, None, 0),
    "ptrace": lambda: _syscall(101, 0, 0, 0, 0),
    "mount": lambda: _syscall(165, b"none", b"/mnt", b"tmpfs", 0, None),
    "mount-namespace": lambda: _syscall(272, 0x00020000),
    "clock": lambda: _syscall(227, 0, ctypes.byref((ctypes.c_long * 2)(0, 0))),
    "write-etc": lambda: write("/etc"),
    "write-usr": lambda: write("/usr"),
    "write-opt": lambda: write("/opt/appliance"),
    "write-var": lambda: write("/var/lib"),
    "write-import": lambda: write("/srv/appliance/import"),
    "read-root": lambda: read("/root"),
    "read-shadow": lambda: read("/etc/shadow"),
    "read-credentials": lambda: read("/etc/credstore.encrypted"),
    "read-passwords": lambda: read("/etc/appliance/pgpass"),
    "read-attest-key": lambda: read("/etc/appliance/attest/key"),
    "read-init": lambda: read("/proc/1/environ"),
    "device-mem": lambda: device("/dev/mem"),
    "device-kmsg": lambda: device("/dev/kmsg"),
    "device-tun": lambda: device("/dev/net/tun"),
    "device-kvm": lambda: device("/dev/kvm"),
    "privileges": privileges,
    "core-dumps": cores,
}


def outside():
    """Probe the server itself, as root: the firewall must hold whoever asks."""
    return {**NETWORK, **{f"frame-{name}": (lambda name=name: frame(name)) for name in _interfaces() if name != "lo"}}


def verdict(probe):
    """Try one: "blocked" where the kernel refused, "absent" where there is nothing to reach, else "open"."""
    try:
        probe()
    except FileNotFoundError:
        return "absent"
    except OSError as error:
        return "blocked" if error.errno in REFUSED else f"open ({errno.errorcode.get(error.errno, error.errno)})"
    return "open"


def main():
    """Try everything, each by itself."""
    probes = outside() if "--outside" in sys.argv else INSIDE
    print(json.dumps({name: verdict(probe) for name, probe in probes.items()}))


if __name__ == "__main__":
    main()
