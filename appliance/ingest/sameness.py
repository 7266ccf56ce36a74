"""When two texts are the same: by what they say, never by how it is written down.

The same rule holds for records, cells and names of subjects. What it does not recognise, on purpose, is listed in
docs/life-of-a-record.md, with a test each.
"""

from __future__ import annotations

import re
from html import unescape
from unicodedata import normalize

# Nothing of them is seen: Default_Ignorable_Code_Point of Unicode 16 (DerivedCoreProperties.txt), ...
_IGNORABLE = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# ... controls that are no blanks, marks of annotations and of quadrats, what is no character, and an empty pattern.
_CONTROLS = "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ufff9-\ufffb\U00013430-\U0001343f"
_NONE = "\ufdd0-\ufdef\ufffe\uffff\u2800"
_OF_ASCII = dict.fromkeys([*range(0x09), *range(0x0E, 0x1C), 0x7F])
_UNSEEN = re.compile(f"[{_IGNORABLE}{_CONTROLS}{_NONE}]+")
_SEEN = re.compile(rf"[^\s{_IGNORABLE}{_CONTROLS}{_NONE}]")


def words(text: str) -> list[str]:
    r"""Split a text into words that are equal where the texts say the same.

    HTML escapes, compatibility forms (full width, ligatures), composed and decomposed letters, case and characters
    that are not seen make no difference: compatibility caseless matching (Unicode 3.13, D146) of what is seen. The
    i with and without its dot is one letter, as upper case makes one of the two in one language or another.

    >>> words("  Zoe\u0308\n M\u00fcller ") == words("ZO\u00cb M\u00dcL\u00adLER")
    True
    """
    if "&" in text:
        text = unescape(text)
    if text.isascii():
        return (text if text.isprintable() else text.translate(_OF_ASCII)).lower().split()
    text = normalize("NFD", _UNSEEN.sub("", text)).casefold()
    text = normalize("NFKC", text).casefold().replace("\u0131", "i").replace("i\u0307", "i")
    return _UNSEEN.sub("", normalize("NFKC", text)).split()


def squeeze(text: str) -> str:
    """Write a text's words without any blank between them."""
    return "".join(words(text))


def is_blank(text: str) -> bool:
    """Tell whether nothing of a text is seen."""
    return _SEEN.search(unescape(text) if "&" in text else text) is None
