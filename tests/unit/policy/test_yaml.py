"""The YAML subset: what it reads, what it refuses, and that refusals name the line."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from appliance.errors import ConfigInvalid
from appliance.policy.yaml import MAX_BYTES, load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1.0e-5", 1e-5),
        (".5", 0.5),
        ("-3", -3),
        ("007", 7),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("1:30", "1:30"),
        ("0x10", "0x10"),
        (".inf", ".inf"),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("~", None),
        ("=", "="),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    assert load(f"a: {text}\n".encode(), "f").value == {"a": value}
    assert type(load(f"a: {text}\n".encode(), "f").value["a"]) is type(value)


def test_lines_are_those_of_the_keys() -> None:
    document = load(b"a:\n  b: 1\n  c:\n    - x\n    - y\n", "f.yaml")
    assert document.lines == {(): 1, ("a",): 1, ("a", "b"): 2, ("a", "c"): 3, ("a", "c", 0): 4, ("a", "c", 1): 5}
    assert document.place(("a", "c", 1, "no such", "key")) == "f.yaml:5"


BAD = {
    "duplicate key": (b"a: 1\nb: 2\na: 3\n", "f:3"),
    "duplicate nested key": (b"a:\n  x: 1\n  'x': 2\n", "f:3"),
    "alias": (b"a: &x 1\nb: *x\n", "f:1"),
    "alias bomb": (b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "f:1"),
    "merge by alias": (b"a: 1\n<<: *x\n", "f:2"),
    "python tag": (b"a: !!python/object/apply:os.system [id]\n", "f:1"),
    "own tag": (b"a: !secret x\n", "f:1"),
    "two documents": (b"a: 1\n---\nb: 2\n", "f:2"),
    "empty": (b"", "f"),
    "only a comment": (b"# x\n", "f"),
    "tab": (b"a:\n\t- x\n", "f:2"),
    "deep": (b"a: " + b"[" * 100_000, "f:1"),
    "complex key": (b"? [a]\n: b\n", "f:1"),
    "empty key": (b": b\n", "f:1"),
    "not UTF-8": (b"a: 1\nb: \xff\n", "f:2"),
    "UTF-16": ("a: 1".encode("utf-16"), "f:1"),
    "escape beyond Unicode": (b'a: "\\U99999999"\n', "f"),
    "half a surrogate pair": (b'a: 1\nb: "\\ud800"\n', "f:2"),
    "control character": (b"a: \x00\n", "f:1"),
    "key behind a comment, on a line that no editor shows": ("a: 1 # note\u2028b: 2\n".encode(), "f:1"),
    "next line in a comment": ("a: 1\n# note\u0085b: 2\n".encode(), "f:2"),
    "carriage return alone": (b"a: 1 # note\rb: 2\n", "f:1"),
    "change of direction": ("a: 1 # \u202e2 :b\n".encode(), "f:1"),
    "zero width space in a value": ("a: 1\nb: x\u200by\n".encode(), "f:2"),
    "too long": (b"#" * (MAX_BYTES + 1), "f"),
    "unclosed": (b"a: [1, 2\n", "f:2"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    data, where = BAD[name]
    with pytest.raises(ConfigInvalid) as caught:
        load(data, "f")
    assert caught.value.where == where


def test_a_wrong_file_is_not_quoted() -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load(b"the patient has: 1\nthe patient has: 2\n", "f")
    assert "patient" not in str(caught.value) + caught.value.hint


_N = 256 * 1024 - 64
_HOSTILE = {
    "items": b"- a\n" * (_N // 4),
    "keys": b"".join(b"k%d: 1\n" % i for i in range(_N // 10)),
    "quoted keys": b"{" + b",".join(b'"%d"' % i for i in range(_N // 9)) + b"}",
    "one flow": b"[" + b"a," * (_N // 2) + b"]",
    "depth": b"[" * _N,
    "steps": b"".join(b" " * i + b"a:\n" for i in range(700)),
    "question marks": b"? " * (_N // 2),
    "directives": b"%YAML 1.1\n" * (_N // 10),
    "documents": b"---\n" * (_N // 4),
    "anchors": b"&a " * (_N // 3),
    "one word": b"a" * _N + b": 1",
    "folded": b"a: >\n" + b" b\n\n" * (_N // 4),
    "broken lines": b'"' + b"a\n\n" * (_N // 3) + b'"',
    "digits": b"a: " + b"1" * _N,
    "comments": b"#\n" * (_N // 2),
}


@pytest.mark.parametrize("kind", _HOSTILE)
def test_no_file_takes_long(kind: str) -> None:
    """What takes the parser longest grows with the file, whose size is limited: 2 s where nothing else runs."""
    began = time.process_time()
    with suppress(ConfigInvalid):
        load(_HOSTILE[kind], "run.yaml")
    assert time.process_time() - began < 20
