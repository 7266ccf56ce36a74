"""Where a ledger lives, and which roles and keys it is opened with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.events.home import HomeConfigured


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """Where a ledger lives.

    Attributes:
      url: SQLAlchemy URL of the database, `sqlite:////absolute/path` or `postgresql+psycopg://ROLE@/DATABASE?host=...`.
      origin: name of the log in its tree heads, such as "hospital.example/appliance"; no space, no plus sign.
      signing_dir: directory of the log's signing keys.
      anchor: file of the last signed tree head; best on another volume than the database.
      body_public_key: 32-byte X25519 public key that names and reasons are sealed to.
      owner_url: the same database as the role that owns the tables, to create and upgrade; empty where `url` is it.
      eraser_url: the same database as the role that may delete bodies; empty where `url` may.
      witnesses: file of the verifier keys of trusted witnesses, one a line; it need not exist.
      register: file that keeps a signed copy of the register, so that the next process need not read every entry.
      configuration: what the home says of itself. It is compared with what the ledger says before anything is decided,
        and said there where it never was; None compares nothing.
    """

    url: str
    origin: str
    signing_dir: Path
    anchor: Path
    body_public_key: bytes
    owner_url: str = ""
    eraser_url: str = ""
    witnesses: Path | None = None
    register: Path | None = None
    configuration: HomeConfigured | None = None
