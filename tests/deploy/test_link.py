"""Two bare servers become a control node and a node that train together over WireGuard, and are broken in its ways.

Real systemd, nftables and SSH; WireGuard in user space, declared, as the kernel of a test machine need not have it. The
controller is also the switch between the two, so that it sees all that leaves them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.conftest import PASSPHRASE
from tests.deploy.machine import CACHE, CONTROLLER, Machine, Unavailable, machines, play_all
from tests.e2e.conftest import TOKEN, write_notes
from tests.tunnels import watched

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]
ATTEST = "python3 -I /opt/appliance/bin/attest.py"
IMPORT = "srv/appliance/import"


@pytest.fixture(scope="module")
def servers(bundles: dict[str, Path]) -> Iterator[list[Machine]]:
    """A control node and a node, bare; the first test installs the appliance on them."""
    place = CACHE / "linked"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    secret = place / "passphrase"
    secret.touch(mode=0o600)
    secret.write_text(PASSPHRASE + "\n")
    try:
        with machines(place, "lnk", 2) as made:
            for number, server in enumerate(made, start=1):
                server.variables |= {
                    "bundle_file": str(bundles["first"]),
                    "bundle_signers": str(CACHE / "release.signers"),
                    "egress_admins": [CONTROLLER],
                    "store_passphrase_file": str(secret),
                    "link_address": f"10.9.0.{number}",
                    "link_endpoint": server.address,
                    "link_implementation": "wireguard-go",
                    "store_home": number == 1,
                }
            yield made
    except Unavailable as reason:
        pytest.skip(str(reason))


def attested(server: Machine) -> tuple[bool, list[str]]:
    said = json.loads(server.ssh(f"cd / && {ATTEST} probe", check=False).stdout or '{"attested": false, "failed": []}')
    return said["attested"], [check["name"] for check in said["failed"]]


def test_a_kernel_without_wireguard_is_refused_unless_user_space_is_declared(servers: list[Machine]) -> None:
    if servers[0].ssh("unshare -n ip link add wg0 type wireguard", check=False).returncode == 0:
        pytest.skip("not run: this kernel has WireGuard")
    kept = [server.variables.pop("link_implementation") for server in servers]
    try:
        played = play_all(servers, "preflight", check=False)
    finally:
        for server, implementation in zip(servers, kept, strict=True):
            server.variables["link_implementation"] = implementation
    assert played.status
    assert "this kernel has no WireGuard" in played.said


def test_two_servers_are_linked_and_a_second_run_changes_nothing(servers: list[Machine]) -> None:
    played = play_all(servers, "site", "-v")
    for server in servers:
        private = server.ssh("cat /etc/appliance/link/key").stdout.strip()
        assert private not in played.said
        assert private not in Path(servers[0].place / "ansible.log").read_text()
        assert attested(server) == (True, [])
    again, checked = play_all(servers, "site"), play_all(servers, "site", "--check")
    assert (again.changed, checked.changed) == (0, 0), again.said + checked.said
    said = servers[0].ssh("cd / && appliance --linked --json doctor").stdout
    link = {check["name"]: check for check in json.loads(said)["checks"] if check["name"].startswith("link")}
    assert link["link"]["detail"] == "wg0 is WireGuard in user space only, as the administrator declares"
    assert link["link to 10.9.0.2"]["verdict"] == "ok"


# --- at work ----------------------------------------------------------------------------------------------------------

PREPARE = """set -eu
cd /
files=/srv/appliance
appliance watermark keygen
appliance model import $files/import/model --name tiny
appliance data ingest $files/import/notes.csv --name notes --units 600 --prompt question --completion answer
appliance train plan notes tiny --epsilon 2 --out $files/export/first.yaml --steps 6 --batch 60 --max-tokens 64 --rank 2 \
    --name first
install -g appliance -m 640 $files/export/first.yaml $files/import/first.yaml
systemctl start appliance-together@first
until ls $files/home/runs/run_*/tickets/*.json 2> /dev/null; do
    sleep 0.2; systemctl is-active -q appliance-together@first
done
"""
ENDED = "while systemctl is-active -q {unit}; do sleep 0.2; done; journalctl -u {unit} --output=cat"


def test_a_run_of_both_goes_through_wireguard_and_nothing_else_leaves(
    servers: list[Machine], tiny_model_dir: Path
) -> None:
    control, node = servers
    shutil.copytree(tiny_model_dir, control.root / IMPORT / "model")
    write_notes(control.root / IMPORT / "notes.csv")
    control.ssh("chgrp -R appliance /srv/appliance/import && chmod -R g+rX,o= /srv/appliance/import")
    with watched("lnk-c", control.name, "here/") as seen:
        control.ssh(PREPARE, timeout=400)
        carry(control, node)
        node.ssh("systemctl start appliance-join@first")
        joined = node.ssh(ENDED.format(unit="appliance-join@first"), timeout=300).stdout
        said = control.ssh(ENDED.format(unit="appliance-together@first"), timeout=300).stdout
    assert "is trained" in joined, joined + said
    assert "differentially private" in said
    assert TOKEN not in joined + said
    (entry,) = json.loads(control.ssh("cd / && appliance --json ledger log --type run.settled").stdout)["entries"]
    assert entry["leaf"]["facts"]["isolation"]["network"].startswith("WireGuard in user space only")
    # What the controller's SSH says to the control node and back is the one other thing on this cable.
    assert [frame for frame in seen["other"] if not is_ssh(frame)] == []
    assert seen["needle"] == 0
    assert seen["wireguard"] > 20


def carry(control: Machine, node: Machine) -> None:
    """Carry ticket, object and model to the node, as an administrator does."""
    runs, target = control.root / "srv/appliance/home", node.root / IMPORT / "first"
    (ticket,) = runs.glob("runs/run_*/tickets/*.json")
    job = json.loads(ticket.read_text())["job"]
    target.mkdir()
    shutil.copy(ticket, target / "ticket.json")
    shutil.copy(runs / "objects" / job["dataset"]["blake3"], target / "object")
    shutil.copytree(runs / "models" / job["model_sha256"], target / "model")
    node.ssh("chgrp -R appliance /srv/appliance/import && chmod -R g+rX,o= /srv/appliance/import")


def is_ssh(frame: str) -> bool:
    data = bytes.fromhex(frame)
    return data[12:14] == b"\x08\x00" and data[23] == 6 and b"\x00\x16" in (data[34:36], data[36:38])


# --- broken on purpose ------------------------------------------------------------------------------------------------

IN = "ip netns exec appliance"
MUTATIONS = {
    "one more interface in the namespace": (
        "ip -n appliance link add more0 type veth peer name more1",
        "ip -n appliance link delete more0",
    ),
    "a peer that may send from anywhere": (
        "wg set wg0 peer $(wg show wg0 peers) allowed-ips 0.0.0.0/0",
        "wg set wg0 peer $(wg show wg0 peers) allowed-ips {peer}/32",
    ),
    "one more peer": (
        "wg set wg0 peer $(wg genkey | wg pubkey) allowed-ips 10.9.0.99/32",
        "systemctl restart appliance-link",
    ),
    "a way out of the namespace": (
        "ip -n appliance route add default dev wg0",
        "ip -n appliance route delete default dev wg0",
    ),
    "the interface outside of the namespace": (
        "ip -n appliance link set wg0 netns 1",
        "systemctl restart appliance-link",
    ),
    "a declaration that the service can write": (
        "chgrp appliance /etc/appliance/link.json; chmod 664 /etc/appliance/link.json",
        "chgrp root /etc/appliance/link.json; chmod 644 /etc/appliance/link.json",
    ),
    "a private key that others can read": (
        "chmod 644 /etc/appliance/link/key",
        "chmod 600 /etc/appliance/link/key",
    ),
    "the link's port to everybody": (
        "nft insert rule inet appliance_egress output udp dport 51820 accept",
        "systemctl reload appliance-egress",
    ),
}


def test_every_mutation_of_the_link_is_found(servers: list[Machine]) -> None:
    server, missed = servers[1], []
    for name, (breaks, undo) in MUTATIONS.items():
        server.ssh(breaks)
        if attested(server)[0]:
            missed.append(name)
        server.ssh(undo.format(peer="10.9.0.1"))
    assert (missed, attested(server)) == ([], (True, []))


def test_a_machine_that_gives_more_than_its_public_key_is_refused(servers: list[Machine]) -> None:
    """Taken over, it could otherwise name peers and addresses for the others."""
    control, node = servers
    before = control.ssh("cat /etc/appliance/link/peers.conf").stdout
    node.ssh(r"printf '%s\nAllowedIPs = 0.0.0.0/0\n' $(cat /etc/appliance/link/key.pub) > /etc/appliance/link/key.pub")
    try:
        with pytest.raises(AssertionError, match="as its public key is none"):
            play_all(servers, "site")
    finally:
        node.ssh("/opt/appliance/bin/link key")
    assert control.ssh("cat /etc/appliance/link/peers.conf").stdout == before


def test_only_the_peers_port_is_open_to_the_peers(servers: list[Machine]) -> None:
    """From the right port to the right one of the right machine, and in no other way, also past the hooks of IP."""
    control, node = servers
    send = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', int(sys.argv[1])));"
        " s.sendto(b'x', (sys.argv[2], int(sys.argv[3])))"
    )
    control.ssh("systemctl stop appliance-link")
    try:
        for own, to, port, leaves in (
            (51820, node.address, 51820, True),
            (51821, node.address, 51820, False),
            (51820, node.address, 51821, False),
            (51820, "192.0.2.77", 51820, False),
            (51820, CONTROLLER, 51820, False),
        ):
            sent = control.ssh(f'python3 -c "{send}" {own} {to} {port}', check=False)
            assert (sent.returncode == 0) == leaves, (own, to, port, sent.stderr)
    finally:
        control.ssh("systemctl start appliance-link")


def test_the_link_comes_back_by_itself(servers: list[Machine]) -> None:
    """After its program was killed, and after the power was cut on one machine."""
    control, node = servers
    control.ssh("kill -9 $(systemctl show appliance-link --property=MainPID --value); sleep 0.5")
    node.cut_power()
    node.boot()
    connect = f"{IN} python3 -c \"import socket; socket.create_connection(('10.9.0.2', 9), 2)\""
    deadline = time.monotonic() + 60
    while "refused" not in control.ssh(connect, check=False).stderr:
        assert time.monotonic() < deadline, control.ssh("systemctl status appliance-link", check=False).stdout
    for server in servers:
        for _ in range(40):  # the key agent takes a moment
            if server.ssh("systemctl is-system-running", check=False).stdout != "starting\n":
                break
            time.sleep(0.5)
        assert attested(server) == (True, [])


def test_units_of_the_link_are_as_closed_as_the_others(servers: list[Machine]) -> None:
    for server, unit in zip(servers, ("appliance-together@.service", "appliance-join@.service"), strict=True):
        path = f"/etc/systemd/system/{unit}"
        said = server.ssh(f"systemd-analyze security --offline=true --threshold=10 --no-pager {path}").stdout
        level = float(said.rpartition("Overall exposure level for")[2].split(":")[1].split()[0])
        assert level <= 1.0, said
    said = servers[0].ssh("systemctl show appliance-link --property=MainPID --value").stdout.strip()
    status = servers[0].ssh(f"cat /proc/{said}/status").stdout
    assert "Uid:\t0" not in status


def test_a_machine_that_is_left_alone_has_no_link_any_more(servers: list[Machine]) -> None:
    control = servers[0]
    play_all([control], "site")
    paths = "/etc/appliance/link* /run/netns /etc/systemd/system/appliance-[lt]*"
    left = control.ssh(f"ls {paths}", check=False).stdout
    assert left.replace("/run/netns:", "").strip() == ""
    assert "51820" not in control.ssh("nft list ruleset; ss -lunH").stdout
    assert attested(control) == (True, [])
