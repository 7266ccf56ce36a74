"""A record's loss is what plain Hugging Face says of it alone, and no other record touches it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from torch.nn import functional

from appliance.errors import ConfigInvalid, DataInvalid
from appliance.evaluate import losses as room
from appliance.evaluate.losses import Meter
from appliance.evaluate.variants import Variants
from tests.unit.train.rig import encoded, load

Write = Callable[..., Path]


def meter(model_dir: Path, *adapters: Path, dtype: torch.dtype = torch.float32, tokens: int = 256) -> Meter:
    variants = Variants(load(model_dir, dtype).eval())
    for number, adapter in enumerate(adapters):
        variants.attach(f"adapter-{number}", adapter)
    return Meter(variants, 0, tokens)


def plain(model: Any, record: Any) -> float:
    ids = torch.tensor([record.ids])
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0].double()
    positions = torch.tensor(record.positions)
    return float(functional.cross_entropy(logits[positions], ids[0, positions + 1]))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21 on transformers 5
@pytest.mark.parametrize("fixture", ["tiny_model_dir", "tiny_deepseek_dir"])
def test_losses_are_those_of_stock_peft_one_record_at_a_time(
    fixture: str, request: pytest.FixtureRequest, write_adapter: Write
) -> None:
    from peft import PeftModel

    model_dir: Path = request.getfixturevalue(fixture)
    adapters = [] if fixture == "tiny_deepseek_dir" else [write_adapter(model_dir, seed) for seed in (1, 2)]
    records = [encoded(9 + 7 * seed, seed) for seed in range(12)]
    got = meter(model_dir, *adapters).measure(records)
    models = [load(model_dir), *(PeftModel.from_pretrained(load(model_dir), adapter) for adapter in adapters)]
    expected = [[plain(model.eval(), record) for model in models] for record in records]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5e-6)
    if adapters:
        assert (got[:, 0] - got[:, 1]).abs().mean() > 1e-3  # the adapters do something


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_record_changes_another_ones_loss_by_a_bit(
    tiny_model_dir: Path, write_adapter: Write, dtype: torch.dtype
) -> None:
    made = meter(tiny_model_dir, write_adapter(tiny_model_dir), dtype=dtype)
    mine = encoded(50, 1)
    alone = made.measure([mine])[0]
    for others in range(1, 30, 4):
        crowd = [encoded(30 + seed % 26, seed + 2) for seed in range(others)]
        assert torch.equal(made.measure([*crowd, mine])[-1], alone)
        assert torch.equal(made.measure([mine, *crowd])[0], alone)


def altered(variants: Variants, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put kernels into the first layer's MLP whose results for a row are changed."""
    layer = variants.model.model.layers[0].mlp
    plain_forward = layer.forward
    layer.forward = lambda x: plain_forward(x) + change(x) * 1e-3


def test_kernels_that_couple_rows_get_one_record_at_a_time(tiny_model_dir: Path, write_adapter: Write) -> None:
    variants = Variants(load(tiny_model_dir).eval())
    variants.attach("adapter", write_adapter(tiny_model_dir))
    altered(variants, lambda x: x.mean())  # rows see each other
    coupled = Meter(variants, 0, 256)
    mine = encoded(50, 1)
    crowd = [encoded(50, seed) for seed in range(5)]
    assert coupled.fixed
    assert torch.equal(coupled.measure([mine, *crowd])[0], coupled.measure([mine])[0])
    assert coupled._rows_at(mine.length) == 1


def test_kernels_to_which_the_number_of_rows_matters_always_get_the_same(
    tiny_model_dir: Path, write_adapter: Write
) -> None:
    """As on a GPU, whose libraries choose a kernel by shape: rows are independent only among equally many."""
    variants = Variants(load(tiny_model_dir).eval())
    variants.attach("adapter", write_adapter(tiny_model_dir))
    altered(variants, lambda x: torch.full_like(x, float(len(x))))
    made = Meter(variants, 0, 256)
    mine = encoded(50, 1)
    alone = made.measure([mine])[0]
    for others in range(1, 12, 3):
        crowd = [encoded(50, seed + 2) for seed in range(others)]
        assert torch.equal(made.measure([*crowd, mine])[-1], alone)
    assert made.fixed
    assert made._rows_at(mine.length) == 256 // mine.length > 1


def test_kernels_that_keep_rows_apart_need_no_filling(tiny_model_dir: Path) -> None:
    assert not meter(tiny_model_dir).fixed


def test_a_record_with_nothing_supervised_has_no_loss(tiny_model_dir: Path) -> None:
    got = meter(tiny_model_dir).measure([encoded(9, 1, supervised=0), encoded(9, 1)])
    assert got[0].tolist() == [0.0]
    assert got[1, 0] > 0


def test_logits_in_pieces_change_nothing(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = encoded(60, 3)
    whole = meter(tiny_model_dir).measure([record])
    monkeypatch.setattr(room, "_PIECE", 7 * 272)
    torch.testing.assert_close(meter(tiny_model_dir).measure([record]), whole, rtol=0, atol=1e-6)


def test_without_an_adapter_in_use_the_base_runs_its_own_code(tiny_model_dir: Path, write_adapter: Write) -> None:
    record = encoded(40, 4)
    with_adapter = meter(tiny_model_dir, write_adapter(tiny_model_dir)).measure([record])
    assert torch.equal(with_adapter[:, :1], meter(tiny_model_dir).measure([record]))


def test_foreign_adapters_are_refused(tiny_model_dir: Path, write_adapter: Write, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    adapter = write_adapter(tiny_model_dir)
    config = orjson.loads((adapter / "adapter_config.json").read_bytes())
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(weights))

    def attach(change: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        (copy / "adapter_config.json").write_bytes(orjson.dumps(config | change))
        save_file(tensors, copy / "adapter_model.safetensors")
        Variants(load(tiny_model_dir)).attach("adapter", copy)

    attach({}, weights)
    for change in ({"use_dora": True}, {"peft_type": "IA3"}, {"rank_pattern": {"q": 2}}):
        with pytest.raises(ConfigInvalid):
            attach(change, weights)
    short = weights | {name: weights[name][:, :-1].contiguous()}
    missing = {key: value for key, value in weights.items() if key != name}
    extra = weights | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}
    for tensors in (short, missing, extra, {}):
        with pytest.raises(DataInvalid):
            attach({}, tensors)
    (tmp_path / "copy" / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(DataInvalid):
        Variants(load(tiny_model_dir)).attach("adapter", tmp_path / "copy")
