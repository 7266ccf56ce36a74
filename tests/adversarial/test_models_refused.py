"""Foreign models that must not be imported: each is refused with its own reason, and none runs, hangs or crashes."""

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from appliance.errors import ApplianceError, ArtefactMissing, DataInvalid
from appliance.models import importing
from appliance.models.importing import import_model

Damage = Callable[[Path], None]


def refused(source: Path, tmp_path: Path) -> ApplianceError:
    with pytest.raises(ApplianceError) as caught:
        import_model(source, tmp_path / "out")
    assert caught.value.message == caught.value.message.strip().rstrip(".")
    assert caught.value.where
    return caught.value


def edit(name: str, **changes: Any) -> Damage:
    def damage(model: Path) -> None:
        fields = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(fields | changes))

    return damage


def write(name: str, data: bytes | str) -> Damage:
    return lambda model: (model / name).write_bytes(data if isinstance(data, bytes) else data.encode()) and None


def remove(name: str) -> Damage:
    return lambda model: (model / name).unlink()


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Rewrites the header of the weights and leaves their bytes alone."""

    def damage(model: Path) -> None:
        data = (model / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        fields = json.loads(data[8 : 8 + length])
        change(fields)
        text = json.dumps(fields).encode()
        (model / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def tensors(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Changes the tensors themselves, with a header that is right."""

    def damage(model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        change(weights)
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    return damage


def cut(keep: Callable[[bytes], bytes]) -> Damage:
    return lambda model: (
        (model / "model.safetensors").write_bytes(keep((model / "model.safetensors").read_bytes())) and None
    )


def link_out(name: str) -> Damage:
    def damage(model: Path) -> None:
        outside = model.parent / f"outside-{name}"
        outside.write_bytes((model / name).read_bytes())
        (model / name).unlink()
        (model / name).symlink_to(outside)

    return damage


def added_tokens(count: int) -> Damage:
    def damage(model: Path) -> None:
        fields = json.loads((model / "tokenizer.json").read_text())
        last = fields["added_tokens"][-1]
        fields["added_tokens"] += [last | {"id": 262 + i, "content": f"<|new{i}|>"} for i in range(count)]
        (model / "tokenizer.json").write_text(json.dumps(fields))

    return damage


def index_naming(shard: str) -> Damage:
    def damage(model: Path) -> None:
        (model / "model.safetensors").rename(model / "model-1.safetensors")
        index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-1.safetensors", "x": shard}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


def second_weights(model: Path) -> None:
    """What is left of an older model in the directory into which a larger one was saved in pieces."""
    (model / "model-1.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-1.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def index_is_a_pipe(model: Path) -> None:
    """Whoever opens it waits for ever."""
    os.mkfifo(model / "model.safetensors.index.json")


def huge_index(model: Path) -> None:
    with (model / "model.safetensors.index.json").open("w") as file:
        file.truncate(1 << 40)


def in_pieces(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Damage:
    """Two shards and an index of them, the shards then changed."""

    def damage(model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        (model / "model.safetensors").unlink()
        names = sorted(weights)
        parts = [{n: weights[n] for n in names[:9]}, {n: weights[n] for n in names[9:]}]
        index = {name: f"model-{n}.safetensors" for n, part in enumerate(parts) for name in part}
        change(*parts)
        for n, part in enumerate(parts):
            save_file(part, model / f"model-{n}.safetensors", metadata={"format": "pt"})
        (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))

    return damage


def stray(name: str) -> Damage:
    return lambda model: save_file({"x": torch.zeros(3)}, model / name)


def stored_as(dtype: torch.dtype) -> Damage:
    return tensors(lambda w: w.update({UP: (w[UP] * 100).to(dtype)}))


UP = "model.layers.0.mlp.up_proj.weight"
DIRECTORIES: dict[str, tuple[Damage, type[ApplianceError], str]] = {
    # what could run code
    "pickle beside safetensors": (write("pytorch_model.bin", b"\x80\x04"), DataInvalid, "pickled weights"),
    "pickle, upper case": (write("WEIGHTS.PT", b""), DataInvalid, "pickled weights"),
    "pickle, checkpoint": (write("last.ckpt", b""), DataInvalid, "pickled weights"),
    "modelling code": (write("modeling_x.py", "raise SystemExit"), DataInvalid, "never run"),
    "compiled code": (write("modeling_x.so", b""), DataInvalid, "never run"),
    "auto_map in the config": (edit("config.json", auto_map={"AutoModel": "m.M"}), DataInvalid, "'auto_map'"),
    "auto_map elsewhere": (edit("config.json", auto_map={"AutoModel": "evil/repo--m.M"}), DataInvalid, "'auto_map'"),
    "auto_map deep inside": (edit("config.json", text={"a": [{"auto_map": {"A": "m.M"}}]}), DataInvalid, "'auto_map'"),
    "auto_map of the tokenizer": (
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}),
        DataInvalid,
        "'auto_map'",
    ),
    "auto_map of generation": (edit("generation_config.json", auto_map={"x": "g.G"}), DataInvalid, "'auto_map'"),
    "attention kernel to fetch": (
        edit("config.json", attn_implementation="evil/kernel"),
        DataInvalid,
        "_implementation",
    ),
    "weights named elsewhere": (edit("config.json", transformers_weights="../x.bin"), DataInvalid, "elsewhere"),
    "index is a pipe": (index_is_a_pipe, DataInvalid, "not a regular file"),
    "index of a terabyte": (huge_index, DataInvalid, "larger than"),
    "weights of two models": (second_weights, DataInvalid, "two sets of weights"),
    # links
    "weights linked outside": (link_out("model.safetensors"), DataInvalid, "leaves the model"),
    "config linked outside": (link_out("config.json"), DataInvalid, "leaves the model"),
    "unused link outside": (lambda model: (model / "etc").symlink_to("/etc"), DataInvalid, "leaves the model"),
    "dangling link inside": (lambda model: (model / "LICENSE").symlink_to("none"), DataInvalid, "cannot be read"),
    "directory as file": (lambda model: (model / "LICENSE").mkdir(), DataInvalid, "not a regular file"),
    # the safetensors header
    "empty weights": (cut(lambda data: b""), DataInvalid, "shorter than"),
    "cut in the header": (cut(lambda data: data[:100]), DataInvalid, "header claims"),
    "cut in the data": (cut(lambda data: data[:-1]), DataInvalid, "truncated"),
    "bytes after the end": (cut(lambda data: data + b"x"), DataInvalid, "belong to no tensor"),
    "huge header": (cut(lambda data: struct.pack("<Q", 2**62) + data[8:]), DataInvalid, "header claims"),
    "header over the limit": (
        cut(lambda data: struct.pack("<Q", 100_000_001) + data[8:]),
        DataInvalid,
        "header claims",
    ),
    "header is no JSON": (cut(lambda data: data[:8] + b"[" * 8 + data[16:]), DataInvalid, "not a JSON"),
    "header nested to the sky": (
        cut(lambda data: struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995 + data[200_008:]),
        DataInvalid,
        "",
    ),
    "overlapping tensors": (
        header(lambda f: f["lm_head.weight"].update(data_offsets=f["model.norm.weight"]["data_offsets"])),
        DataInvalid,
        "",
    ),
    "shape that does not follow": (header(lambda f: f["lm_head.weight"].update(shape=[272, 31])), DataInvalid, "size"),
    "dtype that does not follow": (header(lambda f: f["lm_head.weight"].update(dtype="F16")), DataInvalid, "size"),
    "unknown dtype": (header(lambda f: f["lm_head.weight"].update(dtype="F128")), DataInvalid, "unknown dtype"),
    "negative shape": (header(lambda f: f["lm_head.weight"].update(shape=[-272, -32])), DataInvalid, "described"),
    "boolean shape": (header(lambda f: f["lm_head.weight"].update(shape=[True, 8704])), DataInvalid, "described"),
    "gap": (header(lambda f: f.pop("lm_head.weight")), DataInvalid, "gap"),
    # what is missing
    "no config": (remove("config.json"), ArtefactMissing, "config.json"),
    "no weights": (remove("model.safetensors"), ArtefactMissing, "neither"),
    "no tokenizer": (remove("tokenizer.json"), ArtefactMissing, "no tokenizer"),
    "shard that is not here": (index_naming("model-2.safetensors"), ArtefactMissing, "model-2.safetensors"),
    "shard outside": (index_naming("../model-1.safetensors"), DataInvalid, "beside it"),
    "shard that is a pickle": (index_naming("pytorch_model.bin"), DataInvalid, "beside it"),
    "shard without its tensor": (index_naming("model-1.safetensors"), DataInvalid, "'x'"),
    "missing weight": (tensors(lambda w: w.pop("model.norm.weight")), DataInvalid, "'model.norm.weight' is missing"),
    "weight of another shape": (
        tensors(lambda w: w.update({"lm_head.weight": w["lm_head.weight"][:100].clone()})),
        DataInvalid,
        "",
    ),
    "a tensor in two shards": (
        in_pieces(lambda a, b: b.update({"lm_head.weight": a["lm_head.weight"] + 1})),
        DataInvalid,
        "tensor 'lm_head.weight' is in model-0.safetensors too",
    ),
    "whole numbers": (stored_as(torch.int8), DataInvalid, "stored as I8: quantised already"),
    "whole numbers of eight bytes": (stored_as(torch.int64), DataInvalid, "stored as I64"),
    "floats of eight bits": (stored_as(torch.float8_e4m3fn), DataInvalid, "stored as F8_E4M3"),
    "truths": (stored_as(torch.bool), DataInvalid, "stored as BOOL"),
    "no number": (tensors(lambda w: w[UP].view(-1)[-1:].fill_(float("nan"))), DataInvalid, "no finite number"),
    "infinite in bfloat16": (
        tensors(lambda w: w.update({UP: torch.full_like(w[UP], float("inf")).bfloat16()})),
        DataInvalid,
        "no finite number",
    ),
    "a head of its own where the configuration has one for both": (
        edit("config.json", tie_word_embeddings=True),
        DataInvalid,
        "stored with different values",
    ),
    # what is stored and would not be used
    "a shard that the index does not name": (
        lambda model: (in_pieces(lambda a, b: None)(model), stray("model-2.safetensors")(model)),
        DataInvalid,
        "'model-2.safetensors' are no part",
    ),
    "an adapter beside the model": (stray("adapter_model.safetensors"), DataInvalid, "are no part of what is read"),
    "biases": (
        tensors(
            lambda w: w.update(
                {f"model.layers.1.self_attn.{p}_proj.bias": w["model.norm.weight"].clone() for p in "qo"}
            )
        ),
        DataInvalid,
        "'model.layers.1.self_attn.o_proj.bias' is stored, but",
    ),
    "layers beyond the last": (
        tensors(lambda w: w.update({n.replace(".0.", ".2."): t.clone() for n, t in w.items() if ".0." in n})),
        DataInvalid,
        "'model.layers.2.input_layernorm.weight' is stored, but",
    ),
    "a head for guessing ahead that the configuration does not know": (
        tensors(lambda w: w.update({"model.layers.2.eh_proj.weight": w["lm_head.weight"].clone()})),
        DataInvalid,
        "'model.layers.2.eh_proj.weight' is stored, but",
    ),
    "an adapter's tensors": (
        tensors(lambda w: w.update({"model.layers.0.mlp.up_proj.lora_A.weight": w["model.norm.weight"].clone()})),
        DataInvalid,
        "lora_A.weight' is stored, but",
    ),
    # configurations
    "config is no JSON": (write("config.json", "{"), DataInvalid, "JSON"),
    "config is a list": (write("config.json", "[]"), DataInvalid, "not a JSON object"),
    "config says a key twice": (write("config.json", '{"a": 1, "a": 2}'), DataInvalid, "JSON"),
    "config nested to the sky": (write("config.json", "[" * 200_000), DataInvalid, "JSON"),
    "config not in UTF-8": (write("config.json", b'{"a": "\xff"}'), DataInvalid, "JSON"),
    "unknown architecture": (edit("config.json", model_type="nope"), DataInvalid, "cannot be loaded"),
    "no language model": (edit("config.json", model_type="vit"), DataInvalid, "cannot be loaded"),
    "nonsense sizes": (edit("config.json", hidden_size=-1), DataInvalid, "cannot be loaded"),
    "an end token that the tokenizer has not": (
        lambda model: (
            edit("tokenizer_config.json", eos_token=None)(model),
            edit("config.json", eos_token_id=271)(model),
        ),
        DataInvalid,
        "names an end token that the tokenizer does not have",
    ),
    "an end token that only the tokenizer's configuration has": (
        edit("tokenizer_config.json", eos_token="<|nope|>"),
        DataInvalid,
        "names an end token that the tokenizer does not have",
    ),
    "a window that this model has not": (edit("config.json", sliding_window=64), DataInvalid, "computes without it"),
    "a soft cap that this model has not": (
        edit("config.json", final_logit_softcapping=30.0),
        DataInvalid,
        "softcapping",
    ),
    "half of a rotation": (edit("config.json", partial_rotary_factor=0.5), DataInvalid, "'partial_rotary_factor'"),
    "a rotation stated twice": (
        edit("config.json", rope_theta=5e5, rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
        DataInvalid,
        "'rope_theta' is not what",
    ),
    "a scaled rotation stated twice": (
        edit(
            "config.json",
            rope_scaling={"type": "linear", "factor": 2.0},
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
        ),
        DataInvalid,
        "'rope_scaling' is not what",
    ),
    "quantised by an older tool": (edit("config.json", compression_config={"format": "x"}), DataInvalid, "quantised"),
    "quantised inside": (edit("config.json", text={"quantization_config": {"a": 1}}), DataInvalid, "quantised"),
    "quantised already": (edit("config.json", quantization_config={"quant_method": "gptq"}), DataInvalid, "quantised"),
    "tokenizer is no JSON": (write("tokenizer.json", "{"), DataInvalid, "tokenizer cannot be loaded"),
    "tokenizer is empty JSON": (write("tokenizer.json", "{}"), DataInvalid, "tokenizer cannot be loaded"),
    "tokenizer beyond the embedding": (added_tokens(19), DataInvalid, "token 280"),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_a_directory_is_refused(name: str, copied_model: Path, tmp_path: Path) -> None:
    damage, kind, words = DIRECTORIES[name]
    damage(copied_model)
    error = refused(copied_model, tmp_path)
    assert type(error) is kind
    assert error.exit_status == {DataInvalid: 6, ArtefactMissing: 11}[kind]
    assert words in str(error)


def test_the_same_directory_undamaged_is_imported(copied_model: Path, tmp_path: Path) -> None:
    assert import_model(copied_model, tmp_path / "out").architecture == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "keys",
    [
        {"sliding_window": None, "qk_layernorm": False, "partial_rotary_factor": 1.0, "frobnicate": True},
        {"sliding_window": 4096, "use_sliding_window": False, "unsloth_version": "2025.1"},
        {"use_qk_norm": True},  # the weights of the norms say whether it is so
        {
            "rope_theta": 1e4,
            "rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        },
    ],
)
def test_keys_that_say_nothing_are_no_reason(keys: dict[str, Any], copied_model: Path, tmp_path: Path) -> None:
    edit("config.json", **keys)(copied_model)
    import_model(copied_model, tmp_path / "out")


def test_one_weight_that_is_stored_twice_is_one(copied_model: Path, tmp_path: Path) -> None:
    tensors(lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))(copied_model)
    both = import_model(copied_model, tmp_path / "both").parameters
    edit("config.json", tie_word_embeddings=True)(copied_model)
    assert import_model(copied_model, tmp_path / "one").parameters == both - 272 * 32


def test_the_copy_that_mistrals_own_tools_read_is_left_where_it_is(copied_model: Path, tmp_path: Path) -> None:
    stray("consolidated.safetensors")(copied_model)
    import_model(copied_model, tmp_path / "out")
    assert not (tmp_path / "out" / "consolidated.safetensors").exists()


def test_an_index_that_names_the_one_file_changes_nothing(copied_model: Path, tmp_path: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors"}}
    (copied_model / "model.safetensors.index.json").write_text(json.dumps(index))
    import_model(copied_model, tmp_path / "out")
    assert not (tmp_path / "out/model.safetensors.index.json").exists()


def test_a_link_inside_the_directory_is_followed(copied_model: Path, tmp_path: Path) -> None:
    (copied_model / "tokenizer.json").rename(copied_model / "blob")
    (copied_model / "tokenizer.json").symlink_to("blob")
    import_model(copied_model, tmp_path / "out")
    assert not (tmp_path / "out/tokenizer.json").is_symlink()


def test_constants_that_old_files_store_change_nothing(copied_model: Path, tmp_path: Path) -> None:
    inverse = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    tensors(lambda w: w.update({inverse.format(n): w["model.norm.weight"][:4].clone() for n in range(2)}))(copied_model)
    assert import_model(copied_model, tmp_path / "out").parameters == 36000


def test_a_layer_is_not_dropped_because_another_checkpoint_has_a_spare_one(
    tiny_deepseek_dir: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_deepseek_dir, tmp_path / "m"))
    spare = "model.layers.61.eh_proj.weight"  # transformers drops what is called so: it is DeepSeek-V3's own
    tensors(lambda w: w.update({spare: w["model.norm.weight"].clone()}))(source)
    assert f"{spare!r} is stored" in str(refused(source, tmp_path))


def test_a_layer_that_guesses_ahead_is_left_out_where_the_configuration_declares_it(
    tiny_deepseek_dir: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(tiny_deepseek_dir, tmp_path / "m"))
    tensors(lambda w: w.update({"model.layers.2.eh_proj.weight": w["model.norm.weight"].clone()}))(source)
    edit("config.json", num_nextn_predict_layers=0)(source)
    assert "'model.layers.2.eh_proj.weight' is stored" in str(refused(source, tmp_path))
    edit("config.json", num_nextn_predict_layers=1)(source)
    import_model(source, tmp_path / "declared")


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    assert refused(tmp_path / "nowhere", tmp_path).exit_status == 11


# --- GGUF ---------------------------------------------------------------------------------------------------------


def patched(at: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at] + data + whole[at + len(data) :]


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole.replace(old, new, 1)


def offset_of(tensor: bytes, offset: int) -> Callable[[bytes], bytes]:
    """Sets the offset of a two-dimensional tensor in the table: name, u32 count, two u64, u32 type, u64 offset."""

    def change(whole: bytes) -> bytes:
        at = whole.index(tensor) + len(tensor) + 4 + 16 + 4
        return patched(at, struct.pack("<Q", offset))(whole)

    return change


GGUFS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda whole: b"", "not a GGUF"),
    "text": (lambda whole: b"hello, this is no model at all", "not a GGUF"),
    "a pickle": (lambda whole: b"\x80\x04" + whole, "not a GGUF"),
    "a zip": (patched(0, b"PK\x03\x04"), "not a GGUF"),
    "version 1": (patched(4, struct.pack("<I", 1)), "version"),
    "big-endian": (patched(4, struct.pack(">I", 3)), "byte order"),
    "cut in the fixed header": (lambda whole: whole[:20], "not a GGUF"),
    "cut in the metadata": (lambda whole: whole[:300], "truncated"),
    "cut in the data": (lambda whole: whole[:-200], "truncated"),
    "countless tensors": (patched(8, struct.pack("<Q", 2**63)), "claims"),
    "more tensors than described": (patched(8, struct.pack("<Q", 1000)), ""),
    "fewer tensors": (patched(8, struct.pack("<Q", 3)), ""),
    "countless metadata": (patched(16, struct.pack("<Q", 2**40)), "claims"),
    "key longer than the file": (patched(24, struct.pack("<Q", 2**50)), "truncated"),
    "overlapping tensors": (offset_of(b"blk.1.attn_k.weight", 0), "overlaps"),
    "misaligned tensor": (offset_of(b"blk.1.attn_k.weight", 1), "misaligned"),
    "tensor after the file": (offset_of(b"blk.1.attn_k.weight", 2**40), "truncated"),
    "unknown architecture": (replaced(b"llama", b"xlama"), "cannot be converted"),
    "no vocabulary": (replaced(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"), "no tokenizer"),
}


@pytest.mark.parametrize("name", GGUFS)
def test_a_gguf_is_refused(name: str, write_tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "m.gguf")
    change, words = GGUFS[name]
    source.write_bytes(change(source.read_bytes()))
    error = refused(source, tmp_path)
    assert error.exit_status == (11 if name == "no vocabulary" else 6)
    assert words in str(error)


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"skip": "tokenizer"}, 11, "no tokenizer"),
        ({"skip": "layers.1.mlp.up_proj"}, 6, "'model.layers.1.mlp.up_proj.weight' is missing"),
        ({"pre": "deepseek-llm"}, 6, "pre-tokenizer 'deepseek-llm'"),
        ({"arch": "deepseek2"}, 6, "cannot be converted"),
    ],
)
def test_a_gguf_that_would_give_another_model_is_refused(
    write_tiny_gguf: Callable[..., Path], tmp_path: Path, options: dict[str, str], status: int, words: str
) -> None:
    error = refused(write_tiny_gguf(tmp_path / "m.gguf", **options), tmp_path)
    assert error.exit_status == status
    assert words in str(error)


# --- what would be built ---------------------------------------------------------------------------------------------

MILLION = 10**6
TOO_MUCH = {
    "layers": edit("config.json", num_hidden_layers=MILLION),
    "one layer more than tensors": edit("config.json", num_hidden_layers=22),
    "layers by another name": edit("config.json", model_type="gpt2", n_layer=MILLION),
    "layers of a decoder": edit("config.json", model_type="bart", decoder_layers=MILLION),
    "layers further in": edit("config.json", model_type="gemma3", text_config={"num_hidden_layers": MILLION}),
    "layers in a list": edit("config.json", model_type="swin", depths=[2, MILLION]),
    "experts": edit("config.json", model_type="mixtral", num_local_experts=MILLION),
    "experts of all layers": edit("config.json", model_type="mixtral", num_hidden_layers=20, num_local_experts=1 << 14),
    "a large configuration": edit("config.json", layer_types=["full_attention"] * MILLION),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_more_than_the_tensors_fill_is_refused_before_anything_is_built(
    name: str, copied_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TOO_MUCH[name](copied_model)
    monkeypatch.setattr(importing, "inspect", lambda _: pytest.fail("it was built"))
    began = time.process_time()
    assert type(refused(copied_model, tmp_path)) is DataInvalid
    assert time.process_time() - began < 10


def test_tensors_without_a_weight_do_not_make_up_for_it(copied_model: Path, tmp_path: Path) -> None:
    edit("config.json", num_hidden_layers=1 << 18)(copied_model)
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header(lambda fields: fields.update({f"t{i}": empty for i in range(1 << 18)}))(copied_model)
    assert "more than any real model has" in str(refused(copied_model, tmp_path))


def test_a_gguf_of_a_million_layers_is_refused(write_tiny_gguf: Callable[..., Path], tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "m.gguf")
    key = b"llama.block_count" + struct.pack("<I", 4)
    data = source.read_bytes()
    at = data.index(key) + len(key)
    source.write_bytes(data[:at] + struct.pack("<I", MILLION) + data[at + 4 :])
    assert f"{MILLION} layers are configured" in str(refused(source, tmp_path))
