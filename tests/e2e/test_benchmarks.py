"""`evaluate run --benchmark` and `evaluate compare`: every kind of file, paired, said before what could be found."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, cast

from tests.e2e.conftest import Appliance, Done
from tests.e2e.test_main_job import facts

LINES: dict[str, list[dict[str, Any]]] = {
    "log-likelihood": [{"text": f"The {word} tree stands by the river."} for word in ("red", "old", "tall", "thin")],
    "accuracy": [{"prompt": f"{n} and 1 is", "choices": [str(n), str(n + 1)], "answer": 1} for n in range(6)],
    "exact match": [{"prompt": f"Say {n}.", "answer": str(n)} for n in range(3)],
    "rouge-l": [{"prompt": "Say hello.", "references": ["hello", "good morning"]}] * 3,
}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    data = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def measure(appliance: Appliance, run: str, benchmark: object, *words: str, expect: int = 0) -> Any:
    return appliance(
        "--json", "evaluate", "run", run, "--benchmark", str(benchmark), "--tokens", "6", *words, expect=expect
    )


def test_each_kind_of_file(marked: Any, tmp_path: Path) -> None:
    appliance, embedded = marked
    appliance("key", "lock")
    for metric in LINES:
        check(appliance, embedded["run_id"], metric, tmp_path)


def check(appliance: Appliance, run: str, metric: str, tmp_path: Path) -> None:
    before = len(facts(appliance, "benchmark.measured"))
    path = write(tmp_path / f"{metric}.jsonl.gz", LINES[metric])
    done = measure(appliance, run, path)
    assert done.err.index("four times in five") < len(done.err)  # said beside the result, before it
    measured = done.document["measured"]
    assert [one["metric"] for one in measured] == ([metric, "bleu"] if metric == "rouge-l" else [metric])
    for one in measured:
        assert list(one["means"]) == ["base", "adapter", "marked"]
        assert one["items"] == len(LINES[metric])
        assert [(pair["before"], pair["after"]) for pair in one["differences"]] == [
            ("base", "adapter"), ("adapter", "marked"),
        ]  # fmt: skip
    assert len(facts(appliance, "benchmark.measured")) == before + len(measured)
    same = appliance.here("--json", "evaluate", "compare", run, run, "--benchmark", str(path)).document
    assert {one["verdict"] for one in same["compared"]} == {"not distinguishable"}
    scores = appliance.home / "runs" / run / "benchmarks" / f"{measured[0]['benchmark_id']}.json"
    told = json.loads(scores.read_bytes())
    assert told["scores"]["base"][0] != 0.25
    told["scores"]["base"][0] = 0.25
    scores.write_text(json.dumps(told))
    appliance.here("evaluate", "compare", run, run, "--benchmark", str(path), expect=8)


def test_code_is_judged_and_what_was_written_stands_nowhere(marked: Any) -> None:
    appliance, embedded = marked
    run = embedded["run_id"]
    done = measure(appliance, run, "micro:3")
    (measured,) = done.document["measured"]
    assert measured["metric"] == "pass@1"
    assert set(measured["means"].values()) == {"0.0"}  # by a model of random weights
    (scores,) = (appliance.home / "runs" / run / "benchmarks").iterdir()
    found = json.loads(scores.read_bytes())
    assert {name: len(own) for name, own in found["scores"].items()} == {"base": 3, "adapter": 3, "marked": 3}
    assert set(found) == {"schema", "run_id", "benchmark_sha256", "metric", "scores"}
    assert not list((appliance.home / "runs").glob("benchmark_*"))


def test_what_is_refused(marked: Any, tmp_path: Path) -> None:
    appliance, embedded = marked
    run = embedded["run_id"]

    def refuse(benchmark: object, expect: int) -> Done:
        words = ("evaluate", "run", run, "--benchmark", str(benchmark), "--tokens", "6")
        return cast("Done", appliance.here("--json", *words, expect=expect))

    appliance.here("evaluate", "run", run, expect=2)
    appliance.here("evaluate", "run", run, "--dataset", "notes", "--benchmark", "micro:3", expect=2)
    refuse(tmp_path / "nothing.jsonl", expect=11)
    secret = "quetzal-4410"
    for number, text in enumerate(
        (
            "",
            f"{{{secret}",
            f'{{"{secret}": 1}}',
            f'{{"prompt": "{secret}", "choices": ["a", "b"], "answer": 2}}',
            f'{{"text": "{secret}"}}\n{{"prompt": "a", "answer": "b"}}',
        )
    ):
        path = tmp_path / f"bad-{number}.jsonl"
        path.write_text(text)
        assert secret not in refuse(path, expect=6).err
    (tmp_path / "bad.jsonl.gz").write_bytes(gzip.compress(b"x" * 5000)[:30])
    refuse(tmp_path / "bad.jsonl.gz", expect=6)
    refuse("micro:0", expect=6)
    path = write(tmp_path / "other.jsonl", LINES["accuracy"])
    appliance.here("evaluate", "compare", run, run, "--benchmark", str(path), expect=11)
