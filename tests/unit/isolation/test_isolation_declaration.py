"""A "tun" is WireGuard where root says so, and nowhere else; what root says is broken here in every way.

Each case runs in a network namespace that has loopback and one tun, with a layer over /etc that holds the declaration.
"""

from __future__ import annotations

import json
import os
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.isolation.sandbox import WIREGUARD_DECLARED
from tests.tunnels import declare, with_etc

NAME, HERE, PEER = "wg0", "10.9.0.1", "10.9.0.2"
REFUSED = "refused: "
ALONE = REFUSED + "ranks on several machines talk over WireGuard alone: "
DECLARED = REFUSED + "the declaration of the link, /etc/appliance/link.json, "
Inside = Callable[..., str]


@contextmanager
def namespace() -> Iterator[str]:
    """A network namespace with loopback and a tun called wg0; skips, saying so, where there can be none."""
    name = f"tun{os.getpid()}"
    script = f"""
        set -e
        ip netns add {name}; ip -n {name} link set lo up
        ip -n {name} tuntap add {NAME} mode tun; ip -n {name} addr add {HERE}/32 dev {NAME}
        ip -n {name} link set {NAME} up
    """
    try:
        made = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip("not run: a tun in a network namespace needs root, iproute2 and /dev/net/tun")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.fixture(scope="module")
def place() -> Iterator[str]:
    with namespace() as name:
        yield name


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A layer over /etc with a declaration as it must be."""
    declare(tmp_path / "etc", NAME, HERE, PEER)
    return tmp_path / "etc"


@pytest.fixture
def inside(place: str, layer: Path, run: Inside, monkeypatch: pytest.MonkeyPatch) -> Inside:
    """`inside(body, *arguments)`: run a script in the namespace, below the layer."""
    real = subprocess.run
    words = ["ip", "netns", "exec", place, *with_etc(layer)]

    def started(command: list[str], **options: object) -> object:
        return real([*words, *command], **options)  # type: ignore[call-overload]

    def script(body: str, *arguments: object) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "run", started)
            return run(textwrap.dedent(body), *arguments)

    return script


ENTER = """
from appliance.isolation import loopback, tunnel
spec = IsolationSpec(network=sys.argv[1], files="preferred")
try:
    sandbox.require_tunnel(spec, sys.argv[3])
    end = tunnel.here(sys.argv[3])
    loopback.confine()
    sandbox.require_ranks_alone(spec, end)
    print(sandbox.enter(spec, sandbox.system_paths(), [Path(sys.argv[2])], ranks=True, end=end).network)
except IsolationViolated as refusal:
    print("refused:", refusal.message)
"""


def rewrite(path: Path, **change: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def own(path: Path) -> None:
    os.chown(path, 1000, 1000)


def link_to_elsewhere(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no declaration": (Path.unlink, ALONE + "wg0 is not WireGuard"),
    "of another interface": (lambda path: rewrite(path, interface="wg1"), ALONE + "wg0 is not WireGuard"),
    "of the kernel's own": (lambda path: rewrite(path, implementation="kernel"), ALONE + "wg0 is not WireGuard"),
    "of another program": (lambda path: rewrite(path, implementation="socat"), DECLARED + "is not a declaration"),
    "more than a declaration": (lambda path: rewrite(path, more=1), DECLARED + "is not a declaration"),
    "the service's own": (own, DECLARED + "can be written by others than root"),
    "that the group can write": (lambda path: path.chmod(0o664), DECLARED + "can be written by others than root"),
    "that everybody can write": (lambda path: path.chmod(0o646), DECLARED + "can be written by others than root"),
    "in the service's directory": (lambda path: own(path.parent), DECLARED + "lies where others than root can write"),
    "in an open directory": (
        lambda path: path.parent.chmod(0o777),
        DECLARED + "lies where others than root can write",
    ),
    "a link to elsewhere": (link_to_elsewhere, DECLARED + "cannot be read"),
}


def test_a_declared_tun_is_taken_and_what_is_recorded_says_on_whose_word(inside: Inside, tmp_path: Path) -> None:
    assert inside(ENTER, "required", tmp_path, HERE) == WIREGUARD_DECLARED
    assert "as the administrator declares" in WIREGUARD_DECLARED


@pytest.mark.parametrize("what", BREAKAGES)
def test_a_tun_is_refused_if_its_declaration_is_missing_or_not_roots(
    inside: Inside, layer: Path, tmp_path: Path, what: str
) -> None:
    breaks, said = BREAKAGES[what]
    breaks(layer / "appliance" / "link.json")
    assert inside(ENTER, "required", tmp_path, HERE).startswith(said)


def test_a_declared_tun_with_another_address_is_refused(inside: Inside, tmp_path: Path) -> None:
    assert inside(ENTER, "required", tmp_path, PEER) == ALONE + f"wg0 does not have the address {PEER}"


def test_a_second_interface_beside_a_declared_tun_is_refused(inside: Inside, place: str, tmp_path: Path) -> None:
    subprocess.run(["ip", "-n", place, "tuntap", "add", "more0", "mode", "tun"], check=True)
    try:
        assert inside(ENTER, "required", tmp_path, HERE) == ALONE + "beside loopback there is more0, wg0"
    finally:
        subprocess.run(["ip", "-n", place, "link", "del", "more0"], check=True)


def test_where_it_is_only_preferred_an_undeclared_tun_is_recorded_as_not_restricted(
    inside: Inside, layer: Path, tmp_path: Path
) -> None:
    (layer / "appliance" / "link.json").unlink()
    assert inside(ENTER, "preferred", tmp_path, HERE) == "not restricted: wg0 is not WireGuard"


def test_a_rank_cannot_declare_for_itself(inside: Inside, tmp_path: Path) -> None:
    """In the user namespace of the ranks nobody's files are root's: what is declared is found before, or not at all."""
    body = ENTER.replace("    end = tunnel.here(sys.argv[3])\n    loopback.confine()\n", """
    loopback.confine()
    end = tunnel.here(sys.argv[3])
""")  # fmt: skip
    user = "os.setgroups([]); os.setgid(1000); os.setuid(1000); kernel.prctl(kernel.PR_SET_DUMPABLE, 1)\n"
    body = body.replace("try:\n", "try:\n    sandbox.require_tunnel = lambda *_: None\n    " + user, 1)
    assert inside(body, "required", tmp_path, HERE).startswith(DECLARED + "can be written by others than root")


DOCTOR = """
from appliance.flows import doctor
doctor._PEER_S = 0.5
for check in doctor._link():
    print(check.name, check.verdict, check.detail, sep="|")
"""


def test_doctor_says_what_the_link_is_and_who_does_not_answer(inside: Inside) -> None:
    link, peer = inside(DOCTOR).splitlines()
    assert link == "link|ok|wg0 is WireGuard in user space only, as the administrator declares"
    assert peer.startswith(f"link to {PEER}|warning|nothing came back")


def test_doctor_says_that_a_link_is_not_as_declared(inside: Inside, layer: Path) -> None:
    path = layer / "appliance" / "link.json"
    rewrite(path, implementation="kernel")
    assert inside(DOCTOR).startswith("link|refused|wg0 is not WireGuard")
    path.chmod(0o666)
    assert "|refused|the declaration of the link" in inside(DOCTOR)
    path.unlink()
    assert inside(DOCTOR) == ""


def test_doctor_says_that_it_is_not_where_the_link_is(
    layer: Path, run: Inside, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.run
    words = ["unshare", "-n", *with_etc(layer)]
    if real([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("not run: namespaces and layers over /etc need root")
    monkeypatch.setattr(subprocess, "run", lambda command, **options: real([*words, *command], **options))
    assert run(textwrap.dedent(DOCTOR)).startswith("link|warning|not seen from here")
