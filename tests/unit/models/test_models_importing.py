"""Importing: what comes out, that nothing else is touched, and that nothing is fetched, run or printed."""

import hashlib
import json
import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import rfc8785
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from appliance.errors import ArtefactMissing, DataInvalid, UsageError, WillNotFit
from appliance.models.conversion import smallest_exact_dtype
from appliance.models.directory import licence_of
from appliance.models.importing import import_model
from appliance.models.loading import _numbers, load, load_tokenizer
from appliance.models.offline import strict

ROOT = Path(__file__).parents[3]


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_llama_directory_is_copied_byte_for_byte(tiny_model_dir: Path, tmp_path: Path) -> None:
    before = snapshot(tiny_model_dir)
    made = import_model(tiny_model_dir, tmp_path / "out")
    assert snapshot(tmp_path / "out") == before
    assert snapshot(tiny_model_dir) == before
    rows = [[name, len(data), hashlib.sha256(data).hexdigest()] for name, data in sorted(before.items())]
    assert made.source_sha256 == hashlib.sha256(rfc8785.dumps(rows)).hexdigest()
    assert (made.architecture, made.source_format, made.licence) == ("LlamaForCausalLM", "safetensors", "apache-2.0")
    assert made.has_chat_template
    assert made.parameters == 36000
    assert len(made.shapes) == 15
    assert made.shapes["model.layers.1.self_attn.k_proj"] == (16, 32)
    assert made.shapes["lm_head"] == (272, 32)


def test_a_deepseek_directory_has_its_mla_projections(tiny_deepseek_dir: Path, tmp_path: Path) -> None:
    made = import_model(tiny_deepseek_dir, tmp_path / "out")
    assert made.architecture == "DeepseekV3ForCausalLM"
    assert made.shapes["model.layers.1.self_attn.kv_a_proj_with_mqa"] == (24, 32)
    assert "model.layers.1.mlp.shared_experts.up_proj" in made.shapes
    model, _ = load(tmp_path / "out", torch.float32)
    assert made.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_only_the_files_of_a_model_are_taken(copied_model: Path, tmp_path: Path) -> None:
    taken = set(snapshot(copied_model)) | {"LICENSE.txt"}
    for name in ("LICENSE.txt", "notes.txt", "consolidated.safetensors", "adapter_config.json", ".gitattributes"):
        (copied_model / name).write_text("{}")
    (copied_model / "original").mkdir()
    (copied_model / "original" / "x.py").write_text("raise SystemExit")
    import_model(copied_model, tmp_path / "out")
    assert set(snapshot(tmp_path / "out")) == taken


def test_shards_are_taken_with_their_index(tiny_model_dir: Path, copied_model: Path, tmp_path: Path) -> None:
    (copied_model / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_model_dir).save_pretrained(copied_model, max_shard_size="60KB")
    shards = {path.name for path in copied_model.glob("*.safetensors")}
    assert len(shards) > 1
    made = import_model(copied_model, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == shards
    assert made.parameters == 36000


def test_load_gives_frozen_weights_in_the_dtype_asked_for(tiny_model_dir: Path) -> None:
    model, tokenizer = load(tiny_model_dir, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert tokenizer.decode(tokenizer("héllo 你好").input_ids) == "héllo 你好"
    with pytest.raises(ArtefactMissing):
        load(tiny_model_dir / "nowhere", torch.float32)


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\r\nlanguage: en\r\nlicense: 'apache-2.0'\r\n---\r\ntext", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: deepseek\n---\n", "deepseek"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlanguage: en\n---\nlicense: mit\n", "unknown"),
        ("# no front matter\nlicense: mit\n", "unknown"),
        ("---\nlicense:\n- mit\n- gpl\n---\n", "unknown"),
        ("---\nlicense: <script>alert(1)</script>\n---\n", "unknown"),
        ("---\nlicense: " + "a" * 65 + "\n---\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_licence_is_the_one_stated_in_the_front_matter(tmp_path: Path, readme: str, licence: str) -> None:
    (tmp_path / "README.md").write_text(readme, newline="")
    assert licence_of(tmp_path) == licence


def test_no_readme_means_an_unknown_licence(tmp_path: Path) -> None:
    assert licence_of(tmp_path) == "unknown"


def test_the_output_must_be_empty(tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError):
        import_model(tiny_model_dir, tmp_path)


def test_a_tokenizer_without_an_end_token_gets_that_of_the_configuration(copied_model: Path, tmp_path: Path) -> None:
    path = copied_model / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "eos_token"}))
    assert AutoTokenizer.from_pretrained(copied_model).eos_token is None
    import_model(copied_model, tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").eos_token == "<|im_end|>"


SIZES = {
    "bloom": {"n_layer": 2, "n_head": 4, "hidden_size": 32},
    "mpt": {"n_layers": 2, "n_heads": 4, "d_model": 32},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "hidden_size": 32, "attention_types": [[["global", "local"], 1]]},
    "gpt2": {"n_layer": 2, "n_head": 4, "n_embd": 32},
    "gemma3": {"text_config": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}},
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_have_one_name_whatever_the_configuration_calls_them(kind: str) -> None:
    config = AutoConfig.for_model(kind, **SIZES[kind])
    found = _numbers(config.get_text_config(decoder=True))
    assert (found["num_hidden_layers"], found["num_attention_heads"], found["hidden_size"]) == (2, 4, 32)
    assert found["vocab_size"] > 0


# --- GGUF ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stored", "expected"), [("float32", torch.float32), ("float16", torch.float16)])
def test_a_gguf_gives_back_the_model_it_was_made_from(
    write_tiny_gguf, tiny_model_dir: Path, tmp_path: Path, stored: str, expected: torch.dtype
) -> None:
    made = import_model(write_tiny_gguf(tmp_path / "m.gguf", dtype=stored), tmp_path / "out")
    assert (made.source_format, made.licence, made.has_chat_template) == ("gguf", "apache-2.0", True)
    assert made.source_sha256 == hashlib.sha256((tmp_path / "m.gguf").read_bytes()).hexdigest()
    weights, original = load_file(tmp_path / "out/model.safetensors"), load_file(tiny_model_dir / "model.safetensors")
    assert weights.keys() == original.keys()
    assert {weight.dtype for weight in weights.values()} == {expected}
    assert all(torch.equal(weights[name], original[name].to(expected)) for name in original)
    tokenizer, template = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "out", tiny_model_dir))
    assert tokenizer.chat_template == template.chat_template
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    assert [path for path in (tmp_path / "out").iterdir() if path.name.startswith(".")] == []


def test_files_beside_a_gguf_and_its_name_change_nothing(write_tiny_gguf, tiny_model_dir: Path, tmp_path: Path) -> None:
    import_model(write_tiny_gguf(tmp_path / "alone.gguf"), tmp_path / "expected")
    (tmp_path / "crowd").mkdir()
    source = write_tiny_gguf(tmp_path / "crowd" / "other name.gguf")
    for name, text in {
        "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["planted.T", null]}, "bos_token": "planted"}',
        "config.json": '{"model_type": "planted"}',
        "generation_config.json": '{"eos_token_id": 7}',
        "chat_template.jinja": "planted",
        "added_tokens.json": '{"planted": 300}',
        "special_tokens_map.json": '{"eos_token": "planted"}',
        "tokenizer.json": (tiny_model_dir / "tokenizer.json").read_text().replace("|im_", "|planted_"),
        "planted.py": "raise SystemExit",
    }.items():
        (source.parent / name).write_text(text)
    import_model(source, tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "expected")


def test_smollm_text_is_cut_at_every_digit(write_tiny_gguf, tmp_path: Path) -> None:
    import_model(write_tiny_gguf(tmp_path / "m.gguf", pre="smollm"), tmp_path / "out")
    _, tokenizer = load(tmp_path / "out", torch.float32)
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("take   12 mg")
    assert [piece for piece, _ in pieces] == ["take", "ĠĠĠ", "1", "2", "Ġmg"]


def test_the_stored_dtype_is_the_smallest_exact_one() -> None:
    one, third = torch.tensor([1.0, 0.5]), torch.tensor([1 / 3])
    assert smallest_exact_dtype([one]) == torch.bfloat16
    assert smallest_exact_dtype([one, torch.tensor([1 + 2**-9])]) == torch.float16
    assert smallest_exact_dtype([one, third]) == torch.float32
    assert smallest_exact_dtype([torch.tensor([1 + 2**-9, 1e30])]) == torch.float32


@pytest.mark.model
def test_smollm2_is_converted_without_changing_a_weight(smollm2_gguf: Path, smollm2_dir: Path) -> None:
    import gguf

    renamed = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    renamed |= {f"blk.{i}.ffn_down.weight": f"model.layers.{i}.mlp.down_proj.weight" for i in range(30)}
    renamed |= {f"blk.{i}.attn_v.weight": f"model.layers.{i}.self_attn.v_proj.weight" for i in range(30)}
    stored = load_file(smollm2_dir / "model.safetensors")
    compared = exact_in_bfloat16 = 0
    for tensor in gguf.GGUFReader(smollm2_gguf).tensors:
        if tensor.name in renamed:
            original = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
            assert torch.equal(stored[renamed[tensor.name]], original)
            compared += original.numel()
            exact_in_bfloat16 += int((original.bfloat16().float() == original).sum())
    assert compared > 57e6
    # Why float32 is stored: bfloat16 would change most weights.
    assert exact_in_bfloat16 / compared < 0.3


@pytest.mark.model
def test_smollm2_speaks_english_in_its_own_template(smollm2_dir: Path) -> None:
    model, tokenizer = load(smollm2_dir, torch.float32)
    assert tokenizer.get_vocab()["<|im_start|>"] == 1
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    prompt = tokenizer(text, return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."


# --- nothing fetched, run, printed or written elsewhere --------------------------------------------------------------

WATCHED = """
import json, os, sys
from pathlib import Path
directory, gguf, output = sys.argv[1:]
seen = []
def watch(event, args):
    if event.startswith(("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.system", "os.fork", "urllib.")):
        seen.append(event)
    if event == "open" and (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        written, base = args[:1], os.getcwd()
    elif event in ("os.mkdir", "os.rmdir", "os.rename", "os.remove", "os.symlink", "os.link"):
        written, base = args[:-1], os.getcwd() if args[-1] < 0 else os.readlink(f"/proc/self/fd/{args[-1]}")
        written = written[1:2] if event in ("os.symlink", "os.link") else written
    else:
        return
    paths = [os.path.join(base, os.fsdecode(path)) for path in written if not isinstance(path, int)]
    harmless = (os.devnull, "/") if event != "os.rmdir" else ()
    seen.extend(event + " " + path for path in paths if not path.startswith(output) and path not in harmless)
sys.addaudithook(watch)

from appliance.models.importing import import_model
import_model(Path(directory), Path(output, "from-directory"))
import_model(Path(gguf), Path(output, "from-gguf"))
importing, seen = seen, []

import socket
socket.socket().connect_ex(("127.0.0.1", 9))
open(gguf + ".planted", "w").close()
Path(output, "seen.json").write_text(json.dumps([importing, seen]))
"""


def test_nothing_is_fetched_run_printed_or_written_elsewhere(
    write_tiny_gguf, tiny_model_dir: Path, tmp_path: Path
) -> None:
    gguf, output = write_tiny_gguf(tmp_path / "m.gguf"), tmp_path / "out"
    output.mkdir()
    # No switch is set from outside: the import has to turn the network off by itself.
    switches = ("HF_", "TRANSFORMERS_", "TORCHINDUCTOR_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(switches)}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, tiny_model_dir, gguf, output], env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    importing, planted = json.loads((output / "seen.json").read_text())
    assert importing == []
    assert {"socket.connect", f"open {gguf}.planted"} <= set(planted), "the watch is blind"


def test_transformers_that_may_use_the_network_is_refused() -> None:
    code = "import huggingface_hub.constants; from appliance.models.offline import go_offline; go_offline()"
    environment = os.environ | {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert b"IsolationViolated" in done.stderr


def test_failures_of_a_library_become_refusals_without_its_words() -> None:
    with pytest.raises(DataInvalid) as refused, strict("the model cannot be loaded", "m"):
        raise KeyError("words of a foreign file")
    assert str(refused.value) == "m: the model cannot be loaded (KeyError)"
    with pytest.raises(WillNotFit), strict("x", "m"):
        raise OSError(28, "No space left on device")
    with pytest.raises(WillNotFit), strict("x", "m"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(WillNotFit), strict("x", "m"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with pytest.raises(WillNotFit), strict("x", "m"):
        raise MemoryError


EXAMINE = """
import sys
from pathlib import Path
from appliance.isolation import process
from appliance.models.loading import inspect
process.limit_memory(1 << 30)
print(inspect(Path(sys.argv[1])).parameters)
"""


def test_a_model_is_examined_in_less_memory_than_its_files_are_large(copied_model: Path) -> None:
    """A map of a file, as transformers makes it, is writable and counts: a model of 8 billion could not be imported."""
    rows = 40_000_000
    weights = next(copied_model.glob("*.safetensors"))
    grow_embedding(weights, rows)
    assert weights.stat().st_size > 2 << 30
    config = json.loads((copied_model / "config.json").read_text())
    (copied_model / "config.json").write_text(json.dumps(config | {"vocab_size": rows, "tie_word_embeddings": True}))
    command = [sys.executable, "-c", EXAMINE, str(copied_model)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 36000 - 2 * 272 * 32 + rows * 32


def grow_embedding(weights: Path, rows: int) -> None:
    """Writes the file anew with an embedding of so many rows and no head of its own; sparse, so no disk is taken."""
    with safe_open(weights, "pt") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in list(opened.keys()) if name != "lm_head.weight"}
    shapes["model.embed_tokens.weight"] = [rows, shapes["model.embed_tokens.weight"][1]]
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    written = json.dumps(header).encode()
    written += b" " * (-len(written) % 8)
    with weights.open("wb") as stream:
        stream.write(struct.pack("<Q", len(written)) + written)
        stream.truncate(8 + len(written) + end)
