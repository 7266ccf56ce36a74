"""The line of tree heads that the agent follows: each is what the anchor says, and continues the one before it.

The agent has no database. Whoever wants a key first proves that the anchor continues the newest head that the agent has
seen, and only evidence under a head of this line counts. So a copied ledger that goes on beside the one with which the
store was unlocked opens nothing: its heads never come into that one's anchor. Nor does an older copy put in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import IntegrityError, KeyUnavailable
from appliance.ledger import proof
from appliance.ledger.note import Checkpoint, VerifierKey, open_checkpoint


@dataclass(slots=True)
class Line:
    """The heads that were seen. Its `follow` is the agent's.

    Attributes:
      trusted: verifier keys of the log.
      places: digest of where the database and the anchor lie with which the store was unlocked.
      anchor: that anchor's file.
      newest: the newest head; at first the one that was newest when the store was unlocked.
      seen: root of each head, by its size.
    """

    trusted: tuple[str, ...]
    places: str
    anchor: Path
    newest: Checkpoint
    seen: dict[int, bytes] = field(default_factory=dict)

    def follow(self, places: str, continuation: str) -> int:
        """Go on to the head that the anchor holds now.

        Args:
          places: where the client has its database and its anchor, as a digest.
          continuation: proof (`ledger.proof`) that the anchored head continues the newest one; empty to ask for that.

        Returns:
          Size of the newest head.

        Raises:
          KeyUnavailable: the places are others, or the anchor does not continue the newest head.
        """
        if places != self.places:
            raise KeyUnavailable(
                "the store was unlocked for a home whose database or anchor lies elsewhere",
                hint="unlock this one: `appliance key lock`, then `appliance key unlock`",
            )
        if continuation:
            self.newest = self._continue(continuation)
            self.seen[self.newest.size] = self.newest.root
        return self.newest.size

    def require(self, head: Checkpoint) -> None:
        """Raise `KeyUnavailable` for a tree head that the agent has not followed."""
        if self.seen.get(head.size) != head.root:
            raise KeyUnavailable(
                "the evidence is under a tree head that the key agent has not followed",
                hint="it may be of a copy of the ledger: `appliance ledger verify`",
            )

    def _continue(self, continuation: str) -> Checkpoint:
        refusal = KeyUnavailable(
            f"the anchor does not continue the {self.newest.size} entries that the key agent has seen",
            hint="`appliance ledger verify` says what is wrong with the ledger",
        )
        try:
            keys = [VerifierKey.parse(key) for key in self.trusted]
            anchored = open_checkpoint(self.anchor.read_bytes().decode(), keys)
            if proof.verify_consistency(continuation, anchored) != self.newest:
                raise refusal
        except (OSError, UnicodeDecodeError, IntegrityError):
            raise refusal from None
        return anchored
