"""Small functions to be written, with tests: easy enough for a small model to get some right, and as many as needed.

Task k is always the same, so measurements of different days can be paired.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOST = 5000
_WORDS = ("red", "tree", "stone", "river", "cloud", "paper", "night", "glass", "ocean", "field")

_Kind = Callable[[int], tuple[str, str, str, list[tuple[Any, ...]]]]
"""From a number to name, what it does, an expression of it, and arguments to try."""
_NUMBERS = [(0,), (1,), (-3,), (17,), (250,)]
_LISTS = [([],), ([4],), ([3, 1, 2],), ([5, 5, -2, 9],)]
_STRINGS = [("",), ("a",), ("Stone",), ("the red tree",)]


def _numbers(n: int) -> tuple[str, str, str, list[tuple[Any, ...]]]:
    name, says, expression = (
        (f"add_{n}", f"Return x plus {n}.", f"x + {n}"),
        (f"subtract_{n}", f"Return x minus {n}.", f"x - {n}"),
        (f"times_{n}", f"Return x multiplied by {n}.", f"x * {n}"),
        (f"is_more_than_{n}", f"Return True if x is greater than {n}.", f"x > {n}"),
        (f"remainder_{n}", f"Return the remainder of x divided by {n}.", f"x % {n}"),
        (f"square_plus_{n}", f"Return the square of x plus {n}.", f"x * x + {n}"),
    )[n % 6]
    return name, says, expression, _NUMBERS


def _lists(n: int) -> tuple[str, str, str, list[tuple[Any, ...]]]:
    name, says, expression = (
        (f"append_{n}", f"Return the list x with {n} appended.", f"x + [{n}]"),
        (f"count_{n}", f"Return how often {n} is in the list x.", f"x.count({n})"),
        (f"sum_plus_{n}", f"Return the sum of the list x plus {n}.", f"sum(x) + {n}"),
        (f"has_{n}", f"Return True if {n} is in the list x.", f"{n} in x"),
        (f"length_plus_{n}", f"Return the length of the list x plus {n}.", f"len(x) + {n}"),
    )[n % 5]
    return name, says, expression, _LISTS


def _strings(n: int) -> tuple[str, str, str, list[tuple[Any, ...]]]:
    word = f"{_WORDS[n % len(_WORDS)]}{n}"
    name, says, expression = (
        (f"append_{word}", f'Return the string x followed by "{word}".', f'x + "{word}"'),
        (f"starts_with_{word}", f'Return True if x starts with "{word}".', f'x.startswith("{word}")'),
        (f"repeat_{n}", f"Return the string x repeated {n} times.", f"x * {n}"),
        (f"upper_{word}", f'Return the string x in upper case followed by "{word}".', f'x.upper() + "{word}"'),
    )[n % 4]
    return name, says, expression, _STRINGS


_KINDS: tuple[_Kind, ...] = (_numbers, _lists, _strings)


def generate(count: int) -> list[dict[str, str]]:
    """Make the first so many tasks, in HumanEval's format."""
    return [_task(number) for number in range(count)]


def _task(number: int) -> dict[str, str]:
    name, says, expression, arguments = _KINDS[number % 3](number // 3 + 2)
    cases = [f"    assert candidate{_call(given)} == {_value(expression, given)!r}\n" for given in arguments]
    prompt = f'def {name}(x):\n    """{says}"""\n    return'
    return {
        "task_id": f"micro/{number}",
        "prompt": prompt,
        "canonical_solution": f" {expression}\n",
        "entry_point": name,
        "test": "def check(candidate):\n" + "".join(cases),
    }


def _call(given: tuple[Any, ...]) -> str:
    return f"({', '.join(map(repr, given))})"


def _value(expression: str, given: tuple[Any, ...]) -> Any:
    return eval(expression, {"x": given[0]})  # noqa: S307 - an expression of this module
