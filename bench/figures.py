"""What every benchmark prints: one JSON document with --json, a Markdown table otherwise."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "opacus", "peft", "transformers", "dp-accounting", "cryptography", "sqlalchemy")


@dataclass(kw_only=True)
class Figure:
    """One measured number, beside the bar it has to reach; None where it was not run, which the note explains.

    `least` is the other end of a bar that has two.
    """

    name: str
    value: float | None
    unit: str
    bar: float | None = None
    least: float | None = None
    better: str = "lower"
    repeats: int = 1
    spread: tuple[float, float] | None = None
    peer: str = ""
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not run"
        if self.bar is None:
            return ""
        reached = self.value <= self.bar if self.better == "lower" else self.value >= self.bar
        reached = reached and (self.least is None or self.value >= self.least)
        return "reached" if reached else "MISSED"

    def line(self) -> str:
        """For whoever watches."""
        value = "-" if self.value is None else f"{self.value:.4g} {self.unit}"
        return f"{self.name}: {value} {self.verdict} {self.note}"


@dataclass(kw_only=True)
class Report:
    """The figures of one benchmark."""

    bench: str
    quick: bool
    figures: list[Figure] = field(default_factory=list)

    def print(self, *, as_json: bool) -> None:
        if as_json:
            print(json.dumps({"schema": "appliance.bench/1", "machine": _machine(), **asdict(self)}))
            return
        print(f"## {self.bench}\n\n{_machine()}\n")
        print("| figure | value | spread | bar | | repeats | note |\n|---|---|---|---|---|---|---|")
        for f in self.figures:
            spread = f"{f.spread[0]:.4g} to {f.spread[1]:.4g}" if f.spread else ""
            bar = "" if f.bar is None else f"{'≤' if f.better == 'lower' else '≥'} {f.bar:g}"
            bar = bar if f.least is None else f"{f.least:g} to {f.bar:g}"
            value = "" if f.value is None else f"{f.value:.4g} {f.unit}"
            print(f"| {f.name} | {value} | {spread} | {bar} | {f.verdict} | {f.repeats} | {f.note} |")


def arguments(description: str, **more: str) -> argparse.Namespace:
    """--quick, --json, --device, and an option for each name in `more`, whose value is its help."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer repeats, the same code paths")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--device", default="cpu")
    for name, meaning in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default="", help=meaning)
    return parser.parse_args()


def age() -> float:
    """Seconds since this process began, its imports included."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def _machine() -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    cpu += _gpu()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, commit {commit.stdout.strip() or 'unknown'}, {os.cpu_count()} cores of {cpu}, "
        f"{memory} GiB, Python {platform.python_version()}, {libraries}"
    )


def _gpu() -> str:
    """The card, where torch is there and sees one."""
    if not (torch := sys.modules.get("torch")) or not torch.cuda.is_available():
        return ""
    return f", {torch.cuda.get_device_name()} ({torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB)"


def ratio_figure(name: str, cases: dict[str, list[float]], **more: Any) -> Figure:
    """The worst case by the median of its ratios; every case stands in the note."""
    higher = more.get("better") == "higher"
    worst = (min if higher else max)(cases, key=lambda case: median(cases[case]))
    ratios, note = cases[worst], ", ".join(f"{case} {median(r):.3f}" for case, r in cases.items())
    more["note"] = "; ".join(filter(None, (note, more.get("note", ""))))
    more.setdefault("unit", "ratio")
    return Figure(name=name, value=median(ratios), repeats=len(ratios), spread=(min(ratios), max(ratios)), **more)
