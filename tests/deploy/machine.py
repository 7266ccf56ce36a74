"""A bare Debian 12 server with real systemd: systemd-nspawn on an overlay, reached over SSH through network namespaces.

The image is built once (`image`) and kept in build/deploy. A machine and its controller each have a network namespace,
joined by a pair of virtual interfaces; neither leads anywhere else. Nothing here is a product: it is what the tests of
`deploy/ansible` run against.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "deploy"
ANSIBLE = ROOT / "deploy" / "ansible"
PACKAGES = ("systemd-sysv", "dbus", "openssh-server", "python3", "iproute2")
MIRRORS = (
    "deb http://deb.debian.org/debian bookworm main",
    "deb http://deb.debian.org/debian bookworm-updates main",
    "deb http://deb.debian.org/debian-security bookworm-security main",
)
NEEDED = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nft": "nftables",
    "sshd": "openssh-server",
    "ip": "iproute2",
}
ALLOWED = "bpf mlock perf_event_open landlock_create_ruleset landlock_add_rule landlock_restrict_self keyctl add_key"
"""What systemd-nspawn denies and a server has: without `bpf` IPAddressDeny would do nothing, and say nothing."""
CONTROLLER, TARGET, OUTSIDE = "192.0.2.1", "192.0.2.2", "198.51.100.1"
NAME = f"a{hashlib.sha256(str(ROOT).encode()).hexdigest()[:5]}"
"""Of machine and namespaces, other than those of another checkout, which may be tested at the same time."""
CONTROLLER6, TARGET6 = "2001:db8::1", "2001:db8::2"


_IN_OWN_CGROUPS = """
for top in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
    [ ! -e $top/cgroup.procs ] || { mkdir -p $top/$0 && echo $$ > $top/$0/cgroup.procs; }
done
exec "$@"
"""
"""Two machines in the same control groups would each remove what is the other's: units fail with 219/CGROUP now and then."""


class Unavailable(Exception):
    """No such machine can be had here, and why."""


def require() -> None:
    """Raise `Unavailable` unless machines can be made here; programs that are missing are installed by the Makefile."""
    if os.geteuid():
        raise Unavailable("not run: machines in systemd-nspawn need root")
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if missing:
        raise Unavailable(f"not run: apt-get install {' '.join(missing)}")
    if subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, check=False).returncode:
        raise Unavailable("not run: no namespaces can be made here")


def image() -> Path:
    """Build the image of a bare server, or find the one that was built before."""
    name = hashlib.sha256(json.dumps([PACKAGES, MIRRORS]).encode()).hexdigest()[:12]
    directory = CACHE / f"image-{name}"
    if not directory.exists():
        partial = directory.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        command = ["mmdebstrap", "--quiet", "--variant=important", f"--include={','.join(PACKAGES)}"]
        subprocess.run([*command, "bookworm", str(partial), *MIRRORS], check=True)
        partial.rename(directory)
    return directory


@dataclass(frozen=True)
class Play:
    """A playbook that ran: exit status, what was printed, how many tasks changed something, seconds."""

    status: int
    said: str
    changed: int
    seconds: float


@dataclass
class Machine:
    """A running server and its controller.

    Attributes:
      name: of the machine, its namespaces and its directory.
      place: directory of the overlay and of the controller's files.
      variables: of its inventory.
      process: systemd-nspawn.
      address: at which the controller reaches it.
      hub: name of the machine whose controller it shares, with the cable; its own if empty.
      binds: paths of this machine that it has too, device nodes among them.
    """

    name: str
    place: Path
    variables: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    address: str = TARGET
    hub: str = ""
    binds: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The machine's file system, as the tests see it."""
        return self.place / "root"

    @property
    def inside(self) -> Path:
        """The machine's file system as its own processes see it, with what is mounted there."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return Path(f"/proc/{children[0]}/root")

    @property
    def key(self) -> Path:
        """The controller's SSH key."""
        return self.place / "id"

    def controller(self, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in the controller's network namespace."""
        told: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": 600, **options}
        return subprocess.run(["ip", "netns", "exec", f"{self.hub or self.name}-c", *command], **told)

    def ssh(self, script: str, *, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a shell script on the machine as root, over SSH."""
        done = self.controller("ssh", *self.ssh_options, f"root@{self.address}", script, **options)
        if check and done.returncode:
            raise AssertionError(f"{script}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    @property
    def ssh_options(self) -> tuple[str, ...]:
        """Options of ssh for this machine: its key, and no host key but for this test."""
        known = self.place / "known_hosts"
        options = (
            "StrictHostKeyChecking=accept-new",
            f"UserKnownHostsFile={known}",
            "ConnectTimeout=5",
            "LogLevel=ERROR",
        )
        return ("-i", str(self.key), *(word for option in options for word in ("-o", option)))

    def play(self, book: str, *options: str, check: bool = True, **variables: Any) -> Play:
        """Run a playbook of deploy/ansible from the controller, over SSH."""
        command, environment = self._playing(book, variables)
        began = time.monotonic()
        done = self.controller(*command, *options, env=environment, cwd=ANSIBLE)
        recap = re.search(r"ok=\d+ +changed=(\d+) +unreachable=(\d+) +failed=(\d+)", done.stdout)
        played = Play(
            done.returncode, done.stdout + done.stderr, int(recap[1]) if recap else -1, time.monotonic() - began
        )
        if check and played.status:
            raise AssertionError(played.said)
        return played

    def cut(self, book: str, task: str, after_s: float | None = None) -> bool:
        """Run a playbook, and kill the controller with all its processes at a task; whether there was such a task.

        Args:
          book: the playbook.
          task: its name, or its number counted from 1.
          after_s: so long after it began; if None, before it begins.
        """
        command, environment = self._playing(book, {})
        hold = {} if after_s is not None else {"APPLIANCE_HOLD": task}
        before = len(self.begun())
        playing = subprocess.Popen(
            ["ip", "netns", "exec", f"{self.name}-c", *command],
            env=environment | hold, cwd=ANSIBLE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while not (found := task in self._names(before)) and playing.poll() is None:
            time.sleep(0.02)
        time.sleep(after_s or 0)
        _end_leftover(f"{self.name}-c")
        playing.wait()
        return found

    def begun(self) -> list[tuple[float, str]]:
        """List the tasks that began: when, and which."""
        notes = self.place / "begun"
        lines = notes.read_text().splitlines() if notes.exists() else []
        return [(float(line.split("\t")[0]), line.split("\t")[1].rpartition(" : ")[2]) for line in lines]

    def _names(self, before: int) -> set[str]:
        """Names and numbers of the tasks that began after so many."""
        names = [name for _, name in self.begun()[before:]]
        return {*names, *map(str, range(1, len(names) + 1))}

    def _playing(self, book: str, variables: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
        """Write the inventory; command and environment that run a playbook."""
        hosts = {self.name: {"ansible_host": TARGET, "ansible_user": "root"}}
        inventory = self.place / "inventory.json"
        inventory.write_text(json.dumps({"appliance": {"hosts": hosts, "vars": self.variables | variables}}))
        words = " ".join((*self.ssh_options, "-o ControlMaster=auto", "-o ControlPersist=60s"))
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
            "ANSIBLE_SSH_ARGS": words,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_LOG_PATH": str(self.place / "ansible.log"),
            "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.place / "cp"),
            "ANSIBLE_CALLBACK_PLUGINS": str(Path(__file__).with_name("callbacks")),
            "ANSIBLE_CALLBACKS_ENABLED": "begun",
            "APPLIANCE_BEGUN": str(self.place / "begun"),
            "LC_ALL": "C.UTF-8",
        }
        return [
            str(ROOT / ".venv-deploy/bin/ansible-playbook"),
            "-i",
            str(inventory),
            f"playbooks/{book}.yml",
        ], environment

    def boot(self) -> None:
        """Start the machine; returns when SSH answers."""
        command = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", f"--machine={self.name}"]
        command += [f"--directory={self.root}", f"--network-namespace-path=/run/netns/{self.name}-t", "--console=pipe"]
        command += [f"--bind={path}" for path in self.binds]
        command += ["--capability=all", f"--system-call-filter={ALLOWED}", "--private-users=no"]
        command = ["sh", "-c", _IN_OWN_CGROUPS, self.name, *command]
        with open(self.place / "console", "ab") as console:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        deadline = time.monotonic() + 60
        while self.ssh("systemctl is-system-running --wait", check=False).returncode == 255:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError(f"the machine did not start: {(self.place / 'console').read_text()[-2000:]}")
            time.sleep(0.2)

    def power_off(self) -> None:
        """Shut the machine down as its power button does."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()  # what makes systemd-nspawn tell the machine; other signals end it alone
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.cut_power()

    def cut_power(self) -> None:
        """End every process of the machine at once."""
        if self.process is not None:
            for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(child), 9)
            self.process.kill()
            self.process.wait()


@contextmanager
def machine(place: Path, name: str = NAME) -> Iterator[Machine]:
    """A fresh bare server that runs, and is gone afterwards."""
    require()
    made = Machine(name, place)
    with ExitStack() as undo:
        _make_network(name, undo)
        _make_root(made, undo)
        undo.callback(made.power_off)
        made.boot()
        yield made


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _end_leftover(namespace: str) -> None:
    """End the machine of an earlier run that was killed: its own init outlives systemd-nspawn."""
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for process in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(process), 9)


def _make_network(name: str, undo: ExitStack) -> None:
    for namespace in (f"{name}-c", f"{name}-t"):
        _end_leftover(namespace)
        subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
        _run("ip", "netns", "add", namespace)
        undo.callback(_run, "ip", "netns", "delete", namespace)
        undo.callback(_end_leftover, namespace)  # systemd-nspawn may be gone before its machine is
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
    _run("ip", "link", "add", f"{name}c", "type", "veth", "peer", "name", f"{name}t")
    for interface, inside, namespace, addresses in (
        (f"{name}c", "eth0", f"{name}-c", (f"{CONTROLLER}/24", f"{CONTROLLER6}/64", f"{OUTSIDE}/24")),
        (f"{name}t", "eth0", f"{name}-t", (f"{TARGET}/24", f"{TARGET6}/64")),
    ):
        _run("ip", "link", "set", interface, "netns", namespace, "name", inside)
        for address in addresses:
            _run("ip", "-n", namespace, "addr", "add", address, "dev", inside, *(["nodad"] if ":" in address else []))
        _run("ip", "-n", namespace, "link", "set", inside, "up")
    # Everything else leads to the controller too, which sees whatever gets out.
    _run("ip", "-n", f"{name}-t", "route", "add", "default", "via", CONTROLLER)
    _run("ip", "-n", f"{name}-t", "-6", "route", "add", "default", "via", CONTROLLER6)


def _make_root(made: Machine, undo: ExitStack) -> None:
    for directory in ("upper", "work", "root"):
        (made.place / directory).mkdir(parents=True)
    layers = f"lowerdir={image()},upperdir={made.place / 'upper'},workdir={made.place / 'work'}"
    _run("mount", "-t", "overlay", "overlay", "-o", layers, str(made.root))
    undo.callback(_run, "umount", "-l", str(made.root))
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(made.key))
    home = made.root / "root/.ssh"
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "authorized_keys").write_text(made.key.with_name("id.pub").read_text())
    (home / "authorized_keys").chmod(0o600)
    (made.root / "etc/hostname").write_text(f"{made.name}\n")


# --- several ----------------------------------------------------------------------------------------------------------


@contextmanager
def machines(place: Path, name: str, count: int) -> Iterator[list[Machine]]:
    """Bare servers at one switch, which is their controller too; they can have WireGuard in user space."""
    require()
    made = [
        Machine(f"{name}{i}", place / str(i), address=f"192.0.2.{10 + i}", hub=name, binds=("/dev/net/tun",))
        for i in range(count)
    ]
    with ExitStack() as undo:
        _make_switch(name, made, undo)
        for server in made:
            _make_root(server, undo)
            undo.callback(server.power_off)
        for server in made:
            server.boot()
        yield made


def _make_switch(name: str, made: list[Machine], undo: ExitStack) -> None:
    hub = f"{name}-c"
    for namespace in (hub, *(f"{server.name}-t" for server in made)):
        _end_leftover(namespace)
        subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)
        _run("ip", "netns", "add", namespace)
        undo.callback(_run, "ip", "netns", "delete", namespace)
        _run("ip", "-n", namespace, "link", "set", "lo", "up")
    _run("ip", "-n", hub, "link", "add", "br0", "type", "bridge")
    for address in (f"{CONTROLLER}/24", f"{OUTSIDE}/24"):
        _run("ip", "-n", hub, "addr", "add", address, "dev", "br0")
    _run("ip", "-n", hub, "link", "set", "br0", "up")
    for server in made:
        inside, port = f"{server.name}-t", server.name
        _run("ip", "link", "add", port, "netns", hub, "type", "veth", "peer", "name", "eth0", "netns", inside)
        _run("ip", "-n", hub, "link", "set", port, "master", "br0", "up")
        _run("ip", "-n", inside, "addr", "add", f"{server.address}/24", "dev", "eth0")
        _run("ip", "-n", inside, "link", "set", "eth0", "up")
        _run("ip", "-n", inside, "route", "add", "default", "via", CONTROLLER)


def play_all(made: list[Machine], book: str, *options: str, check: bool = True) -> Play:
    """Run a playbook of deploy/ansible on several machines at once; each has its variables."""
    first = made[0]
    hosts = {
        server.name: {
            "ansible_host": server.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(server.key),
            **server.variables,
        }
        for server in made
    }
    group: dict[str, Any] = {"hosts": {server.name: {} for server in made}}
    inventory = first.place / "inventory.json"
    inventory.write_text(json.dumps({"appliance": {"hosts": hosts}, "link": group}))
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(ANSIBLE / "ansible.cfg"),
        "ANSIBLE_SSH_ARGS": " ".join((*first.ssh_options[2:], "-o ControlMaster=auto", "-o ControlPersist=60s")),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_LOG_PATH": str(first.place / "ansible.log"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(first.place / "cp"),
        "LC_ALL": "C.UTF-8",
    }
    command = [str(ROOT / ".venv-deploy/bin/ansible-playbook"), "-i", str(inventory), f"playbooks/{book}.yml"]
    began = time.monotonic()
    done = first.controller(*command, *options, env=environment, cwd=ANSIBLE, timeout=900)
    changed = [int(number) for number in re.findall(r"ok=\d+ +changed=(\d+) ", done.stdout)]
    played = Play(done.returncode, done.stdout + done.stderr, sum(changed), time.monotonic() - began)
    if check and played.status:
        raise AssertionError(played.said)
    return played
