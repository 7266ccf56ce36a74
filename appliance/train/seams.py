"""Texts in pieces, some of them learned, to the tokens that the model will meet: those of the whole.

Many tokenizers write a blank before whatever they are given (Llama 2, Mistral, Phi 3), or lose one at its ends. A piece
that they are given alone has then other tokens than in its place: an answer would be learned with a blank too many. So
the whole is tokenised, and cut where the tokens of what stands before are its first ones, as they are when the model
goes on from there. Where a token lies across such a place, each piece is tokenised by itself, as one that follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

Piece = tuple[str, bool]
"""Text and whether it is supervised."""

Tokenised = list[tuple[list[int], bool]]
"""Token ids, and whether they are supervised."""

_ANCHOR = "\n"  # something that a text can follow


def tokenise(pieces: Sequence[Piece], tokens: Callable[[str], list[int]]) -> Tokenised:
    """Find the tokens of texts that follow each other.

    Args:
      pieces: in order.
      tokens: gives the token ids of a text, without any that are added to it.
    """
    runs = [("".join(text for text, _ in run), flag) for flag, run in groupby(pieces, lambda piece: piece[1])]
    runs = [(text, flag) for text, flag in runs if text]
    alone = [(tokens(text), flag) for text, flag in runs]
    if len(runs) < 2:
        return alone
    whole = tokens("".join(text for text, _ in runs))
    if whole == [token for ids, _ in alone for token in ids]:
        return alone
    return _cut(whole, runs, tokens) or [alone[0], *((_following(text, tokens), flag) for text, flag in runs[1:])]


def _cut(whole: list[int], runs: Sequence[Piece], tokens: Callable[[str], list[int]]) -> Tokenised | None:
    """Cut the tokens of all at the seams; None where a token lies across one."""
    found: Tokenised = []
    done, start = "", 0
    for text, flag in runs[:-1]:
        done += text
        before = tokens(done)
        if len(before) < start or whole[: len(before)] != before:
            return None
        found.append((whole[start : len(before)], flag))
        start = len(before)
    return [*found, (whole[start:], runs[-1][1])]


def _following(text: str, tokens: Callable[[str], list[int]]) -> list[int]:
    """Find the tokens of a text that follows another."""
    anchor, both = tokens(_ANCHOR), tokens(_ANCHOR + text)
    return both[len(anchor) :] if anchor and both[: len(anchor)] == anchor else tokens(text)
