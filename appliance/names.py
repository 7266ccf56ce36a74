"""Names and words from outside: what may be one, and how text of others is shown.

A name stands in the ledger for ever, in file names, in reports and on terminals. So it is a word. What people call
themselves, a recipient or a column is one line. Whatever else comes from outside, also from ledgers of older releases,
is shown through `visible`.
"""

from __future__ import annotations

import re
from unicodedata import category

from appliance.errors import UsageError

WORD = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_JOINERS = "\u200c\u200d"  # they belong to words of Persian and other languages, and to emoji
# Letters, marks and a pattern to Unicode, and nothing to the eye; selectors of variants and joiners alone are neither.
_FILLERS = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]")
_SEEN = re.compile(r"[^\s\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]")
LONGEST_LINE = 500


def require_word(text: str, what: str) -> str:
    """Take `text` as the name of something; `what` says of what. Raises `UsageError` unless it is a word."""
    if not re.fullmatch(WORD, text):
        hint = "a name has 1 to 128 letters (A-Z, a-z), digits, '.', '_' and '-', and begins with a letter or digit"
        raise UsageError(f"this is no name for a {what}: '{visible(text[:128])}'", hint=hint)
    return text


def require_line(text: str, what: str, longest: int = LONGEST_LINE) -> str:
    """Take `text` as one line of writing; `what` says what it is. Raises `UsageError` unless it is one."""
    try:
        return line(text, longest)
    except ValueError as wrong:
        raise UsageError(f"{what} {wrong}") from None


def line(text: str, longest: int = LONGEST_LINE) -> str:
    """Take `text` as one line of writing. Raises ValueError unless it is one."""
    if not 1 <= len(text) <= longest or not _SEEN.search(text):
        raise ValueError(f"has 1 to {longest} characters, not all of them blanks")
    if is_unruly(text):
        raise ValueError("has no control characters, line ends, directions of writing or other unseen characters")
    return text


def is_unruly(text: str) -> bool:
    r"""Tell whether text has characters that move the cursor, change the direction of writing or are not seen.

    >>> is_unruly("Zoë ‌می"), is_unruly("a\x1b[2J"), is_unruly("a\u202eb")
    (False, True, True)
    """
    return not _is_plain(text) and any(map(_unruly, text))


def _is_plain(text: str) -> bool:
    return text.isprintable() and not _FILLERS.search(text)


def _unruly(character: str) -> bool:
    return not (_is_plain(character) or character in _JOINERS or category(character) == "Zs")


def visible(text: str) -> str:
    r"""Write text of others so that it can be shown: each unruly character as its escape, all in one line.

    Bytes of a file name or argument that are not UTF-8 are shown as bytes.

    >>> print(visible("a\x1b[2J\nb\u202ec"), visible("caf\udce9"))
    a\x1b[2J\nb\u202ec caf\xe9
    """
    return text if _is_plain(text) else "".join(_escape(one) if _unruly(one) else one for one in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds a byte that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
