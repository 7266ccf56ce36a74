"""Public benchmarks: the file formats that are read, and a measurement on one. All items of a file are of one kind.

    {"text": ...}                                               log-likelihood
    {"prompt": ..., "choices": [...], "answer": 1}              constrained scoring
    {"prompt": ..., "answer": ...}                              exact match
    {"prompt": ..., "references": [...]}                        ROUGE-L and BLEU
    {"task_id": ..., "prompt": ..., "entry_point": ..., "test": ...}     pass@1, HumanEval's format

Whoever names a file says that it is public: what is measured on it costs no privacy only because of that.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import ConfigDict, Field, ValidationError

from appliance.errors import ArtefactMissing, DataInvalid
from appliance.jobs import micro_tasks
from appliance.jobs.job import Result
from appliance.jobs.variants import VariantsJob
from appliance.values import Count, Digest, Value

Metric = Literal["log-likelihood", "accuracy", "exact match", "rouge-l", "bleu", "pass@1"]
MICRO = "micro:"
"""Begins the name of the generated tasks: `micro:500`."""
_LARGEST, _MOST = 64 << 20, 100_000  # bytes unpacked, items


class _Item(Value):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", hide_input_in_errors=True)


class TextItem(_Item):
    """Text of which the log-likelihood is taken."""

    text: Annotated[str, Field(min_length=1)]


class ChoiceItem(_Item):
    """A question whose answer is one of some, counted from 0."""

    prompt: str
    choices: Annotated[list[str], Field(min_length=2)]
    answer: Annotated[int, Field(ge=0)]


class ExactItem(_Item):
    """A question with one right answer."""

    prompt: str
    answer: str


class ReferenceItem(_Item):
    """A question with answers to compare with."""

    prompt: str
    references: Annotated[list[str], Field(min_length=1)]


class CodeItem(_Item):
    """A function to be written, and the test of it."""

    prompt: str
    entry_point: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    test: str


Item = TextItem | ChoiceItem | ExactItem | ReferenceItem | CodeItem
_KINDS: tuple[type[Item], ...] = (CodeItem, ChoiceItem, ReferenceItem, ExactItem, TextItem)
METRICS: dict[type[Item], tuple[Metric, ...]] = {
    TextItem: ("log-likelihood",),
    ChoiceItem: ("accuracy",),
    ExactItem: ("exact match",),
    ReferenceItem: ("rouge-l", "bleu"),
    CodeItem: ("pass@1",),
}
YES_OR_NO: tuple[Metric, ...] = ("accuracy", "exact match", "pass@1")
"""Metrics by which an item is right or wrong."""


class BenchmarkJob(VariantsJob):
    """`job.json` of a measurement on a benchmark.

    Attributes:
      benchmark: the file, or `micro:N`.
      items: the first so many are tried.
      most_tokens: that an answer may have.
    """

    kind: Literal["benchmark"] = "benchmark"
    benchmark: str
    benchmark_sha256: Digest
    items: Count
    most_tokens: Count


class BenchmarkResult(Result):
    """`result.json` of a measurement: what items scored, by metric and variant. Code is judged by the supervisor."""

    kind: Literal["benchmark"] = "benchmark"
    scores: dict[str, dict[str, list[float]]]


class Benchmark:
    """The items of a benchmark, all of one kind.

    Attributes:
      items: in their order.
      sha256: of the file as it is, or of the generated tasks.
    """

    def __init__(self, items: list[Item], sha256: str) -> None:
        self.items, self.sha256 = items, sha256

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is measured."""
        return METRICS[type(self.items[0])]


def read_benchmark(named: str) -> Benchmark:
    """Read a benchmark: a JSONL file, also gzipped, or `micro:N` for so many generated tasks.

    Raises:
      ArtefactMissing: there is no such file.
      DataInvalid: it is too large, empty, mixed, or has a line that is no item; without a word of the line.
    """
    if named.startswith(MICRO):
        return _micro(named)
    path = Path(named)
    try:
        data = path.read_bytes() if path.stat().st_size <= _LARGEST else b""
    except OSError:
        raise ArtefactMissing("the benchmark cannot be read", where=named) from None
    lines = [line for line in _unpack(data, named).splitlines() if line.strip()]
    if not 0 < len(lines) <= _MOST:
        raise DataInvalid(f"a benchmark has 1 to {_MOST} items and at most 64 MiB", where=named)
    items = [_item(line, f"{named}:{number}") for number, line in enumerate(lines, start=1)]
    if len(set(map(type, items))) > 1:
        raise DataInvalid("the items are of different kinds", where=named)
    return Benchmark(items, hashlib.sha256(data).hexdigest())


def _micro(named: str) -> Benchmark:
    count = named.removeprefix(MICRO)
    if not count.isdecimal() or not 0 < int(count) <= micro_tasks.MOST:
        raise DataInvalid(f"there are 1 to {micro_tasks.MOST} generated tasks", where=named)
    made = [CodeItem.model_validate(task) for task in micro_tasks.generate(int(count))]
    digest = hashlib.sha256(b"".join(orjson.dumps(item.model_dump()) for item in made)).hexdigest()
    return Benchmark(list(made), digest)


def _unpack(data: bytes, where: str) -> bytes:
    if data[:2] != b"\x1f\x8b":
        return data
    unpacked = bytearray()
    try:
        for piece in _inflate(data):
            unpacked += piece
            if len(unpacked) > _LARGEST:
                raise DataInvalid("a benchmark has at most 64 MiB", where=where)
    except (zlib.error, gzip.BadGzipFile):
        raise DataInvalid("the file is damaged", where=where) from None
    return bytes(unpacked)


def _inflate(data: bytes) -> Iterator[bytes]:
    inflating = zlib.decompressobj(wbits=31)
    left = data
    while left and not inflating.eof:
        yield inflating.decompress(left, 1 << 20)
        left = inflating.unconsumed_tail


def _item(line: bytes, where: str) -> Item:
    try:
        fields: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        raise DataInvalid("not a line of JSON", where=where) from None
    for kind in _KINDS:
        try:
            found = kind.model_validate(fields)
        except ValidationError:
            continue
        if isinstance(found, ChoiceItem) and found.answer >= len(found.choices):
            break
        return found
    raise DataInvalid("not an item of any known kind", hint="docs/judging.md has the formats", where=where)
