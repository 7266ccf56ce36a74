"""Verify a release bundle, and unpack it: one file of standard-library Python, for the controller and for the target.

`python3 -I bundle_verify.py BUNDLE --signers FILE [--installed FILE] [--extract DIR]`. A bundle is a tar archive, and
the only one that its manifest describes: every header is made again from the manifest and compared, so no byte of the
file is unaccounted for, and no tar reader sees foreign input. Exit status: 0 all holds; 2 called wrongly; 8 altered, or
not signed by whom FILE names; 9 no room; 14 something is missing; 15 expired, too old or too new for what is installed.

The layout is docs/spec/release-bundle.md of the appliance.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time

NAMESPACE = "appliance-bundle@v1"
DOWNGRADE_NAMESPACE = "appliance-downgrade@v1"
IDENTITY = "release"
MANIFEST, SIGNATURE = "manifest.json", "manifest.json.sig"
BLOCK = 512
LARGEST_MANIFEST = 4 << 20
NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._+~@-]*/)*[A-Za-z0-9][A-Za-z0-9._+~@-]*")
FIELDS = {
    "schema": str,
    "version": str,
    "flavour": str,
    "sequence": int,
    "min_from": int,
    "created": str,
    "expires": str,
    "files": list,
}
REQUIRED = ("requirements.txt", "sbom.cdx.json", "ansible/galaxy.yml")


class Refused(Exception):
    """The bundle is not accepted: exit status and reason."""

    def __init__(self, status, reason):
        super().__init__(reason)
        self.status = status


# --- the archive ------------------------------------------------------------------------------------------------------


def header(name, size):
    """Make the one header that a member of this name and size may have, as GNU tar writes it for long names."""
    encoded = name.encode()
    if len(encoded) <= 100:
        return _block(encoded, size, b"0")
    long = encoded + b"\0"
    return _block(b"././@LongLink", len(long), b"L") + long + padding(len(long)) + _block(encoded[:100], size, b"0")


def _block(name, size, kind):
    if size >= 8**11:
        raise ValueError("a member does not fit into an archive")
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"0000644\0" + b"0000000\0" * 2,
            b"%011o\0" % size + b"%011o\0" % 0,
            b" " * 8 + kind + b"\0" * 100,
            b"ustar  \0",
        )
    ).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def padding(size):
    """Make the zeros behind a member of this size."""
    return b"\0" * (-size % BLOCK)


class Archive:
    """A bundle's bytes, read once from front to back."""

    def __init__(self, stream):
        self._stream = stream

    def small(self, name, most):
        """Read a member whose size only its header says."""
        block = self._read(BLOCK, name)
        size = block[124:136]
        if (
            not re.fullmatch(rb"[0-7]{11}\0", size)
            or int(size[:-1], 8) > most
            or block != header(name, int(size[:-1], 8))
        ):
            raise Refused(8, "%s is not where it must be" % name)
        content = self._read(int(size[:-1], 8), name)
        self._expect(padding(len(content)), "the padding of %s was altered" % name)
        return content

    def pass_over(self, entry, target):
        """Read the member that a manifest's entry describes into `target` (or nowhere), and compare its digest."""
        name, left = entry["path"], entry["bytes"]
        self._expect(header(name, left), "%s is missing, or its header was altered" % name)
        digest = hashlib.sha256()
        while left:
            part = self._read(min(left, 1 << 20), name)
            digest.update(part)
            if target is not None:
                target.write(part)
            left -= len(part)
        self._expect(padding(entry["bytes"]), "the padding of %s was altered" % name)
        if digest.hexdigest() != entry["sha256"]:
            raise Refused(8, "%s was altered" % name)

    def end(self):
        """Require that two blocks of zeros follow, and then nothing."""
        self._expect(bytes(2 * BLOCK), "the end of the bundle was altered")
        if self._stream.read(1):
            raise Refused(8, "something follows the end of the bundle")

    def _read(self, size, name):
        content = self._stream.read(size)
        if len(content) != size:
            raise Refused(14, "the bundle ends within %s" % name)
        return content

    def _expect(self, expected, reason):
        found = self._stream.read(len(expected))
        if found != expected:
            raise Refused(14 if len(found) < len(expected) else 8, reason)


# --- the signature ----------------------------------------------------------------------------------------------------


def require_signed(content, signature, signers, namespace):
    """Require a signature of `content` by somebody whom the file `signers` allows to sign releases."""
    _require_canonical(signature)
    if not os.path.isfile(signers):
        raise Refused(14, "no trusted key: there is no file %s" % signers)
    with tempfile.TemporaryDirectory() as directory:
        place = os.path.join(directory, "sig")
        with open(place, "wb") as file:
            file.write(signature)
        command = ["ssh-keygen", "-Y", "verify", "-f", signers, "-I", IDENTITY, "-n", namespace, "-s", place]
        try:
            done = subprocess.run(command, input=content, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        except OSError:
            raise Refused(14, "ssh-keygen is not installed (openssh-client)")
    if done.returncode != 0:
        raise Refused(8, "the signature is not by a trusted key, or what it signs was altered")


def _require_canonical(signature):
    """Require the one armour that ssh-keygen writes; it would read others too."""
    begin, end = b"-----BEGIN SSH SIGNATURE-----\n", b"-----END SSH SIGNATURE-----\n"
    try:
        body = base64.b64decode(signature[len(begin) : -len(end)])
    except ValueError:
        raise Refused(8, "the signature was altered")
    text = base64.b64encode(body)
    lines = b"".join(text[i : i + 70] + b"\n" for i in range(0, len(text), 70))
    if signature != begin + lines + end:
        raise Refused(8, "the signature was altered")


# --- the manifest -----------------------------------------------------------------------------------------------------


def parse(content):
    """Read a signed manifest. What was signed is trusted to mean well; its shape is still checked."""
    try:
        manifest = json.loads(content)
        shaped = set(manifest) == set(FIELDS) and all(isinstance(manifest[k], t) for k, t in FIELDS.items())
        files = manifest["files"]
        shaped = shaped and manifest["schema"] == "appliance.bundle/1" and all(_is_entry(entry) for entry in files)
        names = [entry["path"] for entry in files]
    except (ValueError, TypeError, KeyError):
        raise Refused(8, "the manifest cannot be read")
    if not shaped or names != sorted(set(names)) or {MANIFEST, SIGNATURE} & set(names):
        raise Refused(8, "the manifest does not have the form of one")
    if content != json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode() + b"\n":
        raise Refused(8, "the manifest is not in its canonical form")
    return manifest


def _is_entry(entry):
    return (
        set(entry) == {"path", "bytes", "sha256"}
        and NAME.fullmatch(entry["path"])
        and type(entry["bytes"]) is int
        and 0 <= entry["bytes"] < 8**11
        and re.fullmatch("[0-9a-f]{64}", entry["sha256"])
    )


def require_complete(manifest, requirements):
    """Require a wheel of this manifest for every line of its requirements, by digest."""
    named = {entry["path"] for entry in manifest["files"]}
    for name in REQUIRED:
        if name not in named:
            raise Refused(14, "%s is missing" % name)
    wheels = {e["sha256"] for e in manifest["files"] if e["path"].startswith("wheels/")}
    for line in requirements.decode("ascii").splitlines():
        if not line or line.startswith("#"):
            continue
        found = re.fullmatch(r"([A-Za-z0-9._-]+)==\S+ --hash=sha256:([0-9a-f]{64})", line)
        if not found:
            raise Refused(8, "a line of requirements.txt is not a pinned and hashed requirement")
        if found[2] not in wheels:
            raise Refused(14, "the wheel of %s is missing" % found[1])


def require_current(manifest, installed, token, signers, now):
    """Require that the bundle has not expired, and follows what is installed or is allowed to go back."""
    today = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    if manifest["expires"] < today:
        raise Refused(15, "the bundle expired on %s" % manifest["expires"])
    if 0 < installed < manifest["min_from"]:
        raise Refused(15, "release %d is installed; this needs %d first" % (installed, manifest["min_from"]))
    if installed > manifest["sequence"] and not _allows(token, manifest, signers, today):
        raise Refused(15, "release %d is installed, and this is the older %d" % (installed, manifest["sequence"]))


def _allows(token, manifest, signers, today):
    """Tell whether a signed token allows going back to this very release."""
    if not token:
        return False
    with open(token, "rb") as file, open(token + ".sig", "rb") as signature:
        content = file.read()
        require_signed(content, signature.read(), signers, DOWNGRADE_NAMESPACE)
    said = json.loads(content)
    return said.get("to_sequence") == manifest["sequence"] and said.get("expires", "") >= today


# --- what is called ---------------------------------------------------------------------------------------------------


def verify(bundle, signers, installed=0, extract=None, token=None, now=None):
    """Verify a bundle, and unpack it into the new directory `extract` if that is named. Returns the manifest.

    Whatever is refused leaves nothing at `extract`: it appears by a rename once every byte was checked.
    """
    partial = extract + ".partial" if extract else None
    if partial and os.path.exists(partial):
        shutil.rmtree(partial)
    try:
        with open(bundle, "rb") as stream:
            manifest = _verify(Archive(stream), signers, installed, partial, token, time.time() if now is None else now)
        if extract:
            os.rename(partial, extract)
    except OSError as error:
        raise Refused(9 if error.errno in (28, 122) else 14, "%s: %s" % (error.filename or bundle, error.strerror))
    finally:
        if partial and os.path.exists(partial):
            shutil.rmtree(partial)
    return manifest


def _verify(archive, signers, installed, partial, token, now):
    content = archive.small(MANIFEST, LARGEST_MANIFEST)
    signature = archive.small(SIGNATURE, 1 << 16)
    require_signed(content, signature, signers, NAMESPACE)
    manifest = parse(content)
    require_current(manifest, installed, token, signers, now)
    requirements = bytearray()
    for entry in manifest["files"]:
        if entry["path"] == "requirements.txt":
            archive.pass_over(entry, _Kept(requirements, partial, entry))
        elif partial:
            with _create(partial, entry["path"]) as target:
                archive.pass_over(entry, target)
        else:
            archive.pass_over(entry, None)
    archive.end()
    require_complete(manifest, bytes(requirements))
    if partial:
        for name, data in ((MANIFEST, content), (SIGNATURE, signature), ("requirements.txt", requirements)):
            with _create(partial, name) as target:
                target.write(data)
    return dict(manifest, digest=hashlib.sha256(content).hexdigest())


class _Kept:
    """Somewhere to write what is short and needed here."""

    def __init__(self, kept, partial, entry):
        if entry["bytes"] > 1 << 20:
            raise Refused(8, "requirements.txt is too long")
        self.write = kept.extend


def _create(directory, name):
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb")


def _installed(path):
    """Read the number of the newest release that was ever installed here; 0 where there was none."""
    if not path or not os.path.exists(path):
        return 0
    with open(path) as file:
        return int(file.read().strip())


def main(arguments=None):
    """Verify, say what was found in one line of JSON, and return the exit status."""
    parser = argparse.ArgumentParser(description="Verify a release bundle, and unpack it.")
    parser.add_argument("bundle")
    parser.add_argument(
        "--signers", required=True, help="allowed signers: 'release namespaces=... ssh-ed25519 AAAA...'"
    )
    parser.add_argument("--installed", help="file with the number of the newest release that was ever installed")
    parser.add_argument("--extract", help="unpack into this directory, which must not exist")
    parser.add_argument("--downgrade-token", help="signed permission to go back to this release; FILE.sig beside it")
    options = parser.parse_args(arguments)
    if options.extract and os.path.exists(options.extract):
        parser.error("%s exists" % options.extract)
    try:
        found = verify(
            options.bundle, options.signers, _installed(options.installed), options.extract, options.downgrade_token
        )
    except Refused as refusal:
        print(json.dumps({"verified": False, "reason": str(refusal), "status": refusal.status}))
        return refusal.status
    said = {
        name: found[name] for name in ("version", "flavour", "sequence", "min_from", "created", "expires", "digest")
    }
    print(json.dumps({"verified": True, "files": len(found["files"]), **said}, sort_keys=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
