"""Damaged headers are refused or read as the reference reader reads them; nothing else can happen."""

import struct
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from appliance.errors import DataInvalid
from appliance.models import gguf_file, safetensors_file


def damaged(data: bytes, within: int, generator: np.random.Generator) -> bytes:
    """`data` with one to four of its first `within` bytes changed, and sometimes cut."""
    changed = bytearray(data)
    for _ in range(generator.integers(1, 5)):
        changed[generator.integers(within)] = generator.integers(256)
    return bytes(changed[: generator.integers(len(data))] if generator.random() < 0.1 else changed)


@pytest.mark.stress
def test_damaged_safetensors(tiny_model_dir: Path, tmp_path: Path, stress_count: Callable[[int, int], int]) -> None:
    data = (tiny_model_dir / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    generator, accepted = np.random.default_rng(5), 0
    path = tmp_path / "m.safetensors"
    for _ in range(stress_count(400, 20_000)):
        path.write_bytes(damaged(data, 8 + length, generator))
        try:
            tensors = safetensors_file.read_header(path)
        except DataInvalid:
            continue
        accepted += 1
        with safe_open(path, "np") as reference:
            assert {name: tensor.shape for name, tensor in tensors.items()} == {
                name: tuple(reference.get_slice(name).get_shape())
                for name in reference.keys()  # noqa: SIM118
            }
    assert accepted  # a changed letter in a tensor's name is not damage that a header can show


@pytest.mark.stress
def test_damaged_gguf(
    write_tiny_gguf: Callable[..., Path], tmp_path: Path, stress_count: Callable[[int, int], int]
) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf")
    data, header = path.read_bytes(), gguf_file.read_header(path)
    start = min(begin for begin, _ in header.tensors.values())
    generator = np.random.default_rng(6)
    for _ in range(stress_count(400, 20_000)):
        path.write_bytes(damaged(data, start, generator))
        try:
            tensors = gguf_file.read_header(path).tensors
        except DataInvalid:
            continue
        ranges = sorted(tensors.values())
        assert all(first[1] <= second[0] for first, second in pairwise(ranges))
        assert not ranges or ranges[-1][1] <= path.stat().st_size
