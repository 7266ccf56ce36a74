"""Random cases of coupling, in a process of their own: CASES KIND:THREADS:DTYPE ... [whole].

Prints for each of them how many cases couple; with `whole` only whether one does, and looks no further.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from appliance.jobs.job import EngineOptions
from appliance.jobs.lora import LoraSpec
from appliance.train import engine as engine_module
from appliance.train.adapting import adapt
from appliance.train.encode import Encoded, buckets
from appliance.train.engine import Engine
from appliance.train.proofs import prove
from tests.unit.train import rig

LONGEST = 152
DENSE = {
    "hidden_size": 192, "num_hidden_layers": 4, "intermediate_size": 512, "num_attention_heads": 6,
    "num_key_value_heads": 3, "vocab_size": 500, "max_position_embeddings": 512,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama": DENSE,
    "qwen2": DENSE,
    "gemma2": DENSE | {"head_dim": 32, "final_logit_softcapping": None, "attn_logit_softcapping": None},
    "odd": DENSE | {"hidden_size": 200, "intermediate_size": 500, "num_attention_heads": 5, "num_key_value_heads": 5},
    "deepseek_v3": {
        "vocab_size": 500, "hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 384,
        "moe_intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 4, "n_shared_experts": 1,
        "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
        "q_lora_rank": 64, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
        "max_position_embeddings": 512,
    },
}  # fmt: skip


def main() -> None:
    cases, whole = int(sys.argv[1]), "whole" in sys.argv
    warnings.simplefilter("ignore")
    if whole:
        engine_module.follow_place = lambda *_: False  # type: ignore[assignment]
    for wanted in (word for word in sys.argv[2:] if word != "whole"):
        kind, threads, dtype = wanted.split(":")
        torch.set_num_threads(int(threads))
        found = search(made(kind, dtype), [f"{kind} {threads} {dtype} {case}" for case in range(cases)], whole)
        print(int(any(found)) if whole else sum(found), flush=True)


def made(kind: str, dtype: str) -> Engine:
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama" if kind == "odd" else kind, **SHAPES[kind])
    model = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    options = EngineOptions(physical_tokens=1024, dtype=dtype)  # type: ignore[arg-type]
    return Engine(adapt(model, LoraSpec(r=4), 1), rig.plan(clipping="normalised"), options, 0)


def search(engine: Engine, seeds: list[str], whole: bool) -> Iterator[bool]:
    """Whether each case couples. What would be proved of the whole micro-batch is not asked: it is taken anyway."""
    if not whole:
        proved = prove(engine, buckets(LONGEST))
        assert proved.proved.keys() <= {engine.pad_length(n) for n in buckets(LONGEST)}
    for site in engine.adapter.sites:
        site.b.data.normal_(0, 0.02)
    return (couples(engine, random.Random(seed)) for seed in seeds)


def couples(engine: Engine, chance: random.Random) -> bool:
    """Whether adding one record to some others, in some place, changes the sum by anything but its own vector."""
    record = random_record(chance)
    others = [random_record(chance) for _ in range(chance.randint(1, 12))]
    most = max(1, 1200 // record.length)
    others += [random_record(chance, record.length) for _ in range(chance.randint(1, min(most, 40)))]
    place = chance.randint(0, len(others))
    alone = rig.total(engine, [[record]])
    together = rig.total(engine, [[one] for one in (*others[:place], record, *others[place:])])
    return not torch.equal(together - rig.total(engine, [[one] for one in others]), alone)


def random_record(chance: random.Random, length: int | None = None) -> Encoded:
    tokens = chance.randint(5, LONGEST) if length is None else chance.randint(max(5, length - 7), length)
    ids = tuple(chance.randrange(5, 500) for _ in range(tokens))
    first = chance.randint(0, tokens - 2)
    padded = next(n for n in buckets(LONGEST) if n >= tokens)
    return Encoded(ids, tuple(range(first, tokens - 1)), padded)


if __name__ == "__main__":
    main()
