"""What is learned are the tokens that the model meets, also with tokenizers that write a blank before a text."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.jobs.record import Record
from appliance.jobs.train import TrainSpec
from appliance.train.encode import Encoded, Encoder
from appliance.train.seams import tokenise

SPECIAL = ("<unk>", "<s>", "</s>")
TEMPLATE = (  # of Llama 2
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PARTS = (("user", "hi"), ("assistant", "I am"), ("user", "hi hi"), ("assistant", "am I"))


def sentencepiece(prefix: str) -> Any:
    """A tokenizer as Llama 2 has it: `▁` for a blank, and one in front, as the converter of the day writes that."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("▁", "I"), ("▁", "h"), ("▁h", "i"), ("a", "m"), ("▁", "am"), ("h", "i"), ("▁", "▁")]
    known = [*SPECIAL, "▁", *"abcdefghijklmnopqrstuvwxyzINST[]/:.\n", *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({t: n for n, t in enumerate(dict.fromkeys(known))}, merges, unk_token="<unk>"))
    if prefix == "written":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=prefix, split=False)
    tokenizer.decoder = decoders.Metaspace("▁")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)


def learned(tokenizer: Any, encoded: Encoded) -> list[str]:
    return [tokenizer.convert_ids_to_tokens(encoded.ids[p + 1]) for p in encoded.positions]


@pytest.mark.parametrize("prefix", ["written", "first", "always", "never"])
def test_a_conversation_has_the_tokens_of_the_whole_template(prefix: str) -> None:
    """With one blank more, as each piece alone has it, the answer would begin with two."""
    tokenizer = sentencepiece(prefix)
    encoder = Encoder(tokenizer, TrainSpec(lr=1e-3, max_tokens=96))
    made = encoder.encode(Record(unit="u", kind="chat", parts=PARTS))
    messages = [{"role": role, "content": text} for role, text in PARTS]
    assert list(made.ids) == tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    assert learned(tokenizer, made) == ["▁I", "▁am", "▁", "</s>", "▁am", "▁I", "▁", "</s>"]


ANSWERS = {
    "on a line of its own": ("hi:\n", "I am", ["I", "▁am", "</s>"]),
    "with its blank": ("hi:", " I am", ["▁I", "▁am", "</s>"]),
    "behind a blank, where a token would lie across": ("hi ", "I am", ["I", "▁am", "</s>"]),
}


@pytest.mark.parametrize("prefix", ["written", "first", "always"])
@pytest.mark.parametrize("name", ANSWERS)
def test_a_plain_answer_goes_on_where_the_question_ends(name: str, prefix: str) -> None:
    prompt, completion, expected = ANSWERS[name]
    tokenizer = sentencepiece(prefix)
    encoder = Encoder(tokenizer, TrainSpec(lr=1e-3, max_tokens=96, template="none"))
    made = encoder.encode(Record(unit="u", kind="completion", parts=(("prompt", prompt), ("completion", completion))))
    assert learned(tokenizer, made) == expected
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(made.ids)[: len(asked)] == asked  # what the model is given when it is asked


def test_nothing_is_lost_or_learned_twice_at_a_seam() -> None:
    """Tokens of pairs of letters: some lie across a seam, some do not."""

    def pairs(text: str) -> list[int]:
        return [int.from_bytes(text[n : n + 2].encode()) for n in range(0, len(text), 2)]

    assert tokenise([("ab", False), ("cd", True), ("e", True)], pairs) == [(pairs("ab"), False), (pairs("cde"), True)]
    across = tokenise([("abc", False), ("de", True), ("", False)], pairs)
    assert across == [(pairs("abc"), False), (pairs("de"), True)]
    assert tokenise([], pairs) == []
