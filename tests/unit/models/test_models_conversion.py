"""A run's model in one piece: merged as PEFT merges, packed as bitsandbytes packs, and a GGUF that llama.cpp runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config

from appliance.errors import ConfigInvalid, DataInvalid
from appliance.models.conversion import convert
from appliance.models.gguf_writing import write_gguf
from appliance.models.importing import import_model
from appliance.models.merging import is_four_bit, merge
from appliance.models.packed_weights import open_weights
from appliance.models.packing import open_packed, pack
from tests.unit.models.llama_cpp import ask

GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES = {**GPT2, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}
MERGES = [["1", "2"], ["12", "3"], ["Ġ", "t"], ["'", "s"], ["o", "n"], ["Ċ", "Ċ"], ["L", "L"], ["'", "LL"]]
TEXTS = ("it's 123456 on", "THEY'LL  t\n\n\nx", "1212 123\non 't Ünïcödé 気分 !!..", "a\r\nb   \n c")


def cut(pattern: str) -> list[dict[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, BYTES]


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CUTS = {"gpt-2": [GPT2], "smollm": [DIGITS, GPT2], "qwen2": cut(QWEN), "llama-bpe": cut(LLAMA3)}
SMALL: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "head_dim": 16, "bos_token_id": 1, "eos_token_id": 4,
    "pad_token_id": 0,
}  # fmt: skip
SCALED = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
ARCHITECTURES: dict[str, Any] = {
    "llama": lambda rows: LlamaConfig(**SMALL, vocab_size=rows),
    "llama with biases": lambda rows: LlamaConfig(**SMALL, vocab_size=rows, attention_bias=True),
    "llama with scaled positions": lambda rows: LlamaConfig(**SMALL, vocab_size=rows, rope_parameters=SCALED),
    "qwen2 with tied embeddings": lambda rows: Qwen2Config(**SMALL, vocab_size=rows, tie_word_embeddings=True),
    "qwen3": lambda rows: Qwen3Config(**SMALL, vocab_size=rows),
}


@pytest.fixture
def build(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """`build(architecture, pre)`: a small random model whose tokenizer cuts text in one of the ways of `CUTS`."""

    def make(architecture: str = "llama", pre: str = "gpt-2") -> Path:
        directory = tmp_path / "model"
        shutil.copytree(tiny_model_dir, directory)
        fields = json.loads((directory / "tokenizer.json").read_text())
        parts = CUTS[pre]
        fields["pre_tokenizer"] = parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}
        vocabulary = fields["model"]["vocab"]
        for left, right in MERGES:
            vocabulary.setdefault(left + right, max(vocabulary.values()) + 1)
        fields["model"]["merges"] = MERGES
        (directory / "tokenizer.json").write_text(json.dumps(fields))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(ARCHITECTURES[architecture](288), dtype=torch.float32)
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(directory)
        return directory

    return make


def factors_of(adapter: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    state = {name.removeprefix("base_model.model."): part for name, part in load_file(adapter).items()}
    stems = {name.partition(".lora_")[0] for name in state}
    return {stem: (state[f"{stem}.lora_A.weight"], state[f"{stem}.lora_B.weight"]) for stem in stems}


# --- merging --------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft 0.21 on transformers 5
def test_merging_is_what_peft_does(tiny_model_dir: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32),
        LoraConfig(r=4, lora_alpha=16, target_modules="all-linear"),
    )
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.save_pretrained(tmp_path / "adapter")
    factors = factors_of(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "merged").mkdir()
    count = merge(tiny_model_dir, factors, 4.0, tmp_path / "merged")
    stock = model.merge_and_unload().state_dict()
    ours = load_file(tmp_path / "merged" / "model.safetensors")
    assert count == sum(tensor.numel() for tensor in ours.values())
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, stock[name], rtol=0, atol=1e-6)
    others = {path.name for path in tiny_model_dir.iterdir()}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == others
    for damaged, wrong in (
        ("no.such.layer", factors["model.layers.0.mlp.up_proj"]),
        ("model.norm", factors[min(factors)]),
    ):
        with pytest.raises(DataInvalid):
            merge(tiny_model_dir, {damaged: wrong}, 4.0, tmp_path / "merged")


def test_a_base_that_was_quantised_to_four_bits_is_recognised(tiny_model_dir: Path, tmp_path: Path) -> None:
    layers = {f"model.layers.{n}.mlp.{name}_proj": None for n in (0, 1) for name in ("up", "down", "gate")}
    assert not is_four_bit(tiny_model_dir, layers)
    state = load_file(tiny_model_dir / "model.safetensors")
    for kind, expected in (("Q4_1", True), ("Q4_0", True), ("Q8_0", False)):
        chosen = gguf.GGMLQuantizationType[kind]
        for layer in layers:
            rounded = gguf.dequantize(gguf.quantize(state[f"{layer}.weight"].numpy(), chosen), chosen)
            state[f"{layer}.weight"] = torch.from_numpy(rounded)
        from safetensors.torch import save_file

        directory = tmp_path / kind
        directory.mkdir()
        save_file(state, directory / "model.safetensors")
        assert is_four_bit(directory, layers) is expected
        state = load_file(tiny_model_dir / "model.safetensors")


# --- INT8 and NF4 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.01), ("nf4", 0.2)])
def test_packed_weights_open_by_themselves_and_are_read_back(
    kind: Any, error: float, tiny_model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    pack(tiny_model_dir, kind, tmp_path / "out")
    model, tokenizer = open_packed(tmp_path / "out", "cpu")
    assert tokenizer("a")["input_ids"]
    assert {type(module).__name__ for module in model.modules()} & {"Linear8bitLt", "Linear4bit"}
    with (
        open_weights(tmp_path / "out", tiny_model_dir) as weights,
        open_weights(tiny_model_dir, tiny_model_dir) as base,
    ):
        assert weights.find("no.such.weight") is None
        for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"):
            packed, full = weights.find(name), base.find(name)
            assert packed is not None
            assert full is not None
            assert packed.shape == full.shape
            assert 0 < float((packed - full).norm() / full.norm()) < error
            module: Any = model.get_submodule(name.removesuffix(".weight"))
            if kind == "int8":
                own = module(torch.eye(full.shape[1], dtype=torch.bfloat16)).T
            else:  # its product on the CPU wants larger layers
                own = dequantize_4bit(module.weight.data, module.weight.quant_state)
            torch.testing.assert_close(own.float(), packed, rtol=0.02, atol=2e-3)


# --- GGUF -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["q8_0", "q4_1", "q4_0"])
def test_a_gguf_is_read_back_by_the_importer_and_weight_by_weight(
    kind: Any, build: Callable[..., Path], tmp_path: Path
) -> None:
    directory = build()
    path = write_gguf(directory, kind, tmp_path, "letters", "apache-2.0")
    (tmp_path / "again").mkdir()
    convert(path, tmp_path / "again")
    again, state = load_file(tmp_path / "again" / "model.safetensors"), load_file(directory / "model.safetensors")
    assert again.keys() == state.keys()
    with open_weights(tmp_path, directory) as weights:
        for name, tensor in state.items():
            found = weights.find(name)
            assert found is not None
            torch.testing.assert_close(found, again[name].float(), rtol=0, atol=0)
            assert float((found - tensor).norm()) <= {"q8_0": 0.01, "q4_1": 0.12, "q4_0": 0.15}[kind] * float(
                tensor.norm()
            )
    ours, theirs = AutoTokenizer.from_pretrained(directory), AutoTokenizer.from_pretrained(tmp_path / "again")
    assert ours.chat_template == theirs.chat_template
    assert all(ours(text)["input_ids"] == theirs(text)["input_ids"] for text in TEXTS)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_llama_cpp_computes_what_transformers_computes(
    architecture: str, build: Callable[..., Path], tmp_path: Path
) -> None:
    """In llama.cpp's own arithmetic, which rounds activations to 8 bits, so not to the last digit."""
    directory = build(architecture, "qwen2" if "qwen" in architecture else "gpt-2")
    path = write_gguf(directory, "q8_0", tmp_path, "letters", "")
    asked = [{"prompt": text * 3, "logprobs": 5} for text in TEXTS]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    compared = 0
    for text, answer in zip(TEXTS, ask(path, *asked), strict=True):
        ids = tokenizer(text * 3, add_special_tokens=False, return_tensors="pt")["input_ids"]
        assert answer["usage"]["prompt_tokens"] == ids.shape[1]
        with torch.inference_mode():
            expected = torch.log_softmax(model(ids).logits[0, -1], dim=-1)
        if answer["choices"][0]["logprobs"] is None:  # the likeliest token is no whole character, or ends the text
            continue
        compared += 1
        for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            assert abs(one["logprob"] - float(expected[one["id"]])) < 0.05
    assert compared
    spread = float(expected.max() - expected.mean())
    assert spread > 0.2  # else any permutation would pass


@pytest.mark.parametrize("pre", CUTS)
def test_llama_cpp_cuts_text_as_the_tokenizer_does(pre: str, build: Callable[..., Path], tmp_path: Path) -> None:
    directory = build(pre=pre)
    path = write_gguf(directory, "q8_0", tmp_path, "letters", "")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    messages = [{"role": "user", "content": TEXTS[0]}]
    answers = ask(path, *({"prompt": text} for text in TEXTS), {"messages": messages})
    counts = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    counts.append(len(tokenizer(asked, add_special_tokens=False)["input_ids"]))
    assert [answer["usage"]["prompt_tokens"] for answer in answers] == counts


def test_what_llama_cpp_would_do_differently_is_not_written(
    build: Callable[..., Path], tiny_deepseek_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigInvalid, match="deepseek_v3"):
        write_gguf(tiny_deepseek_dir, "q8_0", tmp_path, "letters", "")
    directory = build()
    config = json.loads((directory / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigInvalid, match="yarn"):
        write_gguf(directory, "q8_0", tmp_path, "letters", "")
    fields = json.loads((directory / "tokenizer.json").read_text())
    fields["normalizer"] = {"type": "Lowercase"}
    (directory / "tokenizer.json").write_text(json.dumps(fields))
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataInvalid, match="byte-level"):
        write_gguf(directory, "q8_0", tmp_path, "letters", "")
    fields |= {"normalizer": None, "model": fields["model"] | {"merges": []}}
    (directory / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(DataInvalid, match="without merges"):
        write_gguf(directory, "q8_0", tmp_path, "letters", "")
    fields |= {"pre_tokenizer": BYTES, "model": fields["model"] | {"merges": MERGES}}  # does not cut at all
    (directory / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(DataInvalid, match="cuts text"):
        write_gguf(directory, "q8_0", tmp_path, "letters", "")


@pytest.mark.model
def test_the_real_model_speaks_in_llama_cpp(
    smollm2_dir: Path, tmp_path: Path, stress_count: Callable[[int, int], int]
) -> None:
    if not stress_count(0, 1):
        pytest.skip("not run: with --stress; small models of each kind are asked without")
    path = write_gguf(smollm2_dir, "q8_0", tmp_path, "SmolLM2", "apache-2.0")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    texts = [*TEXTS, "The capital of France is", "3.14159 = π, 一二三\t\tfor i in range(100):\n    pass"]
    *counted, spoken = ask(path, *({"prompt": text} for text in texts), {"messages": messages, "max_tokens": 12})
    assert [one["usage"]["prompt_tokens"] for one in counted] == [
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts
    ]
    assert "France" in spoken["choices"][0]["message"]["content"]
    asked = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert spoken["usage"]["prompt_tokens"] == len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    imported = import_model(path, tmp_path / "again")
    assert imported.has_chat_template
    assert np.isfinite(imported.parameters)
