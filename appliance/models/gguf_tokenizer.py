"""A tokenizer as a GGUF file states it: byte-level BPE, by its tokens, merges, and how it cuts text.

llama.cpp knows ways of cutting text by name. What a `tokenizer.json` does is recognised by its own description; what is
not known is refused, because llama.cpp would cut text differently without a word.
"""

from __future__ import annotations

import json
from typing import Any

from appliance.errors import DataInvalid

_NORMALIZERS = (None, {"type": "NFC"})
"""llama.cpp does not compose letters and accents, as Qwen's tokenizer does; text is hardly ever written otherwise."""
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""gguf.TokenType."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_LINES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    _GPT2: "gpt-2",
    rf"{_CONTRACTIONS}|\p{{N}}{_LINES}": "qwen2",
    rf"{_CONTRACTIONS}|\p{{N}}{{1,3}}{_LINES}": "llama-bpe",
}
"""Regular expressions by which text is cut, and llama.cpp's name for each."""


def add_tokenizer(writer: Any, tokenizer: Any, rows: int, where: str) -> None:
    """State the tokenizer of a model directory.

    Args:
      writer: a `gguf.GGUFWriter`.
      tokenizer: as transformers loaded it.
      rows: of the embedding.
      where: names the model in messages.

    Raises:
      DataInvalid: it is not a byte-level BPE, or cuts text in a way that llama.cpp has no known name for.
    """
    fields = json.loads(
        tokenizer.backend_tokenizer.to_str()
    )  # some classes cut in their own way, whatever the file says
    model = fields["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or fields.get("normalizer") not in _NORMALIZERS:
        raise DataInvalid("only byte-level BPE tokenizers are written to GGUF", where=where)
    if not model["merges"]:
        raise DataInvalid("llama.cpp loads no tokenizer without merges", where=where)
    tokens, kinds = _tokens(fields, rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_cut(fields.get("pre_tokenizer") or {}, where))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    ids = tokenizer("a", verbose=False)["input_ids"]
    for number, add in (
        (tokenizer.bos_token_id, writer.add_bos_token_id),
        (tokenizer.eos_token_id, writer.add_eos_token_id),
        (tokenizer.unk_token_id, writer.add_unk_token_id),
        (tokenizer.pad_token_id, writer.add_pad_token_id),
    ):
        if number is not None:
            add(number)
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id])
    writer.add_add_space_prefix(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _tokens(fields: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """List what every row of the embedding stands for; llama.cpp wants a name for each."""
    named = {number: (token, NORMAL) for token, number in fields["model"]["vocab"].items()}
    for added in fields.get("added_tokens", []):
        named[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
    every = [named.get(number, (f"[PAD{number}]", UNUSED)) for number in range(rows)]
    return [token for token, _ in every], [kind for _, kind in every]


def _cut(described: dict[str, Any], where: str) -> str:
    parts = described.get("pretokenizers", [described])
    kinds = [part.get("type") for part in parts]
    if any(part.get("add_prefix_space") for part in parts):
        raise DataInvalid("llama.cpp knows no name for how this tokenizer cuts text", where=where)
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1]["use_regex"]:
        return "smollm"
    if kinds == ["ByteLevel"] and parts[0].get("use_regex"):
        return "gpt-2"
    if kinds == ["Split", "ByteLevel"] and not parts[1]["use_regex"] and parts[0]["behavior"] == "Isolated":
        found = SPLITS.get(parts[0]["pattern"].get("Regex", ""))
        if found:
            return found
    raise DataInvalid("llama.cpp knows no name for how this tokenizer cuts text", where=where)
