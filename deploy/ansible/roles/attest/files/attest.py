"""Attest this server: probe from inside every unit and from outside, compare with what was installed, sign the result.

`attest.py baseline` remembers what is installed, and prints "changed" or "same". `attest.py probe` prints the findings.
`attest.py sign FILE` writes and signs them (FILE.sig, ssh-keygen, namespace appliance-attest@v1). Exit 7: something is
not as it must be. Runs as root, with the standard library alone. What a root who knows this program can hide from it,
it cannot find: it is for mistakes, drift, and attackers who came less far.
"""

import glob
import hashlib
import json
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import time

NAMESPACE = "appliance-attest@v1"
BASELINE, KEY = "/etc/appliance/attest/baseline.json", "/etc/appliance/attest/key"
PROBE, RUN = "/opt/appliance/bin/probe.py", "/run/systemd/system"
UNITS = (
    "appliance-keyagent.service",
    "appliance-run@.service",
    "appliance-serve@.service",
    "appliance-check.service",
)
LINKED = ("appliance-together@.service", "appliance-join@.service")
LINK, INSIDE = "/etc/appliance/link.json", "appliance"
WATCHED = (
    "/etc/systemd/system/appliance-*",
    "/etc/systemd/system.conf.d/*",
    "/etc/tmpfiles.d/appliance.conf",
    "/etc/appliance/*.conf",
    "/etc/appliance/*.nft",
    "/etc/appliance/link.json",
    "/etc/appliance/link/peers.conf",
    "/etc/appliance/link/settings",
    "/etc/appliance/nodes/*",
    "/etc/appliance/release.signers",
    "/etc/ssh/sshd_config",
    "/etc/ssh/sshd_config.d/*",
    "/etc/sysctl.d/60-appliance.conf",
    "/etc/modprobe.d/60-appliance.conf",
    "/etc/postgresql/15/appliance/*.conf",
    "/etc/postgresql/15/appliance/conf.d/*",
    "/opt/appliance/bin/*",
    "/usr/local/bin/appliance",
    "/usr/local/sbin/appliance-unseal",
)
PROPERTIES = (
    *(
        "PrivateNetwork",
        "NoNewPrivileges",
        "PrivateTmp",
        "PrivateUsers",
        "PrivateIPC",
        "PrivateMounts",
        "PrivateDevices",
    ),
    *("ProtectSystem", "ProtectHome", "ProtectProc", "ProtectClock", "ProtectHostname", "ProtectKernelLogs"),
    *("ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups", "RestrictRealtime", "RestrictSUIDSGID"),
    *("LockPersonality", "MemoryDenyWriteExecute", "KeyringMode", "RestrictNamespaces", "RestrictAddressFamilies"),
    *("SystemCallFilter", "SystemCallArchitectures", "CapabilityBoundingSet", "AmbientCapabilities", "DevicePolicy"),
    *("DeviceAllow", "IPAddressDeny", "LimitCORE", "User", "Group", "UMask", "ReadWritePaths", "ReadOnlyPaths"),
    *("FragmentPath", "DropInPaths", "ExecStart", "Environment", "BindPaths", "RootDirectory"),
    *("NetworkNamespacePath", "IPAddressAllow"),
)
UNORDERED = ("IPAddressAllow", "IPAddressDeny")  # systemd lists them in another order after each start
FORWARDING = ("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding")
SSH = ("passwordauthentication no", "kbdinteractiveauthentication no", "allowtcpforwarding no", "permittunnel no")


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout


def _digest(data):
    return hashlib.sha256(data).hexdigest()


def _read(path):
    with open(path, "rb") as file:
        return file.read()


# --- what is installed ------------------------------------------------------------------------------------------------


def baseline():
    """Collect what is compared later: digests of files, properties of units, rules, interfaces, the release's code."""
    files = sorted(path for pattern in WATCHED for path in glob.glob(pattern) if os.path.isfile(path))
    return {
        "files": {path: _digest(_read(path)) for path in files},
        "units": {unit: _properties(unit) for unit in _units()},
        "link": _link(),
        "rules": _rules(),
        "interfaces": sorted(os.listdir("/sys/class/net")) if os.path.isdir("/sys/class/net") else _interfaces(),
        "releases": {
            os.path.basename(path): _code(path) for path in sorted(glob.glob("/opt/appliance/releases/*[0-9]"))
        },
        "accounts": _accounts(),
        "listeners": _listeners(),
    }


def _units():
    """List the units that are probed: those of several machines where this server is one of them."""
    return (*UNITS, *(unit for unit in LINKED if os.path.exists("/etc/systemd/system/" + unit)))


def _link():
    """Describe the tunnel to other machines and the namespace it ends in, as they are now; empty where none is."""
    if not os.path.exists(LINK):
        return {}
    name = json.loads(_read(LINK))["interface"]
    inside = ("ip", "netns", "exec", INSIDE)
    kinds = json.loads(_run("ip", "-n", INSIDE, "-d", "-j", "link")[1] or "[]")
    routes = [_run("ip", "-n", INSIDE, family, "route")[1].split("\n") for family in ("-4", "-6")]
    own = _run("ip", "-n", INSIDE, "-o", "addr", "show", "scope", "global")[1].splitlines()
    return {
        "interfaces": {link["ifname"]: link.get("linkinfo", {}).get("info_kind", "") for link in kinds},
        "addresses": sorted(line.split()[3] for line in own),
        "routes": sorted(line.strip() for lines in routes for line in lines if line and not line.startswith("fe80::")),
        "peers": sorted(_run(*inside, "wg", "show", name, "allowed-ips")[1].splitlines()),
        "port": _run(*inside, "wg", "show", name, "listen-port")[1].strip(),
        "forwards": _run(*inside, "cat", *FORWARDING)[1].split(),
    }


def _interfaces():
    return sorted(line.partition(":")[0].strip() for line in _read("/proc/net/dev").decode().splitlines()[2:])


def _properties(unit):
    name = unit.replace("@.", "@probe.")
    said = _run("systemctl", "show", name, *(f"--property={name}" for name in PROPERTIES))[1]
    lines = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    for name in UNORDERED:
        lines[name] = " ".join(sorted(lines.get(name, "").split()))
    return {k: re.sub(r"(start_time|stop_time|pid|code|status)=[^;}]*", r"\1", v) for k, v in sorted(lines.items())}


def _rules():
    """Digest the appliance's tables as the kernel has them, without counters; empty where there are none."""
    listed = [_run("nft", "-s", "list", "table", family, "appliance_egress") for family in ("inet", "netdev")]
    return "" if any(code for code, _ in listed) else _digest("".join(text for _, text in listed).encode())


def _code(release):
    """Digest the appliance's code, everything that Python runs at its start, and the names of all packages."""
    site = glob.glob(os.path.join(release, "lib/python3*/site-packages"))
    digest = hashlib.sha256()
    for place in site:
        digest.update("\n".join(sorted(name for name in os.listdir(place) if name != "__pycache__")).encode())
        chosen = glob.glob(place + "/*.pth") + glob.glob(place + "/*.py")
        for top, _, names in os.walk(place + "/appliance"):
            chosen += [os.path.join(top, name) for name in names if not name.endswith(".pyc")]
        for path in sorted(chosen):
            digest.update(path[len(release) :].encode() + b"\0" + _read(path))
    for path in (*sorted(glob.glob(release + "/bin/*")), release + "/pyvenv.cfg", release + "/manifest.json"):
        digest.update(path.encode() + (os.readlink(path).encode() if os.path.islink(path) else _read(path)))
    return digest.hexdigest()


def _accounts():
    """List who is root, and what the appliance's user may be."""
    roots = sorted(user.pw_name for user in pwd.getpwall() if user.pw_uid == 0)
    user = next((user for user in pwd.getpwall() if user.pw_name == "appliance"), None)
    shadow = [line.split(":")[:2] for line in _read("/etc/shadow").decode().splitlines()]
    usable = sorted(name for name, password in shadow if password and password[0] not in "!*")
    keys = sorted(glob.glob("/srv/appliance/**/.ssh/authorized_keys", recursive=True))
    return {"roots": roots, "shell": user.pw_shell if user else "", "with_passwords": usable, "keys": keys}


def _listeners():
    """List what listens on other than loopback: protocol and port."""
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
        for line in _read("/proc/net/" + name).decode().splitlines()[1:]:
            words = line.split()
            address, port = words[1].split(":")
            listening = words[3] == "0A" if name.startswith("tcp") else words[2].endswith(":0000")
            if listening and address not in ("0100007F", "00000000000000000000000001000000"):
                found.add("%s/%d" % (name, int(port, 16)))
    return sorted(found)


# --- what is found ----------------------------------------------------------------------------------------------------


def examine():
    """Give every check as (name, holds, detail)."""
    before = json.loads(_read(BASELINE))
    yield from _compare(before, baseline())
    yield from _release()
    yield from _closed()
    yield from _linked()
    yield from _host()
    for unit, probes in _probe_inside().items():
        for name, said in probes.items():
            yield "%s: %s" % (unit.partition(".")[0].rstrip("@"), name), not said.startswith("open"), said
    yield from _probe_outside()


def _compare(before, now):
    for kind in ("files", "units", "releases"):
        for name in sorted(set(before[kind]) | set(now[kind])):
            yield "%s as installed" % name, before[kind].get(name) == now[kind].get(name), kind
    for kind in ("rules", "interfaces", "accounts", "listeners", "link"):
        yield "%s as installed" % kind, before[kind] == now[kind], "" if kind == "rules" else json.dumps(now[kind])


def _release():
    """Verify that what serves was signed by whom this server trusts."""
    serving = os.path.realpath("/opt/appliance/current")
    yield "a release serves", os.path.isfile(serving + "/.complete"), os.path.basename(serving)
    sys.path.insert(0, "/opt/appliance/bin")
    import bundle_verify

    try:
        manifest, signature = _read(serving + "/manifest.json"), _read(serving + "/manifest.json.sig")
        bundle_verify.require_signed(manifest, signature, "/etc/appliance/release.signers", bundle_verify.NAMESPACE)
        known = _digest(manifest) == _read(serving + "/.complete").decode().strip()
        yield "the release is signed", known, ""
        said = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        yield "the release has not expired", json.loads(manifest)["expires"] >= said, json.loads(manifest)["expires"]
    except (OSError, bundle_verify.Refused) as error:
        yield "the release is signed", False, str(error)


def _closed():
    """Look at modes and owners of what matters."""
    home = pwd.getpwnam("appliance").pw_uid
    for path, owner, most in (
        ("/srv/appliance/home", home, 0o700),
        ("/srv/appliance", home, 0o750),
        ("/srv/appliance/import", 0, 0o750),
        ("/run/appliance", home, 0o2750),
        ("/etc/appliance", 0, 0o755),
        ("/etc/appliance/pgpass", 0, 0o600),
        ("/etc/appliance/link.json", 0, 0o644),
        ("/etc/appliance/link", 0, 0o700),
        ("/etc/appliance/link/key", 0, 0o600),
        ("/srv/appliance/home/node/node.key", home, 0o600),
        ("/etc/appliance/attest/key", 0, 0o600),
        ("/etc/credstore.encrypted", 0, 0o700),
        ("/etc/credstore.encrypted/appliance.passphrase", 0, 0o600),
        ("/var/lib/systemd/credential.secret", 0, 0o600),
        ("/var/lib/appliance-release", 0, 0o700),
        *((path, 0, 0o755) for path in glob.glob("/opt/appliance/*") + glob.glob("/opt/appliance/releases/*")),
    ):
        if os.path.lexists(path):
            found = os.stat(path)
            yield "%s is closed" % path, found.st_uid == owner and not stat.S_IMODE(found.st_mode) & ~most, ""


def _linked():
    """Look whether the namespace of the link has loopback and WireGuard alone, and leads to its peers alone."""
    if not os.path.exists(LINK):
        return
    said, found = json.loads(_read(LINK)), _link()
    kind = "wireguard" if said["implementation"] == "kernel" else "tun"
    alone = found["interfaces"] == {"lo": "", said["interface"]: kind}
    detail = json.dumps(found["interfaces"])
    yield "the link's namespace has loopback and WireGuard alone", alone, detail
    told = sorted(word.split("/")[0] for line in found["peers"] for word in line.split("\t")[1].split(" "))
    yield "the link leads to its peers alone", told == sorted(said["peers"]), json.dumps(found["peers"])
    yield "the link forwards nothing", found["forwards"] == ["0", "0"], ""
    well = _run("systemctl", "is-active", "appliance-link.service")[0] == 0
    enabled = _run("systemctl", "is-enabled", "appliance-link.service")[0] == 0
    yield "the link comes with the machine", well and enabled, ""


def _host():
    yield "swap is off", len(_read("/proc/swaps").splitlines()) == 1, ""
    said = _run("sshd", "-T")[1]
    if os.path.exists("/etc/ssh/sshd_config.d/10-appliance.conf"):
        yield "administrators come by key only", all(line in said.splitlines() for line in SSH), ""
    if os.path.exists("/etc/appliance/egress.nft"):
        yield "the rules come with the machine", _run("systemctl", "is-enabled", "appliance-egress.service")[0] == 0, ""
        yield "no way back is pending", _run("systemctl", "is-active", "appliance-deadman.timer")[0] != 0, ""
    strangers = sorted(_strangers())
    yield "only units run as the appliance's user", not strangers, ", ".join(strangers)
    left = os.path.exists("/root/appliance.passphrase")
    yield "the passphrase was written down and removed", True, "not yet" if left else ""


def _strangers():
    """Name processes of the appliance's user that are in none of its units."""
    user = pwd.getpwnam("appliance").pw_uid
    for path in glob.glob("/proc/[0-9]*"):
        try:
            if os.stat(path).st_uid == user or "Uid:\t%d\t" % user in _read(path + "/status").decode():
                places = _read(path + "/cgroup").decode()
                if not re.search(r"/(appliance-[a-z]+(@[^/]*)?|run-[a-z0-9]+)\.service(/|$)", places, re.MULTILINE):
                    yield _read(path + "/comm").decode().strip()
        except OSError:
            continue


def _probe_inside():
    """Probe from inside each unit, in a copy of it with another program: same file, same drop-ins."""
    copies = {unit: "appliance-probe-%s.service" % re.sub("[^a-z]", "", unit.partition(".")[0]) for unit in _units()}
    os.makedirs(RUN, exist_ok=True)
    try:
        for unit, name in copies.items():
            with open(os.path.join(RUN, name), "w") as file:
                file.write(_copy(unit, "/run/%s.json" % name))
        _run("systemctl", "daemon-reload")
        _run("systemctl", "start", *copies.values())
        return {unit: _said("/run/%s.json" % name) for unit, name in copies.items()}
    finally:
        for name in copies.values():
            for path in (os.path.join(RUN, name), "/run/%s.json" % name):
                if os.path.exists(path):
                    os.unlink(path)
        _run("systemctl", "reset-failed", *copies.values())
        _run("systemctl", "daemon-reload")


def _copy(unit, out):
    """Write the text of a unit, drop-ins included, that probes instead of working."""
    properties = ("systemctl", "show", unit.replace("@.", "@probe."), "--property=FragmentPath,DropInPaths")
    said = dict(line.split("=", 1) for line in _run(*properties)[1].splitlines())
    text = "\n".join(_read(path).decode() for path in [said["FragmentPath"], *said["DropInPaths"].split()] if path)
    dropped = (
        r"^(Exec\w+|Type|Requires|After|Wants|BindsTo|Condition\w+|LoadCredential\w*|WantedBy|Standard\w+|Restart"
        r"|EnvironmentFile)=.*$"
    )
    kept = re.sub(dropped, "", re.sub(r"^\[Install\]$", "[Unit]", text, flags=re.M), flags=re.M)
    program = "\n[Service]\nType=oneshot\nExecStart=/usr/bin/python3 -I %s\nStandardOutput=truncate:%s\n"
    expected = " --link " + json.loads(_read(LINK))["interface"] if unit in LINKED else ""
    return kept + program % (PROBE + expected, out)


def _said(path):
    """Read what a probe said; one that could not be run has not been blocked."""
    try:
        return json.loads(_read(path))
    except (OSError, ValueError):
        return {"probes ran": "open (nothing was said)"}


def _probe_outside():
    """Probe as root. A TCP connection is only unanswered when it is dropped, so the rules must have counted it."""
    if not os.path.exists("/etc/appliance/egress.nft"):
        yield "egress is closed", True, "left alone (egress_apply=false)"
        return
    counted = _blocked()
    said = json.loads(_run("/usr/bin/python3", "-I", PROBE, "--outside")[1] or "{}")
    more = _blocked() - counted
    for name, found in said.items():
        dropped = name.startswith("tcp") and more >= 2
        yield "server: %s" % name, found == "blocked" or dropped, "blocked" if dropped else found
    yield "server: probes ran", len(said) > 7, ""


def _blocked():
    found = re.search(r"packets (\d+)", _run("nft", "list", "counter", "inet", "appliance_egress", "blocked")[1])
    return int(found[1]) if found else 0


# --- what is said -----------------------------------------------------------------------------------------------------


def document():
    """Make the document that is signed."""
    checks = [
        {"name": name, "state": "passed" if holds else "failed", "detail": detail} for name, holds, detail in examine()
    ]
    return {
        "schema": "appliance.attest/1",
        "attested": all(check["state"] == "passed" for check in checks),
        "host": socket.gethostname(),
        "machine": _digest(b"appliance-attest " + _read("/etc/machine-id"))[:32],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "release": os.path.basename(os.path.realpath("/opt/appliance/current")),
        "baseline_sha256": _digest(_read(BASELINE)),
        "checks": checks,
    }


def main(arguments):
    """Do what is asked; see the module."""
    if arguments == ["baseline"]:
        os.makedirs(os.path.dirname(BASELINE), mode=0o700, exist_ok=True)
        if not os.path.exists(KEY):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "attest", "-f", KEY], check=True)
        text = json.dumps(baseline(), sort_keys=True, indent=1).encode() + b"\n"
        same = os.path.exists(BASELINE) and _read(BASELINE) == text
        if not same:
            with open(BASELINE + ".new", "wb") as file:
                file.write(text)
            os.rename(BASELINE + ".new", BASELINE)
        print("same" if same else "changed")
        return 0
    found = document()
    if arguments[:1] == ["sign"] and len(arguments) == 2:
        with open(arguments[1], "w") as file:
            file.write(json.dumps(found, sort_keys=True, separators=(",", ":")) + "\n")
        if os.path.exists(arguments[1] + ".sig"):
            os.unlink(arguments[1] + ".sig")
        command = ["ssh-keygen", "-q", "-Y", "sign", "-f", KEY, "-n", NAMESPACE, arguments[1]]
        subprocess.run(command, check=True, capture_output=True)
    elif arguments != ["probe"]:
        sys.exit(2)
    failed = [check for check in found["checks"] if check["state"] != "passed"]
    print(json.dumps({"attested": found["attested"], "checks": len(found["checks"]), "failed": failed}))
    return 0 if found["attested"] else 7


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
