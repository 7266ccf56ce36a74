"""The loop: order of a step, resume bit for bit, what is released and what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from appliance.errors import ConfigInvalid, GateFailed, IntegrityError
from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.jobs.plan import UnitOfPrivacy
from appliance.jobs.rundir import SNAPSHOT_EVERY, release_name
from appliance.privacy.accounting import composition
from appliance.privacy.journal import Journal
from appliance.train.accounting import epsilon_prv, epsilon_rdp, spent
from appliance.train.loop import Trainer
from appliance.train.running import train
from appliance.train.snapshot import State, decode_release, decode_state, encode_state
from appliance.train.trained import save_adapter
from tests.unit.train import rig
from tests.unit.train.rig import FixedSampler, MemoryJournal, MemorySnapshots, NoNoise, job, load, people, plan


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def ignore(_: dict[str, int]) -> None: ...


class Killed(Exception):
    """Stands for a kill: nothing after it runs."""


def fixed(directory: Path, tokenizer: Any, journal: Any, snapshots: Any, start: int = 0, **changes: Any) -> Trainer:
    values = plan(**({"steps": 13, "spare_steps": 4} | changes))
    return rig.trainer(
        job(values), load(directory), tokenizer, people(30), journal, snapshots, ignore,
        sampler=FixedSampler(30, start=start), noise=NoNoise(),
    )  # fmt: skip


def test_a_run_with_secret_randomness(tiny_model_dir: Path, tokenizer: Any, tmp_path: Path) -> None:
    made = job(plan())
    seen: list[dict[str, int]] = []
    snapshots = MemorySnapshots()
    with Journal.open(tmp_path / "journal", "run-1", "0" * 64) as journal:
        first = train(made, load(tiny_model_dir), tokenizer, people(37), journal, snapshots, seen.append)
        assert journal.state.attempts == journal.state.steps == 3
    assert (first.steps, first.attempts, first.private) == (3, 3, True)
    assert seen == [{"step": n, "steps": 3, "attempts": n, "reserved": 5} for n in (1, 2, 3)]
    again = train(made, load(tiny_model_dir), tokenizer, people(37), MemoryJournal(), MemorySnapshots(), ignore)
    assert first.state.keys() == again.state.keys()
    assert not any(torch.equal(first.state[n], again.state[n]) for n in first.state)


def test_order_of_a_step_and_what_is_kept(tiny_model_dir: Path, tokenizer: Any) -> None:
    journal, snapshots = MemoryJournal(), MemorySnapshots()
    order: list[str] = []
    trainer = fixed(tiny_model_dir, tokenizer, journal, snapshots)
    for owner, name in (
        (journal, "attempt"), (trainer._optimizer._noise, "begin"), (trainer._samplers[0], "draw"),
        (trainer._engine, "accumulate"), (trainer._optimizer._noise, "draw"), (snapshots, "save"),
        (journal, "record_release"), (trainer._optimizer, "apply"), (journal, "record_checkpoint"),
        (snapshots, "delete"),
    ):  # fmt: skip
        record_calls(owner, name, order)
    trainer.run()
    step = ["attempt", "begin", "draw", "accumulate", "draw", "save", "record_release", "apply"]
    assert order[:8] == step
    assert order[8 * SNAPSHOT_EVERY :][:2] == ["save", "record_checkpoint"]
    assert set(snapshots.stored) == {"snapshot"}


def record_calls(owner: Any, name: str, order: list[str]) -> None:
    original = getattr(owner, name)

    def called(*args: Any, **kw: Any) -> Any:
        order.append(name)
        return original(*args, **kw)

    setattr(owner, name, called)


MOMENTS = ("draw", "accumulate", "save", "record_release", "apply", "record_checkpoint", "delete")
KILLS = [(moment, (12, 10, 1)[(i + shift) % 3]) for shift in range(3) for i, moment in enumerate(MOMENTS)]


def test_resume_is_bit_equal(tiny_model_dir: Path, tokenizer: Any, stress_count: Callable[[int, int], int]) -> None:
    for moment, at in KILLS[: stress_count(len(MOMENTS), len(KILLS))]:
        resume_after(tiny_model_dir, tokenizer, moment, at)


def resume_after(directory: Path, tokenizer: Any, moment: str, at: int) -> None:
    reference = whole_run(directory, tokenizer)
    journal, snapshots = MemoryJournal(), MemorySnapshots()
    trainer = fixed(directory, tokenizer, journal, snapshots)
    owners = {
        "draw": trainer._samplers[0],
        "accumulate": trainer._engine,
        "save": snapshots,
        "apply": trainer._optimizer,
    }
    owner = owners.get(moment, snapshots if moment == "delete" else journal)
    kill_at(owner, moment, 1 if moment in ("record_checkpoint", "delete") else at)
    with pytest.raises(Killed):
        trainer.run()
    owner.__dict__.pop(moment)
    out = fixed(directory, tokenizer, journal, snapshots, start=journal.state.steps).run()
    assert out.steps == 13, (moment, at)
    assert 13 <= out.attempts <= 14, (moment, at)
    assert all(torch.equal(out.state[n], reference[n]) for n in reference), (moment, at)


_REFERENCE: dict[str, torch.Tensor] = {}


def whole_run(directory: Path, tokenizer: Any) -> dict[str, torch.Tensor]:
    if not _REFERENCE:
        _REFERENCE.update(fixed(directory, tokenizer, MemoryJournal(), MemorySnapshots()).run().state)
    return _REFERENCE


def kill_at(owner: Any, name: str, count: int) -> None:
    original, calls = getattr(owner, name), []

    def called(*args: Any, **kw: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            raise Killed
        return original(*args, **kw)

    setattr(owner, name, called)


def test_attempts_run_out(tiny_model_dir: Path, tokenizer: Any) -> None:
    journal, snapshots = MemoryJournal(), MemorySnapshots()
    journal.state.attempts = 16
    out = fixed(tiny_model_dir, tokenizer, journal, snapshots).run()
    assert (out.steps, out.attempts) == (1, 17)


def test_a_missing_or_foreign_state_is_refused(tiny_model_dir: Path, tokenizer: Any) -> None:
    journal, snapshots = MemoryJournal(), MemorySnapshots()
    trainer = fixed(tiny_model_dir, tokenizer, journal, snapshots)
    kill_at(trainer._samplers[0], "draw", 4)
    with pytest.raises(Killed):
        trainer.run()
    kept = dict(snapshots.stored)
    snapshots.delete(release_name(2))
    with pytest.raises(IntegrityError, match="missing"):
        fixed(tiny_model_dir, tokenizer, journal, snapshots).run()
    snapshots.stored = dict(kept) | {release_name(2): kept[release_name(1)]}
    with pytest.raises(IntegrityError, match="not of this run"):
        fixed(tiny_model_dir, tokenizer, journal, snapshots).run()
    snapshots.stored = dict(kept)
    with pytest.raises(IntegrityError, match="not of this run"):
        fixed(tiny_model_dir, tokenizer, journal, snapshots, noise_multiplier=2.0).run()


@pytest.mark.parametrize("data", [b"", b"\0" * 64, b"{}", b"\xff" * 200])
def test_damaged_state_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_state(data, 4)
    with pytest.raises(IntegrityError):
        decode_release(data, 4)


def test_state_round_trip_holds_no_sampler_or_noise() -> None:
    state = State(3, 4, "p", torch.arange(4.0), torch.ones(4), torch.zeros(4))
    data = encode_state(state)
    back = decode_state(data, 4)
    assert (back.step, back.attempts, back.plan) == (3, 4, "p")
    assert torch.equal(back.weights, state.weights)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert set(header) == {"__metadata__", "weights", "exp_avg", "exp_avg_sq"}
    assert set(json.loads(header["__metadata__"]["header"])) == {"format", "kind", "step", "attempts", "plan"}
    with pytest.raises(IntegrityError):
        decode_state(data, 5)
    with pytest.raises(IntegrityError):
        decode_release(data, 4)


def test_an_empty_dataset_and_empty_batches_are_steps(tiny_model_dir: Path, tokenizer: Any) -> None:
    out = train(job(plan()), load(tiny_model_dir), tokenizer, [], MemoryJournal(), MemorySnapshots(), ignore)
    assert out.steps == out.attempts == 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_subject_plan_with_checkpointing(tiny_model_dir: Path, tokenizer: Any, dtype: Any) -> None:
    values = plan(unit=UnitOfPrivacy(kind="subject", key="who", max_records=4), declared_units=20, steps=2)
    options = EngineOptions(physical_tokens=256, gradient_checkpointing=True, dtype=dtype)
    records = people(60, units=15)
    model = load(tiny_model_dir, getattr(torch, dtype))
    trainer = rig.trainer(
        job(values, options=options), model, tokenizer, records, MemoryJournal(), MemorySnapshots(), ignore
    )
    (units,) = trainer._units
    assert len(units) == 15
    assert all(len(unit) == 4 for unit in units)
    assert trainer.run().steps == 2
    with pytest.raises(ConfigInvalid, match="one unit"):
        train(job(values), load(tiny_model_dir), tokenizer, records, MemoryJournal(), MemorySnapshots(), ignore, ["a"])


def test_an_accountant_that_misses_a_step_is_found(tiny_model_dir: Path, tokenizer: Any) -> None:
    trainer = fixed(tiny_model_dir, tokenizer, MemoryJournal(), MemorySnapshots())
    trainer._optimizer.attach_step_hook(lambda optimizer: None)
    with pytest.raises(GateFailed, match="accountant"):
        trainer.run()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft 0.21 asks transformers 5 by an old name
def test_saved_adapter_is_stock_peft(tiny_model_dir: Path, tokenizer: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    model = load(tiny_model_dir)
    out = train(job(plan()), model, tokenizer, people(37), MemoryJournal(), MemorySnapshots(), ignore)
    save_adapter(out, tmp_path, "tiny")
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    text = (tmp_path / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "tiny"
    assert str(tiny_model_dir) not in text
    assert "built-once" not in text
    ids = torch.arange(6, 30)[None]
    with torch.no_grad():
        ours = model(ids).logits
        stock = PeftModel.from_pretrained(load(tiny_model_dir), str(tmp_path))(ids).logits
        base = load(tiny_model_dir)(ids).logits
    assert torch.allclose(ours, stock, atol=1e-5)
    assert not torch.allclose(base, stock, atol=1e-3)


def test_training_learns_without_noise(tiny_model_dir: Path, tokenizer: Any) -> None:
    trainer = fixed(tiny_model_dir, tokenizer, MemoryJournal(), MemorySnapshots(), clipping="normalised")
    batch = [trainer._encoder.encode(record) for record in people(8)]

    @torch.no_grad()
    def loss() -> float:
        total = 0.0
        for record in batch:
            ids = torch.tensor([record.ids])
            logits = trainer._adapter.model(ids).logits[0, list(record.positions)]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:][list(record.positions)]))
        return total

    before = loss()
    trainer.run()
    assert loss() < before - 0.5


def test_accounting() -> None:
    values = plan(noise_multiplier=1.1, delta=1e-5, steps=300)
    said = spent(values, 300)
    assert said.epsilon_pld <= said.epsilon_prv <= said.epsilon_pld + 0.02 * max(1, said.epsilon_pld)
    assert said.epsilon_rdp > said.epsilon_pld
    assert epsilon_prv([], 1e-5) == 0.0
    assert epsilon_rdp(composition(values, 10), 1e-5) < said.epsilon_rdp
    assert LoraSpec().r == 8
    assert rig.plan().attempts == 5
