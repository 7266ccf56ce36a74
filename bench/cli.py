"""How long a person waits for the command line: `appliance --help`, and `ledger verify` of a small ledger."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent))

from figures import Figure, Report, arguments


def times(words: list[str], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-m", "appliance", *words], capture_output=True, check=True)
        found.append(time.perf_counter() - began)
    return found


def figure(name: str, words: list[str], bar: float, repeats: int) -> Figure:
    found = times(words, repeats)
    spread = (min(found), max(found))
    return Figure(name=name, value=median(found), unit="s", bar=bar, repeats=repeats, spread=spread)


def main() -> None:
    options = arguments(__doc__ or "")
    repeats = 5 if options.quick else 15
    report = Report(bench="cli", quick=options.quick)
    report.figures.append(figure("help_s", ["--help"], 0.3, repeats))
    with tempfile.TemporaryDirectory() as directory:
        home, secret = f"{directory}/home", Path(directory) / "passphrase"
        secret.touch(mode=0o600)
        secret.write_text("a passphrase for a benchmark\n")
        init = [sys.executable, "-I", "-m", "appliance", "--home", home, "init", "--passphrase-file", str(secret)]
        subprocess.run(init, capture_output=True, check=True)
        report.figures.append(figure("ledger_verify_small_s", ["--home", home, "ledger", "verify"], 1.0, repeats))
    report.print(as_json=options.json)


if __name__ == "__main__":
    main()
