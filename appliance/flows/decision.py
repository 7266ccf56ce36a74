"""`decide`: read a price file or a file of scores, and whether the ledger says what the scores rely on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from appliance.decide import prices, scores
from appliance.decide.breakeven import BreakEven, break_even
from appliance.decide.cost import Month, month
from appliance.decide.prices import Prices
from appliance.decide.ranking import Ranked, rank
from appliance.decide.scores import Score, Scores
from appliance.errors import ArtefactMissing, IntegrityError
from appliance.flows.home import Home
from appliance.ledger import proof
from appliance.ledger.reading import LedgerReader


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What serving costs, and from when it is cheaper oneself."""

    prices: Prices
    month: Month
    break_even: BreakEven
    stale: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A ranking, and how many of its scores an entry of the ledger vouches for."""

    scores: Scores
    ranked: list[Ranked]
    evidenced: int
    asserted: int


def cost(path: Path, today: date) -> Cost:
    """Work out a price file.

    Raises:
      ArtefactMissing: there is no such file.
      ConfigInvalid: it is not a price file; the message names line, key and the unit that is missing.
    """
    found = prices.read(_bytes(path), str(path))
    return Cost(prices=found, month=month(found), break_even=break_even(found), stale=found.stale(today))


def score(path: Path, home: Home | None, seed: int) -> Decision:
    """Rank the options of a file of scores.

    Args:
      path: the file.
      home: where the ledger is; only scores that name an entry need it.
      seed: of the weightings that are drawn.

    Raises:
      ArtefactMissing: there is no such file, or no such entry.
      ConfigInvalid: it is not a file of scores, or mixes scales.
      IntegrityError: an entry is not what the file says.
    """
    found = scores.read(_bytes(path), str(path))
    every = [score for option in found.options for score in option.scores.values()]
    linked = [score for score in every if score.entry is not None]
    if linked:
        if home is None:
            raise ArtefactMissing("scores name entries of a ledger, and there is none", hint="name its home: --home")
        with home.reader() as ledger:
            _require_entries(ledger, linked)
    return Decision(
        scores=found, ranked=rank(found, seed), evidenced=len(linked), asserted=len(every) - len(linked)
    )  # fmt: skip


def _require_entries(ledger: LedgerReader, linked: Iterable[Score]) -> None:
    """Require that each entry is there, proven by a signed tree head, and of the type that the file says."""
    for one in linked:
        index = one.entry or 0
        leaf = proof.verify(ledger.prove(index), ledger.leaf(index), ledger.verifier_keys).leaf
        if leaf["type"] != one.type:
            raise IntegrityError(f"entry {index} is {leaf['type']}, and not {one.type}")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise ArtefactMissing("there is no such file", where=str(path)) from None
