"""Random batches for measurements."""

from __future__ import annotations

from pathlib import Path

import torch
from sides import Batch

from appliance.train.encode import Encoded


def random_record(length: int, vocabulary: int, seed: int) -> Encoded:
    """Random tokens, the second half supervised."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (length,), generator=generator).tolist()
    return Encoded(tuple(ids), tuple(range(length // 2, length - 1)), length)


def batch_of(rows: int, length: int, directory: Path) -> Batch:
    from transformers import AutoConfig

    return random_batch(rows, length, AutoConfig.from_pretrained(directory).vocab_size)


def random_batch(rows: int, length: int, vocabulary: int) -> Batch:
    return [random_record(length, vocabulary, seed) for seed in range(rows)]
