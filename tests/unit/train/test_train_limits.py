"""Public limits of a model: the longest record of a run fits into it, whatever record is sampled."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig

from appliance.jobs.job import EngineOptions
from appliance.jobs.limits import positions
from appliance.jobs.lora import LoraSpec
from appliance.train.adapting import adapt
from appliance.train.encode import Encoded, buckets
from appliance.train.engine import Engine
from appliance.train.proofs import prove
from tests.unit.train import rig

LEARNED = 64


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("most", [LEARNED, 60, 20])
def test_learned_positions_hold_every_record_up_to_their_number(dtype: str, most: int) -> None:
    config = OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=272, word_embed_proj_dim=32,
        max_position_embeddings=LEARNED, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    options = EngineOptions(physical_tokens=256, dtype=dtype)  # type: ignore[arg-type]
    engine = Engine(adapt(model, LoraSpec(r=4), 1), rig.plan(), options, 0)
    lengths = buckets(most)
    prove(engine, lengths)
    assert max(map(engine.pad_length, lengths)) <= LEARNED
    assert not rig.total(engine, [[Encoded((), (), lengths[0])], [Encoded((7,), (), lengths[-1])]]).any()
    longest = Encoded(tuple(range(5, 5 + most)), tuple(range(most - 1)), lengths[-1])
    assert torch.isfinite(rig.total(engine, [[longest], [longest]])).all()


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 1024, "n_ctx": 512}, 512),
        ({"max_seq_len": 2048}, 2048),
        ({"max_position_embeddings": 9, "text_config": {"max_position_embeddings": 128}}, 128),
        ({"max_position_embeddings": 64, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 64),
        (
            {
                "max_position_embeddings": 512,
                "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 64},
            },
            64,
        ),
        (
            {
                "max_position_embeddings": 512,
                "original_max_position_embeddings": 64,
                "rope_parameters": {"rope_type": "longrope"},
            },
            64,
        ),
        ({"hidden_size": 4}, None),
        ({"max_position_embeddings": None}, None),
        ({"max_position_embeddings": -1}, None),
    ],
)
def test_limits_are_read_from_the_configuration(config: dict[str, object], limit: int | None) -> None:
    assert positions(config) == limit
