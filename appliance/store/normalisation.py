"""Unicode normalisation (NFKC) of a secret, without a string that holds it.

The interpreter neither moves nor wipes strings. So the text is normalised in pieces, each a character with those that
combine with it, and no string is longer than a piece and the character after it.
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from appliance.errors import UsageError
from appliance.store.wrapping import wipe

_GROWTH = 11  # UTF-8 grows at most so many times in this form (Unicode Standard Annex 15)


@contextmanager
def normalised(secret: bytes | bytearray) -> Iterator[memoryview]:
    """Lend `secret`, which is UTF-8, in its normal form; what is lent is wiped afterwards.

    Raises:
      UsageError: it is not UTF-8.
    """
    buffer, size = bytearray(_GROWTH * len(secret)), 0
    try:
        for piece in _pieces(secret):
            form = _normalise(piece).encode()
            buffer[size : size + len(form)] = form
            size += len(form)
        with memoryview(buffer) as view:
            yield view[:size]
    finally:
        wipe(buffer)


def _pieces(secret: bytes | bytearray) -> Iterator[str]:
    """Cut a text where its normal form can be cut: the forms of the pieces, joined, are the form of the whole."""
    piece = ""
    for character in _characters(secret):
        if piece and _begins_anew(piece, character):
            yield piece
            piece = ""
        piece += character
    yield piece


def _begins_anew(piece: str, character: str) -> bool:
    """Tell whether nothing before `character` changes with it, and so with nothing after it either."""
    if unicodedata.combining(unicodedata.normalize("NFKD", character)[0]):
        return False
    return _normalise(piece + character) == _normalise(piece) + _normalise(character)


def _normalise(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _characters(secret: bytes | bytearray) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for byte in secret:
            if character := decoder.decode(bytes((byte,))):
                yield character
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:  # it would show a part of the secret
        raise UsageError("the passphrase is not valid UTF-8") from None
