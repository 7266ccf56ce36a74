"""Every key and tensor of a GGUF is used, known to change nothing, or refused by its name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from appliance.errors import DataInvalid
from appliance.models.importing import import_model
from appliance.models.loading import load

Write = Callable[..., Path]
YARN = {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}
YARN |= {"llama.rope.scaling.original_context_length": 128}
HALVES = np.ones(4, dtype=np.float32)


def llama3_factors(theta: float, original: int, factor: float) -> np.ndarray[Any, Any]:
    """What llama.cpp's converter writes for Llama 3.1, in its own words."""
    found = []
    for frequency in 1.0 / theta ** (np.arange(0, 8, 2, dtype=np.float32) / 8):
        length = 2 * math.pi / frequency
        if length < original / 4:
            found.append(1.0)
        elif length > original:
            found.append(factor)
        else:
            smooth = (original / length - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


USED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # keys, tensors, what the rotary embedding becomes
    "nothing": ({}, {}, {"rope_type": "default"}),
    "linear": (
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {},
        {"rope_type": "linear", "factor": 4.0},
    ),
    "factor alone": ({"llama.rope.scaling.factor": 2.0}, {}, {"rope_type": "linear", "factor": 2.0}),
    "old linear": ({"llama.rope.scale_linear": 2.0}, {}, {"rope_type": "linear", "factor": 2.0}),
    "none": ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, {}, {"rope_type": "default"}),
    "yarn": (YARN, {}, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}),
    "yarn, corrected": (
        {**YARN, "llama.rope.scaling.yarn_beta_fast": 16.0, "llama.rope.scaling.attn_factor": 2.0},
        {},
        {"rope_type": "yarn", "beta_fast": 16.0, "attention_factor": 2 * (0.1 * math.log(4) + 1)},
    ),
    "llama 3.1": (
        {"llama.rope.freq_base": 500000.0},
        {"rope_freqs.weight": llama3_factors(500000.0, 8192, 8.0)},
        {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
    ),
    "factors of one": ({}, {"rope_freqs.weight": HALVES}, {"rope_type": "default"}),
    "equal factors": ({}, {"rope_freqs.weight": HALVES * 2}, {"rope_type": "linear", "factor": 2.0}),
    "irrelevant": (
        {
            "general.author": "somebody", "quantize.imatrix.file": "x", "tokenizer.ggml.eot_token_id": 4,
            "llama.rope.scaling.finetuned": True, "general.type": "model", "llama.attention.key_length": 8,
            "llama.attention.value_length": 8, "tokenizer.ggml.add_bos_token": True,
        },
        {},
        {"rope_type": "default"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", USED)
def test_rotary_scaling_and_what_changes_nothing(name: str, write_tiny_gguf: Write, tmp_path: Path) -> None:
    keys, tensors, expected = USED[name]
    import_model(write_tiny_gguf(tmp_path / "m.gguf", keys=keys, tensors=tensors), tmp_path / "out")
    rope = json.loads((tmp_path / "out/config.json").read_text())["rope_parameters"]
    assert {key: rope[key] for key in expected} == pytest.approx(expected)
    model, _ = load(tmp_path / "out", torch.float32)
    frequencies = model.model.rotary_emb.inv_freq
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, 8, 2) / 8)
    factors = torch.from_numpy(tensors.get("rope_freqs.weight", HALVES))
    if name != "nothing" and rope["rope_type"] in ("default", "llama3"):
        torch.testing.assert_close(frequencies, plain / factors)
    if rope["rope_type"] == "linear":
        torch.testing.assert_close(frequencies, plain / rope["factor"])


def test_files_that_differ_in_scaling_give_models_that_differ(write_tiny_gguf: Write, tmp_path: Path) -> None:
    found = []
    for name in ("nothing", "linear", "yarn", "llama 3.1"):
        keys, tensors, _ = USED[name]
        import_model(write_tiny_gguf(tmp_path / f"{name}.gguf", keys=keys, tensors=tensors), tmp_path / name)
        model, _ = load(tmp_path / name, torch.float32)
        found.append(model(input_ids=torch.arange(5, 37)[None]).logits.detach())
    for place, logits in enumerate(found):
        assert not any(torch.allclose(logits, other, atol=1e-6) for other in found[:place])


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "scaling by length": ({"llama.rope.scaling.type": "longrope"}, {}, "llama.rope.scaling.type"),
    "yarn without its context": ({"llama.rope.scaling.type": "yarn"}, {}, "llama.rope.scaling.type"),
    "correction without yarn": ({"llama.rope.scaling.attn_factor": 2.0}, {}, "llama.rope.scaling.attn_factor"),
    "other factors": ({}, {"rope_freqs.weight": np.array([1, 1, 4, 8], dtype=np.float32)}, "rope_freqs.weight"),
    "both": (YARN, {"rope_freqs.weight": llama3_factors(10000.0, 8192, 8.0)}, "rope_freqs.weight"),
    "part of the head": ({"llama.rope.dimension_count": 4, "llama.attention.key_length": 8}, {}, "dimension_count"),
    "logit scale": ({"llama.logit_scale": 0.5}, {}, "llama.logit_scale"),
    "experts": ({"llama.expert_count": 4}, {}, "llama.expert_count"),
    "window": ({"llama.attention.sliding_window": 64}, {}, "llama.attention.sliding_window"),
    "not causal": ({"llama.attention.causal": False}, {}, "llama.attention.causal"),
    "soft cap": ({"llama.final_logit_softcapping": 30.0}, {}, "llama.final_logit_softcapping"),
    "vocabulary": ({"llama.vocab_size": 271}, {}, ""),
    "an adapter": ({"general.type": "adapter"}, {}, "general.type"),
    "unheard of": ({"llama.attention.novelty": 1}, {}, "llama.attention.novelty"),
    "another architecture's": ({"clip.vision.image_size": 224}, {}, "clip.vision.image_size"),
    "prefix space": ({"tokenizer.ggml.add_space_prefix": True}, {}, "tokenizer.ggml.add_space_prefix"),
    "normaliser": ({"tokenizer.ggml.normalizer.lowercase": True}, {}, "tokenizer.ggml.normalizer.lowercase"),
    "bias": ({}, {"blk.0.attn_q.bias": np.zeros(32, dtype=np.float32)}, "blk.0.attn_q.bias"),
    "layer": ({}, {"blk.2.ffn_norm.weight": np.ones(32, dtype=np.float32)}, "blk.2.ffn_norm.weight"),
    "query norm": ({}, {"blk.1.attn_q_norm.weight": np.ones(8, dtype=np.float32)}, "blk.1.attn_q_norm.weight"),
    "unheard of tensor": ({}, {"novel.weight": np.ones((4, 4), dtype=np.float32)}, "novel.weight"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_is_refused_by_its_name(name: str, write_tiny_gguf: Write, tmp_path: Path) -> None:
    keys, tensors, named = REFUSED[name]
    with pytest.raises(DataInvalid, match=r"would be lost|cannot be|another shape") as refused:
        import_model(write_tiny_gguf(tmp_path / "m.gguf", keys=keys, tensors=tensors), tmp_path / "out")
    assert named in refused.value.message
