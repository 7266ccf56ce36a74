"""The roster of people: a name on this machine, a random pseudonym in the ledger.

The ledger's leaves are for ever, so they carry only a random pseudonym; the name goes into the sealed, erasable body
of an entry and into this roster, which can forget it. A name is only asserted: whoever can run the command can claim
it. The leaf says so (`actor_auth: asserted`).
"""

from __future__ import annotations

import getpass
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import orjson

from appliance.errors import IntegrityError
from appliance.files import locked, write_atomic
from appliance.names import require_line

LONGEST = 80
"""Characters of a name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody who acts: the name they gave and the pseudonym the ledger knows them by."""

    name: str
    pseudonym: str


def login_name() -> str:
    """Name of the operating system's user, the default of `--actor`."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return f"uid-{os.getuid()}"


def recognise(roster: Path, name: str) -> Person:
    """Find the person called `name`, entered into the roster under a fresh random pseudonym if unknown.

    Args:
      roster: JSON file {name: pseudonym}, created with mode 0600.
      name: one line of 1 to 80 characters; composed and decomposed letters are the same, as keyboards differ in them.

    Raises:
      UsageError: the name is empty, too long or not one line.
      IntegrityError: the roster is not what this module wrote.
    """
    name = normalize("NFC", require_line(name, "an actor's name", LONGEST))
    with locked(roster.parent / f".{roster.name}.lock"):
        people = _load(roster)
        pseudonym = next((found for known, found in people.items() if normalize("NFC", known) == name), "")
        if not pseudonym:
            pseudonym = people[name] = f"p_{secrets.token_hex(8)}"
            write_atomic(roster, orjson.dumps(people, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2))
    return Person(name=name, pseudonym=pseudonym)


def _load(roster: Path) -> dict[str, str]:
    try:
        people = orjson.loads(roster.read_bytes())
    except FileNotFoundError:
        return {}
    except orjson.JSONDecodeError:
        people = None
    if not isinstance(people, dict) or not all(isinstance(v, str) for v in people.values()):
        raise IntegrityError("the roster of people is damaged", where=str(roster))
    return people
