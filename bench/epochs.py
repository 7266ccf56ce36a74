"""One pass over real text of varying length: our engine, the Hugging Face Trainer, Opacus under BatchMemoryManager.

Every side sees the same encoded records once and makes one optimiser step, ours and Opacus' with noise. Equal memory:
none computes more than `tokens` padded tokens at once; a side that knows only a number of records takes as many as fit
when the longest is among them.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import media
import torch
from figures import ROOT
from sides import Base, Ghost, Hooks, Ours, as_engine, peft_model, stock_losses
from torch import Tensor

from appliance.jobs.record import Record
from appliance.jobs.train import TrainSpec
from appliance.train.encode import Encoded, Encoder
from appliance.train.noise import DiscreteGaussian
from appliance.train.optimizer import ExactDPOptimizer
from tests.unit.train.rig import plan

BANKING = ROOT.parent / "shared" / "data" / "banking77" / "train.csv"
PROMPT = "Write a patient's review of {drugName}, taken for {condition}."

Pairs = list[tuple[str, str]]


def banking(count: int) -> Pairs:
    """(question, intent) of banking77, spread over the file, which is sorted by intent."""
    rows = list(csv.DictReader(BANKING.read_text().splitlines()))
    return [(row["text"], row["category"]) for row in rows[:: len(rows) // count][:count]]


def reviews(count: int) -> Pairs:
    """(prompt, review) of the drug reviews."""
    return [(PROMPT.format(**row), row["review"]) for row in media.reviews("Test", count)]


def encoded(pairs: Pairs, tokenizer: Any, max_tokens: int) -> list[Encoded]:
    encoder = Encoder(tokenizer, TrainSpec(lr=1e-3, max_tokens=max_tokens))
    records = [Record(unit="u", kind="completion", parts=(("prompt", a), ("completion", b))) for a, b in pairs]
    return [encoder.encode(record) for record in records]


def ours(base: Base, dtype: str, device: str, records: list[Encoded], tokens: int) -> Callable[[], None]:
    side = Ours(base, dtype, "all-linear", device, tokens)
    side.prove(record.length for record in records)
    noise = DiscreteGaussian(Fraction(10**10))
    optimizer = ExactDPOptimizer(side.adapter, side.engine.sum, noise, plan(), 1e-6)

    def epoch() -> None:
        side.step(records)
        optimizer.apply(optimizer.release())

    return epoch


def trainer(base: Base, dtype: str, device: str, records: list[Encoded], tokens: int, **how: Any) -> Any:
    """The stock Trainer with PEFT, the model in the same dtype; `how` adds to its arguments."""
    from transformers import Trainer, TrainingArguments

    peft, _ = peft_model(base, dtype, "all-linear", device)
    rows = rows_for(records, tokens)
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=-(-len(records) // rows),
        num_train_epochs=1,
        use_cpu=device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-6,
        dataloader_pin_memory=False,
        **how,
    )
    made = Trainer(model=peft, args=arguments, train_dataset=[row(r) for r in records], data_collator=collated)

    def epoch() -> None:
        with as_engine(device, repeatable=False):
            made.train()

    return epoch


def row(record: Encoded) -> dict[str, list[int]]:
    supervised = {position + 1 for position in record.positions}
    return {
        "input_ids": list(record.ids),
        "labels": [token if at in supervised else -100 for at, token in enumerate(record.ids)],
    }


def collated(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Padded to the longest of the batch, as the stock collators do."""
    longest = max(len(r["input_ids"]) for r in rows)

    def pad(values: list[int], filler: int) -> list[int]:
        return values + [filler] * (longest - len(values))

    return {
        "input_ids": torch.tensor([pad(r["input_ids"], 0) for r in rows]),
        "labels": torch.tensor([pad(r["labels"], -100) for r in rows]),
        "attention_mask": torch.tensor([pad([1] * len(r["input_ids"]), 0) for r in rows]),
    }


def opacus(kind: type[Hooks] | type[Ghost], base: Base, dtype: str, device: str, records: list[Encoded],
           tokens: int) -> Callable[[], None]:  # fmt: skip
    """One logical batch, split by BatchMemoryManager; the loss from the model's own logits, as its users have it."""
    from opacus.utils.batch_memory_manager import BatchMemoryManager

    side = kind(base, dtype, "all-linear", device, losses=stock_losses)
    loader: Any = torch.utils.data.DataLoader(
        records,  # type: ignore[arg-type]
        batch_size=len(records),
        collate_fn=list,
        shuffle=True,
    )

    def epoch() -> None:
        with (
            as_engine(device, repeatable=False),
            BatchMemoryManager(
                data_loader=loader, max_physical_batch_size=rows_for(records, tokens), optimizer=side.optimizer
            ) as parts,
        ):
            for batch in parts:
                side.loss(batch).backward()
                side.optimizer.step()
                side.optimizer.zero_grad()

    return epoch


def rows_for(records: list[Encoded], tokens: int) -> int:
    return max(1, tokens // max(len(record.ids) for record in records))


SIDES: dict[str, Callable[..., Callable[[], None]]] = {
    "hf_trainer": trainer,
    "hf_group_by_length": lambda *a: trainer(*a, train_sampling_strategy="group_by_length"),
    "opacus_hooks": lambda *a: opacus(Hooks, *a),
    "opacus_ghost": lambda *a: opacus(Ghost, *a),
}
"""What `epoch_speedup_vs_NAME` is measured against."""
