"""Acceptance of the machine that will train: `make accept-gpu`.

`python bench/accept.py [--device cuda|cpu] [--quick] [--model DIR] [--only PART,...] [--out FILE] [--home DIR]`. First
the engine's own code on the device, then the way of a user through the command line and the sandboxed worker
(`journey.py`), then the bench. Without CUDA every check is "not run" and nothing is accepted; `--device cpu` runs the
same on the CPU. `--home` writes the JSON document into the ledger of that home, as `appliance doctor --record` does;
without it the home of the journey gets it. Exit status: 0 accepted, 1 a check failed, 3 not all was run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from journey import Journey, Wanted, last_line, travel

from appliance.errors import ApplianceError
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.ledger.leaf import software
from appliance.models.loading import load
from appliance.models.quantising import load_quantised
from appliance.train.adapting import adapt
from appliance.train.encode import Encoded
from appliance.train.engine import Engine
from appliance.train.noise import DiscreteGaussian
from appliance.train.optimizer import ExactDPOptimizer, Noise
from appliance.train.proofs import prove
from tests.unit.train.rig import encoded, plan

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("checks", "journey", "bench")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One check: `state` is passed, failed, not run or not needed; `detail` says what was seen."""

    name: str
    state: str
    detail: str = ""


class NotNeeded(Exception):
    """Why a check has nothing to look at on this machine."""


@dataclass(frozen=True)
class Machine:
    """Where and on what the checks run."""

    device: str
    directory: Path
    quick: bool = True

    def engine(self, dtype: str = "float32", quantize: Any = "none", freeze_a: bool = False, **options: Any) -> Engine:
        directory, kind = self.directory, getattr(torch, dtype)
        model = (
            load(directory, kind)[0]
            if quantize == "none"
            else load_quantised(directory, kind, quantize, self.device)[0]
        )
        adapter = adapt(model.to(self.device), LoraSpec(r=4, freeze_a=freeze_a, quantize_base=quantize), 1)  # type: ignore[arg-type]
        chosen = EngineOptions(device=self.device, dtype=dtype, physical_tokens=512, **options)  # type: ignore[arg-type]
        return Engine(adapter, plan(), chosen, 0)


def exact(machine: Machine, **how: Any) -> str:
    """The proofs of the start of a run: exact per-record gradients, no record coupled to another one."""
    made = machine.engine(**how)
    prove(made)
    counts = made.counts.proved if made.counts else {}
    return "rows: " + ", ".join(f"{length}: {max(found)}" for length, found in sorted(counts.items()))


def checkpointing(machine: Machine) -> str:
    """Recomputing activations changes no bit."""
    batch = [encoded(n, n) for n in (20, 17, 22)]
    rows = []
    for option in (False, True):
        made = machine.engine(gradient_checkpointing=option)
        for site in made.adapter.sites:
            site.b.data.copy_(torch.randn(site.b.shape, generator=torch.Generator().manual_seed(site.index)) * 0.05)
        rows.append(made.gradients(batch).clone())
    if not torch.equal(*rows):
        raise AssertionError("gradients differ with and without checkpointing")
    return "bit-identical"


def full_float32(machine: Machine) -> str:
    """Float32 products are float32: TF32, whose error is 1000 times larger, is off."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    found = (a.to(machine.device) @ b.to(machine.device)).double().cpu()
    error = float((found - a.double() @ b.double()).norm() / found.norm())
    if torch.backends.cuda.matmul.allow_tf32 or not error < 1e-5:
        raise AssertionError(f"relative error {error:.1e}: products are not computed in float32")
    return f"relative error {error:.1e}"


def noise(machine: Machine) -> str:
    """An empty batch releases noise of the plan's standard deviation, exact integers times the grid."""
    from scipy import stats

    made = machine.engine()
    drawn: list[Any] = []
    source = DiscreteGaussian(Fraction(10**9))

    class Kept(Noise):
        def draw(self, count: int) -> Any:
            drawn.append(source.draw(count))
            return drawn[-1]

    released = ExactDPOptimizer(made.adapter, made.sum, Kept(), plan(), 0.01).release()
    if not torch.equal(released.cpu(), torch.from_numpy(drawn[0]).double().mul(made.sum.grid).float()):
        raise AssertionError("what is released of an empty batch is not the noise")
    many = source.draw(10**6 if not machine.quick else 10**5) / 10**4.5
    p = float(stats.kstest(many, "norm").pvalue)
    ratio = float(many.std())
    if p < 1e-6 or abs(ratio - 1) > 5 / (2 * len(many)) ** 0.5:
        raise AssertionError(f"the noise is not Gaussian: p = {p:.1e}, standard deviation {ratio:.4f} of the asked")
    return f"Kolmogorov-Smirnov p = {p:.2f}, standard deviation {ratio:.4f} of the asked"


def exact_sum(machine: Machine) -> str:
    """One unit more changes the sum by exactly its own clipped gradient, on the device as well."""
    made = machine.engine("bfloat16")
    prove(made)

    def total(units: list[list[Encoded]]) -> torch.Tensor:
        made.accumulate(units)
        return made.sum.take()

    others, extra = [[encoded(8 + 3 * i, i)] for i in range(8)], [encoded(20, 99)]
    if not torch.equal(total([*others[:3], extra, *others[3:]]), total(others) + total([extra])):
        raise AssertionError("the sum depends on more than its units")
    return "bfloat16, exact"


def collectives(machine: Machine) -> str:
    """Whole-number sums and noise survive all-reduce and broadcast between processes bit for bit."""
    cuda = machine.device == "cuda"
    if cuda and torch.cuda.device_count() < 2:
        raise NotNeeded("one GPU alone has nothing to talk to")
    ranks = min(8, torch.cuda.device_count()) if cuda else 2
    backend = "nccl" if cuda else "gloo"
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}  # no name is looked up
    with tempfile.TemporaryDirectory() as directory:
        meeting = Path(directory) / "meeting"
        commands = [
            [sys.executable, __file__, "--device", machine.device, "--rank", f"{rank}/{ranks}", "--meeting", meeting]
            for rank in range(ranks)
        ]
        running = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        said = [process.communicate(timeout=300)[1].strip().splitlines() for process in running]
    failed = [lines[-1:] for process, lines in zip(running, said, strict=True) if process.returncode]
    if failed:
        raise AssertionError(f"the ranks do not agree, or a collective failed: {failed}")
    return f"{backend}, {ranks} processes"


def rank(device: str, me: int, world: int, meeting: Path) -> None:
    """One process of `collectives`."""
    import torch.distributed as dist

    backend = "nccl" if device == "cuda" else "gloo"
    place = torch.device("cuda", me) if device == "cuda" else torch.device("cpu")
    dist.init_process_group(backend, init_method=meeting.as_uri(), rank=me, world_size=world)
    own = [torch.randint(-(2**40), 2**40, (10_000,), generator=torch.Generator().manual_seed(r)) for r in range(world)]
    total = own[me].double().to(place)
    dist.all_reduce(total)
    drawn = own[0].to(place) if me == 0 else torch.zeros_like(own[0], device=place)
    dist.broadcast(drawn, 0)
    good = torch.equal(total.cpu(), torch.stack(own).double().sum(0)) and torch.equal(drawn.cpu(), own[0])
    dist.destroy_process_group()
    sys.exit(0 if good else "other bits came out")


CHECKS: dict[str, Callable[[Machine], str]] = {
    "full_float32": full_float32,
    "exact_float32": exact,
    "exact_bfloat16": partial(exact, dtype="bfloat16"),
    "exact_nf4": partial(exact, dtype="bfloat16", quantize="nf4"),
    "exact_int8": partial(exact, dtype="bfloat16", quantize="int8"),
    "exact_freeze_a": partial(exact, freeze_a=True),
    "exact_checkpointing": partial(exact, gradient_checkpointing=True),
    "exact_nf4_checkpointing": partial(exact, dtype="bfloat16", quantize="nf4", gradient_checkpointing=True),
    "checkpointing_same_bits": checkpointing,
    "exact_sum": exact_sum,
    "noise": noise,
    "collectives": collectives,
}


def outcome(name: str, machine: Machine) -> Outcome:
    if reason := absent(machine.device):
        return Outcome(name=name, state="not run", detail=reason)
    try:
        return Outcome(name=name, state="passed", detail=CHECKS[name](machine))
    except NotNeeded as reason:
        return Outcome(name=name, state="not needed", detail=str(reason))
    except (AssertionError, ApplianceError) as error:
        return Outcome(name=name, state="failed", detail=str(error))


def absent(device: str) -> str:
    """Why nothing can be run on the device, or nothing."""
    return "no CUDA device" if device == "cuda" and not torch.cuda.is_available() else ""


def checked(machine: Machine, parts: Collection[str]) -> Iterator[Outcome]:
    for name in CHECKS:
        left_out = Outcome(name=name, state="not run", detail="left out")
        yield outcome(name, machine) if "checks" in parts else left_out


def travelled(journey: Journey, device: str, parts: Collection[str]) -> Iterator[Outcome]:
    """The steps of a user; a machine that lacks the device takes none."""
    reason = absent(device) or ("" if "journey" in parts else "left out")
    taken = ((name, "not run", reason) for name in journey.steps()) if reason else travel(journey)
    for name, state, detail in taken:
        yield Outcome(name=name, state=state, detail=detail)


def recorded(document: Path, home: Path) -> bool:
    """Whether the document stands in the ledger of `home` now."""
    command = [sys.executable, "-I", "-m", "appliance", "--home", str(home), "doctor", "--record", str(document)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout.strip() if done.returncode == 0 else last_line(done.stderr)
    print(f"{'recorded' if done.returncode == 0 else 'failed':8}  {home}: {said}", file=sys.stderr, flush=True)
    return done.returncode == 0


def figures(device: str, quick: bool) -> list[dict[str, Any]]:
    """The table of bench/train.py on the device."""
    command = [sys.executable, str(ROOT / "bench" / "train.py"), "--json", "--device", device]
    done = subprocess.run([*command, *(["--quick"] if quick else [])], stdout=subprocess.PIPE, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["figures"]
    return found


def document(outcomes: list[Outcome], table: list[dict[str, Any]], device: str) -> dict[str, Any]:
    kind = torch.cuda.get_device_name() if device == "cuda" and torch.cuda.is_available() else platform.machine()
    return {
        "schema": "appliance.accept/1",
        "accepted": all(o.state in ("passed", "not needed") for o in outcomes),
        "device": device,
        "hardware": kind,
        "date": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "software": software(),
        "libraries": {name: version(name) for name in ("torch", "opacus", "peft", "transformers", "bitsandbytes")},
        "checks": [asdict(o) for o in outcomes],
        "figures": table,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="the bench with --quick")
    parser.add_argument("--model", type=Path, help="a model directory; a tiny random model without it")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {', '.join(PARTS)}; what is left out is not run")
    parser.add_argument("--out", type=Path, help="where the JSON document goes")
    parser.add_argument("--home", type=Path, help="the home whose ledger the document goes into")
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    parser.add_argument("--meeting", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        me, _, world = options.rank.partition("/")
        rank(options.device, int(me), int(world), options.meeting)
    with tempfile.TemporaryDirectory() as work:
        return examine(options, Path(work))


def examine(options: argparse.Namespace, work: Path) -> int:
    parts, device = options.only.split(","), options.device
    directory = options.model or tiny(work / "model")
    journey = Journey(Wanted(model=directory, device=device), work, work / "home")
    outcomes: list[Outcome] = []
    for made in chain(
        checked(Machine(device, directory, options.quick), parts),
        travelled(journey, device, parts),
    ):
        outcomes.append(made)
        print(f"{made.state:8}  {made.name}: {made.detail}", file=sys.stderr, flush=True)
    table = figures(device, options.quick) if "bench" in parts and not absent(device) else []
    text = json.dumps(document(outcomes, table, device), indent=2) + "\n"
    out = options.out or work / "accept.json"
    out.write_text(text)
    print(text, end="")
    home = options.home or journey.home
    written = recorded(out, home) if home.exists() else options.home is None
    states = {o.state for o in outcomes}
    return 1 if "failed" in states or not written else 3 if "not run" in states else 0


def tiny(directory: Path) -> Path:
    from tests import conftest

    conftest._build_llama(directory)
    return directory


if __name__ == "__main__":
    sys.exit(main())
