"""A bare Debian 12 server becomes a verified appliance, trains, is broken in every way, is upgraded, and is wiped.

Real systemd, SSH, nftables and PostgreSQL. The tests stand in the order in which a server lives.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import PASSPHRASE
from tests.deploy.machine import ANSIBLE, CONTROLLER, Machine
from tests.e2e.conftest import TOKEN, write_notes

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]
CLEAN_RUNS = 3
ATTEST = "python3 -I /opt/appliance/bin/attest.py"


def attested(server: Machine) -> tuple[bool, list[str]]:
    """Probe the server; whether all is well, and the checks that failed."""
    said = json.loads(server.ssh(f"cd / && {ATTEST} probe", check=False).stdout or '{"attested": false, "failed": []}')
    return said["attested"], [check["name"] for check in said["failed"]]


# --- before -----------------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_closed_lets_everything_out(server: Machine) -> None:
    """The control: the same probes find every way open on a bare server."""
    probe = (ANSIBLE / "roles/attest/files/probe.py").read_text()
    done = server.ssh("python3 -I - --outside", input=probe)
    said = json.loads(done.stdout)
    assert {name for name, verdict in said.items() if verdict.startswith("open")} >= {
        *("tcp4", "tcp6", "udp4", "udp6", "icmp4", "icmp6", "dns", "frame-eth0"),
    }, said


def test_check_mode_before_the_first_installation_changes_nothing(server: Machine) -> None:
    played = server.play("site", "--check")
    assert server.ssh("ls -d /opt/appliance /srv/appliance /etc/appliance", check=False).stdout == ""
    assert played.status == 0


def test_an_altered_bundle_is_refused_before_anything_is_carried_over(
    server: Machine, bundles: dict[str, Path]
) -> None:
    altered = server.place / "altered.bundle"
    shutil.copy(bundles["first"], altered)
    with open(altered, "r+b") as file:
        file.seek(200_000_000)
        byte = file.read(1)
        file.seek(200_000_000)
        file.write(bytes([byte[0] ^ 1]))
    played = server.play("site", check=False, bundle_file=str(altered))
    altered.unlink()
    assert played.status
    assert "was altered" in played.said
    assert server.ssh("ls -d /opt/appliance /var/lib/appliance-release", check=False).stdout == ""


# --- installed --------------------------------------------------------------------------------------------------------


def test_a_bare_server_becomes_a_verified_one(server: Machine, figures: dict[str, float]) -> None:
    server.ssh("nft add table inet customer && nft add chain inet customer own")
    played = server.play("site", "-v")
    figures["fresh_to_verified_s"] = round(played.seconds, 1)
    assert PASSPHRASE not in played.said
    assert server.ssh("cat /etc/appliance/pgpass").stdout.split(":")[4].split()[0] not in played.said
    assert server.ssh("systemctl is-active appliance-keyagent.service").stdout == "active\n"
    assert server.ssh("nft list table inet customer").stdout.startswith("table inet customer")
    assert server.ssh("pg_lsclusters -h").stdout.split()[:3] == ["15", "appliance", "5444"]
    assert server.ssh("ls /run/appliance.passphrase /root/appliance.passphrase", check=False).stdout == ""


def test_a_second_run_and_check_mode_change_nothing(server: Machine, figures: dict[str, float]) -> None:
    again, checked = server.play("site"), server.play("site", "--check")
    figures["second_run_changed"] = again.changed
    assert (again.changed, checked.changed) == (0, 0), again.said + checked.said


def test_nothing_leaves_the_server_and_its_units(server: Machine, figures: dict[str, float]) -> None:
    """Probes inside every unit and outside of all, while the other end of the cable is watched."""
    watch = subprocess.Popen(
        ["ip", "netns", "exec", f"{server.name}-c", sys.executable, "-c", WATCH, CONTROLLER],
        stdout=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.5)
    well, failed = attested(server)
    seen = json.loads(watch.communicate(timeout=60)[0])
    figures["egress_leaks"] = len(failed) + len(seen)
    assert (well, failed, seen) == (True, [], [])
    assert server.ssh("true").returncode == 0


WATCH = """
import json, socket, sys, time
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); raw.settimeout(0.2)
seen, end = set(), time.monotonic() + 15
while time.monotonic() < end:
    try: data, (_, _, kind, _, _) = raw.recvfrom(65535)
    except TimeoutError: continue
    if kind == 4: continue  # what the controller itself sends
    proto = int.from_bytes(data[12:14], 'big')
    ssh = proto == 0x0800 and data[23] == 6 and data[34:36] == b'\\0\\x16' and data[30:34] == socket.inet_aton(sys.argv[1])
    neighbours = proto == 0x0806 or (proto == 0x86dd and data[20] == 58 and data[54] in (135, 136))
    if not ssh and not neighbours: seen.add(data[:60].hex())
print(json.dumps(sorted(seen)))
"""


def test_doctor_plants_its_leakers_in_the_units_too(server: Machine) -> None:
    done = server.ssh("cd / && appliance --json doctor", check=False)
    checks = {check["name"]: check["verdict"] for check in json.loads(done.stdout)["checks"]}
    leakers = {name: verdict for name, verdict in checks.items() if name.startswith("leaker ")}
    assert len(leakers) >= 30
    assert set(leakers.values()) == {"blocked"}, leakers
    assert done.returncode == 0, checks


# --- at work ----------------------------------------------------------------------------------------------------------


def test_a_model_is_trained_in_the_units_and_the_bundle_holds_elsewhere(
    server: Machine, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """From a file of records to a bundle for the auditor, the ledger in PostgreSQL, everything in hardened units."""
    work = server.root / "srv/appliance/import"
    shutil.copytree(tiny_model_dir, work / "model")
    write_notes(work / "notes.csv")
    server.ssh("chgrp -R appliance /srv/appliance/import && chmod -R g+rX,o= /srv/appliance/import")
    said = server.ssh(TRAIN, timeout=400).stdout
    assert TOKEN not in said
    journal = server.ssh("journalctl -u appliance-run@first --output=cat").stdout
    assert "differentially private" in journal
    assert TOKEN not in server.ssh("journalctl --output=cat").stdout
    fingerprint = server.ssh("grep -Eo '([0-9a-f]{4} ){15}[0-9a-f]{4}' /etc/appliance/paper.txt").stdout.strip()
    received = tmp_path / "received"
    shutil.copytree(server.root / "srv/appliance/export/bundle", received)
    done = server.controller(
        sys.executable, "-I", str(received / "verify.py"), "--trusted-key", fingerprint, "--state", str(tmp_path / "seen"),
        cwd=received,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


TRAIN = """set -eu
cd /
files=/srv/appliance
appliance watermark keygen
appliance model import $files/import/model --name tiny
appliance data ingest $files/import/notes.csv --name notes --units 600 --prompt question --completion answer
appliance train plan notes tiny --epsilon 2 --out $files/export/first.yaml --steps 3 --batch 60 --max-tokens 64 --rank 8 \
    --name first
install -g appliance -m 640 $files/export/first.yaml $files/import/first.yaml
systemctl start appliance-run@first
while systemctl is-active -q appliance-run@first; do sleep 0.5; done
! systemctl is-failed -q appliance-run@first
appliance watermark embed first
appliance export bundle first --out $files/export/bundle --recipient hospital-x
appliance ledger verify
"""


def test_a_model_is_served_from_a_unit_without_a_network(server: Machine) -> None:
    """Asked with curl by a socket, by who may and who may not; an engine is killed, then the whole gateway."""
    key = json.loads(server.ssh(SERVE, timeout=200).stdout.splitlines()[-1])["key"]
    wait_for_engines(server)
    chat = {"model": "first", "messages": [{"role": "user", "content": TOKEN}], "max_tokens": 4}
    said = json.loads(curl(server, key, "/v1/chat/completions", chat))
    assert said["choices"][0]["message"]["role"] == "assistant"
    assert said["appliance"]["engine"] == "primary"
    stream = curl(server, key, "/v1/chat/completions", chat | {"stream": True}, "-N")
    assert stream.startswith("data: {")
    assert stream.rstrip().endswith("data: [DONE]")
    assert "invalid_api_key" in curl(server, "sk-none", "/v1/models")
    connect = "python3 -c 'import socket; socket.socket(socket.AF_UNIX).connect(\"/run/appliance/first.socket\")'"
    assert server.ssh(f"runuser -u www-data -- {connect}", check=False).returncode == 0
    assert "Permission denied" in server.ssh(f"runuser -u nobody -- {connect}", check=False).stderr
    for process in served(server)["pids"]:
        assert server.ssh(f"nsenter --net=/proc/{process}/ns/net ip -br link").stdout.split()[::4] == ["lo"]
    assert served(server)["network"] == ["none", "none"]
    assert attested(server) == (True, [])

    server.ssh(f"kill -KILL {served(server)['pids'][1]}")
    degraded = json.loads(curl(server, key, "/v1/chat/completions", chat))
    assert degraded["appliance"]["engine"] == "fallback"
    server.ssh("systemctl kill --kill-who=main --signal=KILL appliance-serve@first && sleep 5.5")
    wait_for_engines(server)
    server.ssh("systemctl stop appliance-serve@first")
    assert server.ssh("systemctl show -p Result --value appliance-serve@first").stdout == "success\n"
    assert server.ssh("ls /run/appliance; pgrep -u appliance -f appliance.serve", check=False).stdout == ""
    facts = [entry["leaf"]["facts"] for entry in ledger(server, "serving.degraded")]
    assert degraded["id"] in [answer["id"] for told in facts for answer in told["answers"]]
    assert [entry["leaf"]["facts"]["ended"] for entry in ledger(server, "serving.ended")] == ["killed", "stopped"]
    assert TOKEN not in server.ssh("journalctl --output=cat").stdout

    server.ssh("systemctl start appliance-serve@nobody; sleep 6")
    said_of_it = server.ssh("systemctl show -p ActiveState,NRestarts --value appliance-serve@nobody").stdout
    assert set(said_of_it.split()) == {"failed", "0"}, "what is refused is not asked again"
    server.ssh("systemctl reset-failed appliance-serve@nobody; cd / && appliance ledger verify")


SERVE = """set -eu
cd /
usermod --append --groups appliance-clients www-data
mkdir -p /etc/appliance/serve
model=llama.cpp:/srv/appliance/export/first-q8
echo "ENGINES=--primary $model --fallback $model --context 256" > /etc/appliance/serve/first
appliance model quantize first --to q8_0 --predictions 0 --out /srv/appliance/export/first-q8
appliance --json serve client add ward
systemctl start appliance-serve@first
"""


def served(server: Machine) -> dict[str, Any]:
    """What is said of the serving that goes on: its processes (supervisor, primary, fallback), what engines reach, if they are well."""
    state = json.loads(server.ssh("cat /srv/appliance/home/servings/*/state.json").stdout)
    main = int(server.ssh("systemctl show -p MainPID --value appliance-serve@first").stdout)
    engines = state["engines"]
    return {
        "pids": [main, *(engine["pid"] for engine in engines)],
        "network": [engine["network"] for engine in engines],
        "well": [engine["well"] for engine in engines],
    }


def wait_for_engines(server: Machine, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with suppress(AssertionError, ValueError):
            if served(server)["well"] == [True, True]:
                return
        assert time.monotonic() < deadline, server.ssh("journalctl -u appliance-serve@first --output=cat").stdout
        time.sleep(0.5)


def curl(server: Machine, key: str, path: str, body: object = None, *words: str) -> str:
    """Ask the served model by its socket, which is reached through the machine's init."""
    command = ["curl", "-sS", "--max-time", "60", "--unix-socket", f"{server.inside}/run/appliance/first.socket"]
    command += ["-H", f"Authorization: Bearer {key}", *words, f"http://appliance{path}"]
    command += ["-d", json.dumps(body)] if body else []
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ledger(server: Machine, kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(server.ssh(f"cd / && appliance --json ledger log --type {kind}").stdout)[
        "entries"
    ]
    return entries


def test_an_attestation_is_signed_and_stands_in_the_ledger(server: Machine, tmp_path: Path) -> None:
    server.play("attest", attest_directory=str(tmp_path))
    found = next(tmp_path.rglob("attestation.json"))
    public = server.ssh("cat /etc/appliance/attest/key.pub").stdout.split()
    signers = tmp_path / "signers"
    signers.write_text(f"server {public[0]} {public[1]}\n")
    command = ["ssh-keygen", "-Y", "verify", "-f", str(signers), "-I", "server", "-n", "appliance-attest@v1", "-s"]
    subprocess.run([*command, f"{found}.sig"], input=found.read_bytes(), check=True, capture_output=True)
    assert "machine.attested" in server.ssh("cd / && appliance --json ledger log").stdout


# --- broken on purpose ------------------------------------------------------------------------------------------------

UNIT = "/etc/systemd/system"
MUTATIONS = {
    "rules of IP removed": ("nft delete table inet appliance_egress", ""),
    "rules of interfaces removed": ("nft delete table netdev appliance_egress", ""),
    "policy turned to accept": ("nft chain inet appliance_egress output '{ policy accept; }'", ""),
    "one more rule": ("nft insert rule inet appliance_egress output udp dport 53 accept", ""),
    "rules not loaded at start": (
        "systemctl -q disable appliance-egress",
        "systemctl -q enable appliance-egress",
    ),
    "a drop-in gives a network": (
        f"mkdir -p {UNIT}/appliance-run@.service.d && printf '[Service]\\nPrivateNetwork=no\\n'"
        f" > {UNIT}/appliance-run@.service.d/x.conf && systemctl daemon-reload",
        f"rm -r {UNIT}/appliance-run@.service.d && systemctl daemon-reload",
    ),
    "a drop-in lifts the filter of calls": (
        f"mkdir -p {UNIT}/appliance-keyagent.service.d && printf '[Service]\\nSystemCallFilter=\\n'"
        f" > {UNIT}/appliance-keyagent.service.d/x.conf && systemctl daemon-reload",
        f"rm -r {UNIT}/appliance-keyagent.service.d && systemctl daemon-reload",
    ),
    "a unit runs as root": (
        f"cp {UNIT}/appliance-check.service /root/kept && sed -i s/^User=.*/User=root/ {UNIT}/appliance-check.service"
        " && systemctl daemon-reload",
        f"mv /root/kept {UNIT}/appliance-check.service && systemctl daemon-reload",
    ),
    "a unit writes the system": (
        f"cp {UNIT}/appliance-check.service /root/kept && sed -i /^ProtectSystem/d {UNIT}/appliance-check.service"
        " && systemctl daemon-reload",
        f"mv /root/kept {UNIT}/appliance-check.service && systemctl daemon-reload",
    ),
    "code of the release altered": (
        "f=$(echo /opt/appliance/current/lib/python3*/site-packages/appliance/errors.py); cp -p $f /root/kept; echo >> $f",
        "cp -p /root/kept /opt/appliance/current/lib/python3*/site-packages/appliance/errors.py",
    ),
    "a module planted beside": (
        "touch $(echo /opt/appliance/current/lib/python3*/site-packages)/sitecustomize.py",
        "rm /opt/appliance/current/lib/python3*/site-packages/sitecustomize.py",
    ),
    "other signers trusted": (
        "cp /etc/appliance/release.signers /root/kept; ssh-keygen -q -t ed25519 -N '' -f /root/k;"
        " echo \"release $(cut -d' ' -f1,2 /root/k.pub)\" > /etc/appliance/release.signers",
        "mv /root/kept /etc/appliance/release.signers; rm /root/k*",
    ),
    "the home opened": ("chmod 755 /srv/appliance/home", "chmod 700 /srv/appliance/home"),
    "the passphrase's credential opened": (
        "chmod 644 /etc/credstore.encrypted/appliance.passphrase",
        "chmod 600 /etc/credstore.encrypted/appliance.passphrase",
    ),
    "passwords for SSH": (
        "sed -i s/no/yes/ /etc/ssh/sshd_config.d/10-appliance.conf",
        "sed -i s/yes/no/ /etc/ssh/sshd_config.d/10-appliance.conf",
    ),
    "something listens": (
        'systemd-run -q --unit=stranger python3 -c \'import socket,time; s=socket.create_server(("0.0.0.0", 8080));'
        " time.sleep(300)'; sleep 0.5",
        "systemctl stop stranger",
    ),
    "a second root": ("useradd -o -u 0 -g 0 toor", "sed -i /^toor:/d /etc/passwd /etc/shadow"),
    "a shell for the appliance's user": ("usermod -s /bin/bash appliance", "usermod -s /usr/sbin/nologin appliance"),
    "a stranger under the appliance's user": (
        "systemd-run -q --unit=stranger --uid=appliance sleep 300; sleep 0.3",
        "systemctl stop stranger",
    ),
    "one more interface": ("ip link add more0 type veth peer name more1", "ip link delete more0"),
}


def test_every_mutation_of_the_host_is_found(server: Machine, figures: dict[str, float]) -> None:
    missed, not_undone = [], []
    for name, (breaks, undo) in MUTATIONS.items():
        server.ssh(breaks)
        if attested(server)[0]:
            missed.append(name)
        server.ssh(undo or "systemctl reload appliance-egress")
    well, failed = attested(server)
    if not well:
        not_undone = failed
    figures["attestation_mutations"], figures["attestation_missed"] = len(MUTATIONS), len(missed)
    assert (missed, not_undone) == ([], [])


def test_clean_runs_raise_no_alarm(server: Machine, figures: dict[str, float], request: pytest.FixtureRequest) -> None:
    runs = 20 if request.config.getoption("--stress") else CLEAN_RUNS
    alarms = [failed for well, failed in (attested(server) for _ in range(runs)) if not well]
    figures["attestation_clean_runs"], figures["attestation_false_alarms"] = runs, len(alarms)
    assert alarms == []


def test_rules_that_lock_the_administrators_out_are_gone_after_a_while(server: Machine) -> None:
    server.ssh("sed 's/192.0.2.1/192.0.2.77/' /etc/appliance/egress.nft > /root/wrong.nft")
    server.ssh(
        "systemd-run -q --on-active=1 --timer-property=AccuracySec=100ms /opt/appliance/bin/egress try /root/wrong.nft 10"
    )
    time.sleep(2.5)
    assert server.ssh("true", check=False).returncode == 255
    deadline = time.monotonic() + 20
    while server.ssh("true", check=False).returncode:
        assert time.monotonic() < deadline
    assert attested(server)[0]


def test_after_power_loss_everything_is_as_it_was(server: Machine) -> None:
    server.cut_power()
    server.boot()
    for _ in range(40):
        if server.ssh("systemctl is-active appliance-keyagent", check=False).stdout == "active\n":
            break
        time.sleep(0.5)
    assert "unsealed" in server.ssh("cd / && appliance status").stdout
    assert attested(server) == (True, [])


# --- later ------------------------------------------------------------------------------------------------------------


def serving(server: Machine) -> str:
    return server.ssh("readlink /opt/appliance/current").stdout.strip().removeprefix("releases/")


def test_a_full_disk_stops_an_upgrade_before_anything_changes(server: Machine, bundles: dict[str, Path]) -> None:
    staging = "/var/lib/appliance-release/staging"
    server.ssh(f"mount -t tmpfs -o size=50m none {staging}")
    played = server.play("upgrade", check=False, bundle_file=str(bundles["second"]))
    server.ssh(f"umount {staging}")
    assert played.status
    assert "No space left" in played.said
    assert serving(server).endswith("-1")
    assert "unsealed" in server.ssh("cd / && appliance status").stdout


INSTALL = "Install the release, in a network namespace without interfaces"
FLIP = "Flip to the new release with its units, migrate, look, or flip back"


def test_an_upgrade_whose_controller_is_killed_leaves_one_whole_release(
    server: Machine, bundles: dict[str, Path], figures: dict[str, float], request: pytest.FixtureRequest
) -> None:
    """Killed again and again, each time later on; under --stress at every task, and then anew.

    The upgrade that comes through stands in the next test.
    """
    server.variables["bundle_file"] = str(bundles["second"])
    server.ssh("systemctl start appliance-serve@first")
    figures["upgrade_mixed"] = 1
    figures["upgrade_cuts"] = (cut_everywhere if request.config.getoption("--stress") else cut_here_and_there)(server)
    figures["upgrade_mixed"] = 0
    server.ssh("echo >> /etc/systemd/system/appliance-check.service")
    with pytest.raises(AssertionError):
        require_whole(server)
    server.ssh("sed -i '$d' /etc/systemd/system/appliance-check.service")
    require_whole(server)


def cut_here_and_there(server: Machine) -> int:
    """One upgrade, which is killed five times and goes on each time."""
    chance = random.Random(20)
    cuts: list[tuple[str, float | None]] = [(str(chance.randint(5, 14)), None), (INSTALL, chance.uniform(2, 12))]
    cuts += [(str(chance.randint(16, 22)), None), (FLIP, chance.uniform(0.5, 9)), ("Remember what is installed", None)]
    for task, after_s in cuts:
        assert server.cut("upgrade", task, after_s), task
        require_whole(server)
    return len(cuts)


def cut_everywhere(server: Machine) -> int:
    """An upgrade for every task of an upgrade, killed before it or in it."""
    chance, number, cut = random.Random(20), 0, True
    while cut:
        if require_whole(server).endswith("-2"):
            server.ssh("/opt/appliance/bin/flip rollback")
        if number < 15:  # tasks that carry and install
            server.ssh(f"rm -rf /opt/appliance/releases/*-2; echo 1 > {STATE}/installed")
        number += 1
        cut = server.cut("upgrade", str(number), chance.choice([None, chance.uniform(0, 4)]))
    require_whole(server)
    assert number > 25, "there were that many tasks"
    return number


STATE = "/var/lib/appliance-release"


def require_whole(server: Machine) -> str:
    """Require that one release serves with its own units, is well, and took up again what it did; its name."""
    server.ssh(f"flock {STATE}/install.lock flock {STATE}/lock true")  # what goes on alone comes to its end
    now = serving(server)
    said = server.ssh(WHOLE).stdout
    assert said.count(f"/opt/appliance/releases/{now}/bin/python") == 2, said
    return now


WHOLE = """set -eu
cd /opt/appliance/current/
test "$(cat .complete)" = "$(sha256sum < manifest.json | cut -d' ' -f1)"
test ! -e /var/lib/appliance-release/pending
test -z "$(/opt/appliance/bin/flip differ)"
pgrep -u appliance -af 'm appliance.keyagent|serve start'
cd / && appliance serve client add c$(date +%s%N) > /dev/null 2>&1 && appliance ledger verify > /dev/null
"""


def test_an_upgrade_serves_and_goes_back(server: Machine, bundles: dict[str, Path], figures: dict[str, float]) -> None:
    server.variables["bundle_file"] = str(bundles["second"])
    server.ssh("systemctl start appliance-serve@first")
    server.play("upgrade")
    assert require_whole(server).endswith("-2")
    assert attested(server) == (True, [])
    began = time.monotonic()
    server.ssh("/opt/appliance/bin/flip rollback")
    figures["rollback_s"] = round(time.monotonic() - began, 1)
    assert require_whole(server).endswith("-1")
    assert "unsealed" in server.ssh("cd / && appliance status").stdout
    server.ssh("systemctl stop appliance-serve@first")


def test_an_older_bundle_needs_a_permission(server: Machine, bundles: dict[str, Path]) -> None:
    server.ssh("rm -r /opt/appliance/releases/*-1.gone", check=False)
    server.ssh("echo 7 > /var/lib/appliance-release/installed; mv /opt/appliance/releases/*-2 /root/second")
    played = server.play("upgrade", check=False)
    server.ssh("mv /root/second /opt/appliance/releases/$(basename $(ls -d /opt/appliance/releases/*-1) | sed s/1$/2/)")
    server.ssh("echo 2 > /var/lib/appliance-release/installed")
    assert played.status
    assert "release 7 is installed" in played.said
    assert serving(server).endswith("-1")


def test_an_upgrade_that_does_not_start_goes_back_by_itself(server: Machine) -> None:
    site = "/opt/appliance/releases/*-2/lib/python3*/site-packages/appliance"
    server.ssh(f"mv {site}/errors.py /root/errors.py")
    done = server.ssh("/opt/appliance/bin/flip upgrade $(basename /opt/appliance/releases/*-2)", check=False)
    server.ssh(f"mv /root/errors.py $(echo {site})/errors.py")
    assert done.returncode == 1
    assert "serves again" in done.stderr
    assert serving(server).endswith("-1")
    assert "unsealed" in server.ssh("cd / && appliance status").stdout


def test_an_upgrade_whose_migration_fails_goes_back_by_itself(server: Machine) -> None:
    """The new release starts and says its status; only its verb that migrates fails."""
    verb = server.ssh(
        "ls /opt/appliance/releases/*-2/lib/python3*/site-packages/appliance/cli/ledger.py"
    ).stdout.strip()
    server.ssh(f"mv {verb} /root/ledger.py")
    done = server.ssh("/opt/appliance/bin/flip upgrade $(basename /opt/appliance/releases/*-2)", check=False)
    server.ssh(f"mv /root/ledger.py {verb}")
    assert done.returncode == 1
    assert "serves again" in done.stderr
    assert serving(server).endswith("-1")
    assert attested(server) == (True, [])


@pytest.mark.parametrize("after_s", [0.2, 1.5, 4.0])
def test_an_upgrade_that_is_killed_ends_old_or_new_and_healthy(server: Machine, after_s: float) -> None:
    new = "$(basename /opt/appliance/releases/*-2)"
    server.ssh(f"timeout --signal=KILL {after_s} setsid --wait /opt/appliance/bin/flip upgrade {new}", check=False)
    server.ssh("pkill -KILL -f '^/bin/bash /opt/appliance/bin/flip'", check=False)
    server.ssh("/opt/appliance/bin/flip finish")  # as appliance-finish.service does when the machine starts
    now = serving(server)
    assert "unsealed" in server.ssh("cd / && appliance status").stdout
    server.ssh("test ! -e /var/lib/appliance-release/pending")
    if now.endswith("-2"):
        server.ssh("/opt/appliance/bin/flip rollback")


def test_a_backup_is_restored_bit_for_bit(server: Machine) -> None:
    server.play("backup")
    said = server.play("restore_drill").said
    assert "restored bit for bit" in said
    assert "bytes of database" in said
    server.ssh(
        "f=$(ls -d /var/backups/appliance/*Z/ledger.sql); printf x | dd of=$f bs=1 seek=100 conv=notrunc status=none"
    )
    assert server.play("restore_drill", check=False).status
    assert "unsealed" in server.ssh("cd / && appliance status").stdout


def test_verify_says_that_all_is_well(server: Machine) -> None:
    assert server.play("verify").changed == 0


def test_a_wipe_is_meant_or_does_nothing(server: Machine) -> None:
    server.play("wipe")
    assert server.play("wipe", "--tags", "wipe", check=False).status
    assert "unsealed" in server.ssh("cd / && appliance status").stdout
    played = server.play("wipe", "--tags", "wipe", store_wipe_confirm=server.name)
    assert "files of keys were overwritten" in played.said
    left = server.ssh(
        "ls -d /srv/appliance /opt/appliance/releases /etc/appliance/pgpass; ls /etc/credstore.encrypted", check=False
    )
    assert left.stdout == ""
    assert server.ssh("nft list table inet appliance_egress", check=False).returncode == 0


def test_a_server_with_postgresql_and_rules_of_its_own_keeps_them(
    server: Machine, bundles: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    """Installed anew after the wipe, beside a cluster of the customer's."""
    if not request.config.getoption("--stress"):
        pytest.skip("not run: --stress runs it")
    server.ssh("pg_createcluster --start 15 main && runuser -u postgres -- createdb -p 5432 customer")
    server.variables["bundle_file"] = str(bundles["first"])
    server.play("site")
    assert "customer" in server.ssh("runuser -u postgres -- psql -p 5432 -Atc 'select datname from pg_database'").stdout
    assert server.ssh("pg_lsclusters -h | cut -d' ' -f1-4 | tr -s ' '").stdout.count("15") == 2
    assert server.ssh("nft list table inet customer").returncode == 0
    assert attested(server) == (True, [])
