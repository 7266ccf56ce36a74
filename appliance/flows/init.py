"""`init`: make a home. It appears whole under its name or not at all."""

from __future__ import annotations

import hashlib
import secrets
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import UsageError
from appliance.events.key import KeyCreated
from appliance.export.bundle import verifier_source
from appliance.files import make_directory, staged_directory, write_atomic
from appliance.flows.desk import Desk
from appliance.flows.home import Home, HomeConfig, Operator, anchor_file, fingerprint
from appliance.flows.policy import activate_in
from appliance.ledger.ledger import Ledger
from appliance.policy.policy import Policy
from appliance.store import keyslots
from appliance.store.keys import KeyRing, body_public_key, write_body_public_key
from appliance.values import to_json

DIRECTORIES = ("keys", "keys/signing", "objects", "models", "runs", "agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where `init` puts what need not lie in the home. Empty: inside the home."""

    database_url: str = ""
    database_owner: str = ""  # the same database as the role that makes and owns the tables; never stored
    database_eraser: str = ""  # the same database as the role that may erase bodies; never stored
    anchor_dir: Path | None = None
    epoch_keys: Path | None = None
    origin: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialised:
    """What `init` made. Its fingerprint and the verifier's digest are what an auditor pins: hand them over on paper."""

    home: Home
    verifier_keys: tuple[str, ...]
    fingerprint: str
    verifier_sha256: str
    policy: str


def init(root: Path, policy: Policy, passphrase: bytearray, operator: Operator, places: Places) -> Initialised:
    """Make a home at `root` with keys, database, signing keys and an active policy.

    Raises:
      UsageError: `root` exists and is not empty, or an outside place lies inside it.
    """
    root = root.absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"{root} exists and is not empty", hint="name a directory that is new or empty")
    config = _config(root, places)
    undo = ExitStack()
    try:
        with staged_directory(root) as partial:
            made = _furnish(Home(partial, config), policy, passphrase, operator, places, undo)
            write_atomic(partial / "home.json", to_json(config))
    except BaseException:
        if not _stands(root, config):  # whoever fails or is interrupted behind the last rename has made a home
            undo.close()
        raise
    home = Home.open(root)
    return Initialised(
        home=home,
        verifier_keys=made[0],
        fingerprint=made[1],
        verifier_sha256=hashlib.sha256(verifier_source()).hexdigest(),
        policy=policy.name,
    )


def _stands(root: Path, config: HomeConfig) -> bool:
    with suppress(OSError):
        return (root / "home.json").read_bytes() == to_json(config)
    return False


def _config(root: Path, places: Places) -> HomeConfig:
    origin = places.origin or f"appliance.invalid/{secrets.token_hex(8)}"
    anchor = ""
    if places.anchor_dir is not None:
        file = anchor_file(places.anchor_dir, origin, root)
        file.parent.parent.mkdir(parents=True, exist_ok=True)
        make_directory(file.parent)
        anchor = str(file)
    epoch_keys = str(places.epoch_keys.absolute()) if places.epoch_keys is not None else ""
    for taken in (anchor, epoch_keys and f"{epoch_keys}/epoch-1.json"):
        if taken and Path(taken).exists():
            raise UsageError(f"{taken} belongs to another home", hint="name another directory")
    return HomeConfig(
        schema="appliance.home/1",
        origin=origin,
        database_url=places.database_url,
        anchor=anchor,
        epoch_keys=epoch_keys,
    )


def _furnish(
    home: Home, policy: Policy, passphrase: bytearray, operator: Operator, places: Places, undo: ExitStack
) -> tuple[tuple[str, ...], str]:
    """Make what a home holds; `undo` gets what removes that part of it which lies outside, where this one made it."""
    for name in DIRECTORIES:
        (home.root / name).mkdir(mode=0o700)
    home.anchor.parent.mkdir(mode=0o700, exist_ok=True)
    root_key = keyslots.create(home.keyslots, passphrase)
    KeyRing.create(root_key, home.epoch_keys)
    if home.config.epoch_keys:
        undo.callback((home.epoch_keys / "epoch-1.json").unlink, missing_ok=True)
    write_body_public_key(root_key, home.body_public_key)
    body_key = body_public_key(root_key)
    root_key.wipe()
    with Ledger.create(home.ledger_config(places.database_owner, places.database_eraser)) as ledger:
        if home.anchor_is_external:
            undo.callback(home.anchor.unlink, missing_ok=True)
        desk = Desk(home, ledger, home.actor(operator), operator.reason)
        created = KeyCreated(
            kind="root", slots=["passphrase"], epoch=1, body_key_sha256=hashlib.sha256(body_key).hexdigest()
        )
        desk.record(created)
        activate_in(desk, policy)
        return ledger.verifier_keys, fingerprint(ledger.verifier_keys)
