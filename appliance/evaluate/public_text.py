"""Public English text that is shipped with the appliance: to measure on what nobody's privacy depends on.

Prose paragraphs of the Jargon File, version 4.4.7 (29 December 2003), which its editor put in the public domain. The
watermark measures activations on the first half; evaluation measures loss on the second.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files


def read() -> str:
    """Read the whole text; paragraphs are separated by an empty line."""
    return _data().decode()


def halves() -> tuple[str, str]:
    """Cut the text between paragraphs into two parts of about equal length: for projections, and for measuring loss."""
    text = read()
    cut = text.index("\n\n", len(text) // 2) + 2
    return text[:cut], text[cut:]


def digest() -> str:
    """Take the SHA-256 of the text, hex: results name what they were measured on."""
    return sha256(_data()).hexdigest()


def _data() -> bytes:
    return (files("appliance.evaluate") / "public_text.txt").read_bytes()
