"""Names and words from outside: what may be one, and how text of others is shown."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from appliance.errors import UsageError
from appliance.names import is_unruly, require_line, require_word, visible
from appliance.values import Line, Word

UNRULY = {
    "newline": "a\nb",
    "carriage return": "a\rb",
    "tab": "a\tb",
    "escape sequence": "a\x1b[2J\x1b[1;1Hb",
    "one byte escape sequence": "a\x9b2Jb",
    "backspace": "safe\x08\x08\x08\x08evil",
    "NUL": "a\0b",
    "delete": "a\x7fb",
    "next line": "a\x85b",
    "line separator": "a\u2028b",
    "right to left override": "a\u202egnp.exe",
    "isolate": "a\u2066b",
    "right to left mark": "a\u200fb",
    "Arabic letter mark": "a\u061cb",
    "zero width space": "a\u200bb",
    "soft hyphen": "a\u00adb",
    "byte order mark": "\ufeffa",
    "a byte that is not UTF-8": "a\udcffb",
    "half a surrogate pair": "a\ud800b",
    "private use": "a\ue000b",
    "a tag": "a\U000e0041b",
    "Hangul filler": "a\u3164b",
    "half width filler": "a\uffa0b",
    "pattern without dots": "a\u2800b",
    "mark that joins nothing": "a\u034fb",
}
NO_WORDS = ["", " ", "..", "../up", "a/b", "/etc", ".hidden", "-option", "a b", "Zoë", "a" * 129, "a\n", "a:b", "a\\b"]
LINES = ["Zoë Müller-Ångström", "می‌خواهم", "患者 記録", "👩‍⚕️", "O'Brien <ann@example>", "a\u00a0b", "a\u3000b", "../up"]


@pytest.mark.parametrize("text", [*UNRULY.values(), *NO_WORDS])
def test_what_is_no_word_names_nothing(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        require_word(text, "dataset")
    assert not is_unruly(str(refused.value))
    with pytest.raises(ValidationError):
        TypeAdapter(Word).validate_python(text)


@pytest.mark.parametrize("text", ["a", "notes-2024.1_x", "0", "a" * 128, "a..b"])
def test_words_are_names(text: str) -> None:
    assert require_word(text, "dataset") == TypeAdapter(Word).validate_python(text) == text


@pytest.mark.parametrize("text", [*UNRULY.values(), "", " ", "\u3000", "\u200d", "\ufe0f \u200c", "a" * 501])
def test_what_is_not_one_line_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^a reason has "):
        require_line(text, "a reason")
    with pytest.raises(ValidationError):
        TypeAdapter(Line).validate_python(text)


@pytest.mark.parametrize("text", LINES)
def test_lines_of_every_language_stay_as_they_are(text: str) -> None:
    assert require_line(text, "a reason") == TypeAdapter(Line).validate_python(text) == visible(text) == text


@pytest.mark.parametrize("text", UNRULY.values(), ids=UNRULY)
def test_what_is_shown_moves_no_cursor_and_turns_no_text(text: str) -> None:
    shown = visible(text)
    assert not is_unruly(shown)
    assert "\\" in shown
    assert visible(shown) == shown
    shown.encode()
