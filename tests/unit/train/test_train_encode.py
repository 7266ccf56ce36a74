"""Records to tokens: what is supervised, public truncation, public lengths, each from the record alone."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest

from appliance.errors import ConfigInvalid, DataInvalid
from appliance.jobs.record import Record
from appliance.jobs.train import TrainSpec
from appliance.train.encode import Encoded, Encoder, buckets


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model_dir)


def encoder(tokenizer: Any, **changes: Any) -> Encoder:
    return Encoder(tokenizer, TrainSpec(**({"lr": 0.1, "max_tokens": 200} | changes)))


def supervised(tokenizer: Any, encoded: Encoded) -> str:
    return str(tokenizer.decode([encoded.ids[p + 1] for p in encoded.positions]))


COMPLETION = Record(unit="u", kind="completion", parts=(("prompt", "How?"), ("completion", "So.")))
CHAT = Record(
    unit="u",
    kind="chat",
    parts=(("system", "S"), ("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")),
)


def test_completion_through_the_template(tokenizer: Any) -> None:
    got = encoder(tokenizer).encode(COMPLETION)
    text = tokenizer.decode(got.ids)
    assert text == "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n"
    assert supervised(tokenizer, got) == "So.<|im_end|>\n"
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}], tokenize=True
    )["input_ids"]
    assert list(got.ids) == list(whole)


class Failing:
    """A tokenizer that fails on one word."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        if "zebra" in text:
            raise ValueError("a byte that no token stands for")
        return self._tokenizer(text, **options)


@pytest.mark.parametrize("template", ["base", "none"])
def test_a_record_that_the_tokenizer_fails_on_has_no_tokens_and_ends_nothing(tokenizer: Any, template: str) -> None:
    made = encoder(Failing(tokenizer), template=template)
    record = Record(unit="u", kind="completion", parts=(("prompt", "How?"), ("completion", "zebra")))
    assert made.encode(record) == Encoded((), (), made.buckets[0])
    assert made.encode(COMPLETION) == encoder(tokenizer, template=template).encode(COMPLETION)


def test_every_assistant_turn_is_supervised(tokenizer: Any) -> None:
    got = encoder(tokenizer).encode(CHAT)
    assert supervised(tokenizer, got) == "two<|im_end|>\nfour<|im_end|>\n"


def test_train_on_all(tokenizer: Any) -> None:
    got = encoder(tokenizer, train_on="all").encode(COMPLETION)
    assert got.positions == tuple(range(len(got.ids) - 1))


def test_plain_concatenation(tokenizer: Any) -> None:
    got = encoder(tokenizer, template="none").encode(COMPLETION)
    assert tokenizer.decode(got.ids) == "How?So.<|im_end|>"
    assert supervised(tokenizer, got) == "So.<|im_end|>"
    text = encoder(tokenizer).encode(Record(unit="u", kind="text", parts=(("text", "Once."),)))
    assert tokenizer.decode(text.ids) == "Once.<|im_end|>"
    assert text.positions == tuple(range(len(text.ids) - 1))


def test_truncation_leaves_nothing_to_supervise_but_keeps_the_record(tokenizer: Any) -> None:
    made = encoder(tokenizer, max_tokens=10)
    got = made.encode(COMPLETION)
    made.encode(Record(unit="u", kind="text", parts=(("text", "short"),)))
    assert made.truncated.reveal() == 1
    assert len(got.ids) == 10
    assert got.positions == ()
    assert got.length == 10


def test_a_conversation_the_template_refuses_is_concatenated_by_itself_if_that_is_asked_for(tokenizer: Any) -> None:
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusing + tokenizer.chat_template
    assert encoder(tokenizer).encode(CHAT).positions == ()
    made = encoder(tokenizer, template="fallback")
    assert supervised(tokenizer, made.encode(CHAT)).startswith("two\nfour\n")
    assert "im_start" in tokenizer.decode(made.encode(COMPLETION).ids)


def test_a_template_that_rewrites_what_was_said_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}"
    with pytest.raises(ConfigInvalid, match="chat template"):
        encoder(tokenizer)
    encoder(tokenizer, template="none")


def test_buckets_are_public_and_grow_by_an_eighth() -> None:
    lengths = buckets(2000)
    assert lengths[:4] == [8, 16, 24, 32]
    assert lengths[-1] == 2000 > lengths[-2]
    assert [buckets(most)[-1] for most in (1, 7, 8, 9, 63, 513)] == [1, 7, 8, 9, 63, 513]
    assert all(n % 8 == 0 for n in lengths)
    assert all(b - a <= max(8, 0.12 * a) for a, b in pairwise(lengths))


def test_encoding_never_shows_content(tokenizer: Any) -> None:
    assert "ids" not in repr(encoder(tokenizer).encode(COMPLETION))


def ingested(tmp_path: Path, row: dict[str, Any]) -> Record:
    from appliance.ingest.ingestion import Ingestion
    from appliance.ingest.spec import IngestSpec

    path = tmp_path / "rows.jsonl"
    path.write_bytes(orjson.dumps(row) + b"\n")
    (record,) = Ingestion([path], IngestSpec(format="jsonl"), b"k" * 32)
    return record


TURNS = [("system", "S"), ("human", "one"), ("gpt", "two"), ("human", "three"), ("gpt", "four")]
ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
OPENED = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
BETWEEN = "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n"
CHATTED = [(OPENED, False), ("two<|im_end|>\n", True), (BETWEEN, False), ("four<|im_end|>\n", True)]
ASKED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
MASKS: dict[str, tuple[dict[str, Any], list[tuple[str, bool]]]] = {
    "messages": ({"messages": [{"role": ROLES[f], "content": v} for f, v in TURNS]}, CHATTED),
    "sharegpt": ({"conversations": [{"from": f, "value": v} for f, v in TURNS]}, CHATTED),
    "alpaca": (
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        [(ASKED.format("Add.\n\n1 2"), False), ("3<|im_end|>\n", True)],
    ),
    "alpaca-without-input": (
        {"instruction": "Add.", "input": "", "output": "3"},
        [(ASKED.format("Add."), False), ("3<|im_end|>\n", True)],
    ),
    "completion": (
        {"prompt": "How?", "completion": "So."},
        [(ASKED.format("How?"), False), ("So.<|im_end|>\n", True)],
    ),
    "text": ({"text": "Once."}, [("Once.<|im_end|>", True)]),
}


@pytest.mark.parametrize("name", sorted(MASKS))
def test_every_format_from_its_file_to_its_exact_mask(name: str, tokenizer: Any, tmp_path: Path) -> None:
    row, pieces = MASKS[name]
    got = encoder(tokenizer, max_tokens=400).encode(ingested(tmp_path, row))
    parts = [(tokenizer(text, add_special_tokens=False)["input_ids"], train) for text, train in pieces]
    assert list(got.ids) == [token for ids, _ in parts for token in ids]
    mask = [train for ids, train in parts for _ in ids]
    assert got.positions == tuple(p - 1 for p in range(1, len(mask)) if mask[p])


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "completion": " "},
        {"instruction": "i", "output": ""},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": ""}]},
        {"text": "\n"},
    ],
)
def test_an_empty_completion_is_rejected_by_its_place(row: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataInvalid) as caught:
        ingested(tmp_path, row)
    assert re.search(r"line 1 .* is empty", caught.value.hint)
