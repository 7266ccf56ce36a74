"""The appliance's home: where everything lies, and how its ledger and its key agent are reached.

HOME/home.json      which database, which anchor, which directory of epoch keys
HOME/keys/          keyslots (wrapped root key), body.pub, people.json, signing/ (tree-head keys), epochs/, and
                    witnesses.txt (verifier keys of trusted witnesses, put there by hand); clients.json (who may ask
                    a served model, and the digests of their keys)
HOME/ledger.db      the database, unless `init --db` named another
HOME/anchor/        the anchor, unless `init --anchor` named another volume
HOME/register       what the log says of every row, as far as it was read; signed, and made again where it is missing
HOME/objects/       sealed objects, named by the BLAKE3 of their ciphertext
HOME/models/        base models, named by the SHA-256 of their file list
HOME/runs/          one directory per job: job.json, journal, sealed snapshots, result.json, adapter/
HOME/servings/      one directory per gateway that runs: job.json, state.json, spool.jsonl
HOME/set-aside/     directories of gateways whose spool was damaged; nobody reads them again
HOME/machine.json   this machine's rates of arithmetic: the CPU's by `train plan`, a GPU's by the self-test on it
HOME/agent/         the key agent's socket while the store is unsealed
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from appliance.errors import ArtefactMissing, ConfigInvalid, UsageError
from appliance.events.home import HomeConfigured
from appliance.identity import people
from appliance.identity.people import Person, login_name, recognise
from appliance.jobs.rundir import RunDir
from appliance.jobs.serve import CLIENTS
from appliance.ledger.canonical import canonical
from appliance.ledger.config import LedgerConfig
from appliance.ledger.database import place_of
from appliance.ledger.leaf import Actor
from appliance.ledger.ledger import Ledger
from appliance.ledger.reading import LedgerReader
from appliance.ledger.transaction import Reading
from appliance.names import require_line
from appliance.store.agent import AgentClient
from appliance.store.keys import read_body_public_key
from appliance.values import Value

_CONFIGURED = b"appliance/home/v1\n"
_PLACES = b"appliance/places/v1\n"


class HomeConfig(Value):
    """`home.json`: what `init` decided. Paths are absolute; an empty one means "inside the home"."""

    schema_: Literal["appliance.home/1"] = Field("appliance.home/1", alias="schema")
    origin: str
    database_url: str = ""
    anchor: str = ""
    epoch_keys: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """On whose behalf a verb runs: a claimed name and an optional reason. Both go to the ledger's sealed bodies.

    Raises:
      UsageError: one of them is not one line.
    """

    name: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        require_line(self.name or login_name(), "an actor's name", people.LONGEST)
        if self.reason:
            require_line(self.reason, "a reason")


@dataclass(frozen=True, slots=True)
class Home:
    """A home directory and its configuration."""

    root: Path
    config: HomeConfig

    @staticmethod
    def open(root: Path) -> Home:
        """Open the home that `init` made at `root`.

        Raises:
          ArtefactMissing: there is none.
          ConfigInvalid: `home.json` is not what `init` writes.
        """
        path = root / "home.json"
        try:
            config = HomeConfig.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise ArtefactMissing(
                f"no appliance home at {root}",
                hint="make one with `appliance --home DIR init`, or name yours with --home or APPLIANCE_HOME",
            ) from None
        except ValidationError:
            raise ConfigInvalid("not a home configuration", where=str(path)) from None
        return Home(root.resolve(), config)

    @property
    def keyslots(self) -> Path:
        """File of wrapped root keys."""
        return self.root / "keys" / "keyslots.json"

    @property
    def body_public_key(self) -> Path:
        """File with the public key to which the ledger seals its bodies."""
        return self.root / "keys" / "body.pub"

    @property
    def roster(self) -> Path:
        """File of names and pseudonyms."""
        return self.root / "keys" / "people.json"

    @property
    def epoch_keys(self) -> Path:
        """Directory of epoch key-encryption keys; better on another device than the data."""
        return Path(self.config.epoch_keys) if self.config.epoch_keys else self.root / "keys" / "epochs"

    @property
    def anchor(self) -> Path:
        """File that holds the newest signed tree head."""
        return Path(self.config.anchor) if self.config.anchor else self.root / "anchor" / "anchor"

    @property
    def anchor_is_external(self) -> bool:
        """Whether the anchor lies outside the home, so that a restored old home is recognised."""
        return bool(self.config.anchor)

    @property
    def configuration(self) -> HomeConfigured:
        """What the ledger is told of the configuration; of the paths only a digest, without the database's password."""
        config = self.config
        database = place_of(config.database_url) if config.database_url else ""
        places = {"database": database, "anchor": config.anchor, "epoch_keys": config.epoch_keys}
        told = canonical({"origin": config.origin, **places})
        where: dict[str, Any] = {name: "outside" if place else "home" for name, place in places.items()}
        return HomeConfigured(origin=config.origin, **where, sha256=hashlib.sha256(_CONFIGURED + told).hexdigest())

    @property
    def places(self) -> str:
        """Digest of where database and anchor lie, wherever that is: the key agent serves no home but its own."""
        where = {"database": place_of(self._database_url), "anchor": str(self.anchor)}
        return hashlib.sha256(_PLACES + canonical(where)).hexdigest()

    @property
    def _database_url(self) -> str:
        return self.config.database_url or f"sqlite:///{self.root / 'ledger.db'}"

    @property
    def objects(self) -> Path:
        """Directory of sealed objects."""
        return self.root / "objects"

    @property
    def models(self) -> Path:
        """Directory of base models."""
        return self.root / "models"

    @property
    def runs(self) -> Path:
        """Directory of jobs."""
        return self.root / "runs"

    @property
    def servings(self) -> Path:
        """Directory of gateways."""
        return self.root / "servings"

    @property
    def set_aside(self) -> Path:
        """Directory of what gateways left damaged."""
        return self.root / "set-aside"

    @property
    def clients(self) -> Path:
        """File of the clients of served models."""
        return self.root / "keys" / CLIENTS

    def object(self, blake3: str) -> Path:
        """Name the file of one sealed object."""
        return self.objects / blake3

    def model(self, sha256: str) -> Path:
        """Name the directory of one base model."""
        return self.models / sha256

    def run(self, run_id: str) -> RunDir:
        """Name the directory of one job."""
        return RunDir(self.runs / run_id)

    @property
    def agent_socket(self) -> Path:
        """Where the key agent listens while the store is unsealed."""
        return self.root / "agent" / "socket"

    def ledger_config(self, owner_url: str = "", eraser_url: str = "") -> LedgerConfig:
        """Say how the ledger of this home is opened; the other roles' URLs are given when needed, and not kept."""
        return LedgerConfig(
            url=self._database_url,
            origin=self.config.origin,
            signing_dir=self.root / "keys" / "signing",
            anchor=self.anchor,
            body_public_key=read_body_public_key(self.body_public_key),
            owner_url=owner_url,
            eraser_url=eraser_url,
            witnesses=self.root / "keys" / "witnesses.txt",
            register=self.root / "register",
            configuration=self.configuration,
        )

    @contextmanager
    def ledger(self) -> Iterator[Ledger]:
        """Open the ledger to write it; whatever was appended is signed and anchored on leaving."""
        with Ledger.open(self.ledger_config()) as ledger:
            yield ledger

    @contextmanager
    def reader(self, *, checked: bool = True) -> Iterator[LedgerReader]:
        """Open the ledger to read it.

        It is compared with its anchor first, unless `checked` is false: only `ledger verify` wants that.
        """
        with LedgerReader.open(self.ledger_config(), checked=checked) as reader:
            yield reader

    @contextmanager
    def rows(self) -> Iterator[Reading]:
        """Open the catalog of datasets, models, runs and so on in one snapshot, to read it."""
        with self.reader() as reader, reader.read() as rows:
            yield rows

    def agent(self) -> AgentClient:
        """Make a client of the key agent (which need not be running)."""
        return AgentClient(self.agent_socket)

    def actor(self, operator: Operator) -> Actor:
        """Find the ledger's actor for an operator, known by a random pseudonym."""
        person: Person = recognise(self.roster, operator.name or login_name())
        return Actor(pseudonym=person.pseudonym, name=person.name, auth="asserted")


def anchor_file(directory: Path, origin: str, root: Path) -> Path:
    """Name the anchor's file in a directory outside the home. Raises `UsageError` for one inside it."""
    directory = directory.absolute()
    if directory.is_relative_to(root):
        raise UsageError("an anchor inside the home is restored together with it", hint="name another volume")
    return directory / f"{origin.rsplit('/', 1)[-1]}.anchor"


def fingerprint(verifier_keys: tuple[str, ...]) -> str:
    """Digest the verifier keys, one a line (SHA-256, groups of four hex digits): short enough to compare on paper."""
    digest = hashlib.sha256("".join(f"{key}\n" for key in verifier_keys).encode()).hexdigest()
    return " ".join(digest[i : i + 4] for i in range(0, 64, 4))


def new_id(prefix: str) -> str:
    """Draw a fresh random identifier, for example `run_3f9c0a12be47`; it says nothing about the thing it names."""
    return f"{prefix}_{secrets.token_hex(6)}"
