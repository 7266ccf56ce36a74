"""Does the DP adapter help? Only epsilon set: banking77 against plain LoRA (`banking.py`), and the demo's drug reviews.

`python bench/utility.py [--quick] [--json] [--device cuda] [--model DIR] [--data DIR] [--budget SECONDS]
[--epochs N,...]`. On a GPU it is all of banking77 over several epsilons and epochs instead (`sweep.py`), with
`--processes` of them at once.

The reviews: fresh demo runs with shipped defaults, judged on the held-out public reviews.

The adapter is loaded with stock PEFT and the loss is computed here, without any code of the training engine: the mean
cross-entropy over a review's tokens given its prompt, per review, base against adapter, paired. The reviews are
public; this is no way to evaluate on private data.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import banking
import media
from banking import mean_interval
from figures import Figure, Report, arguments
from media import MEDIA
from sweep import Sweep, figures

from appliance.cli.demonstration import FULL, PROMPT
from appliance.flows.demo import unpack


def held_out() -> list[tuple[str, str]]:
    """(prompt, review) of the demo's held-out reviews."""
    text = unpack(MEDIA, FULL.training, FULL.held_out).held_out.read_text("utf-8")
    rows = csv.DictReader(io.StringIO(text), delimiter="\t")
    clean = ({key: html.unescape(value or "") for key, value in row.items()} for row in rows)
    return [(PROMPT.format(**row), row["review"]) for row in clean]


def demo(home: Path) -> dict[str, str]:
    """Run the demo in a fresh home; returns its JSON document."""
    command = [sys.executable, "-I", "-m", "appliance", "--home", str(home), "--json", "demo", "--media", str(MEDIA)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    subprocess.run(
        [sys.executable, "-I", "-m", "appliance", "--home", str(home), "key", "lock"],
        stdout=subprocess.DEVNULL,
        check=True,
    )
    document: dict[str, str] = json.loads(done.stdout)
    return document


def losses(model_dir: Path, adapter: Path | None, pairs: list[tuple[str, str]], device: str) -> list[float]:
    """Mean cross-entropy per review, in nat per token."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).to(device).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    found = []
    for prompt, review in pairs:
        turn = [{"role": "user", "content": prompt}]
        start = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        before = tokenizer(start, add_special_tokens=False)["input_ids"]
        after = tokenizer(review, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([before + after], device=device)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, len(before) - 1 : -1].float()
            found.append(torch.nn.functional.cross_entropy(logits, ids[0, len(before) :]).item())
    return found


def reviews(options: argparse.Namespace) -> list[Figure]:
    """The gain of three fresh demos."""
    pairs, made, base = held_out(), [], []
    for run in range(1, 4):
        with tempfile.TemporaryDirectory() as directory:
            home = Path(directory) / "home"
            found = demo(home)
            model_dir = next((home / "models").iterdir())
            base = base or losses(model_dir, None, pairs, options.device)
            tuned = losses(model_dir, home / "runs" / found["run"] / "adapter", pairs, options.device)
        mean, low, high = mean_interval([b - t for b, t in zip(base, tuned, strict=True)])
        note = f"epsilon charged {float(found['epsilon']):.3f}, n = {len(pairs)}, base loss {sum(base) / len(base):.4f}"
        made.append(
            Figure(name=f"heldout_gain_lower_run{run}", value=low, unit="nat", bar=0.0, better="higher",
                   spread=(low, high), note=f"mean gain {mean:.4f}; {note}")
        )  # fmt: skip
    return made


def swept(options: argparse.Namespace, work: Path) -> list[Figure]:
    """All of banking77 on the device; with --quick a few records of it."""
    model = Path(options.model) if options.model else media.model(work / "model")
    few: dict[str, Any] = {"units": 48, "held_out": 4, "epochs": (1,)} if options.quick else {}
    if options.epochs:
        few["epochs"] = tuple(int(count) for count in options.epochs.split(","))
    sweep = Sweep(
        model=str(model), data=str(banking.DATA), device=options.device, tokens=int(options.tokens or 16384), **few
    )
    return figures(sweep, work, int(options.processes or 4), float(options.budget or 1e9))


def main() -> None:
    options = arguments(
        __doc__ or "",
        model="a directory that `model import` wrote; SmolLM2 of the demo's media without it",
        data="directory with train.csv and test.csv of banking77",
        budget="seconds after which nothing new is begun; only on a GPU or with --processes",
        processes="so many share the device (4 on a GPU); on a CPU this asks for the figures of the GPU",
        epochs="1, 3 or 10, with commas, the first ones first; only on a GPU or with --processes",
        tokens="padded tokens that each of them computes at once",
    )
    report = Report(bench="utility", quick=options.quick)
    banking.DATA = Path(options.data) if options.data else banking.DATA
    with tempfile.TemporaryDirectory() as directory:
        if not banking.DATA.is_dir():
            print(f"banking77 not run: it is not in {banking.DATA}", file=sys.stderr)
        elif options.device != "cpu" or options.processes:
            report.figures += swept(options, Path(directory))
        else:
            report.figures += banking.figures(Path(directory), quick=options.quick)
    if options.quick or options.device != "cpu" or options.processes:
        print("reviews not run: they are a full run on the CPU", file=sys.stderr)
    else:
        report.figures += reviews(options)
    report.print(as_json=options.json)


if __name__ == "__main__":
    main()
