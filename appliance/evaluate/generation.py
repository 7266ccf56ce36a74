"""Text that a model writes: token by token with a cache of its own for each variant, so that several go on in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from appliance.evaluate.variants import Variants
from appliance.jobs.limits import positions

Choose = Callable[[Tensor], int]
"""Chooses a token from logits, float32 [vocabulary]."""
_HALF_CHARACTER = "\ufffd"


def likeliest(logits: Tensor) -> int:
    """Take the likeliest token."""
    return int(logits.argmax())


def drawing(temperature: float) -> Choose:
    """Make what draws a token at a temperature; 0 takes the likeliest."""
    if temperature == 0:
        return likeliest
    return lambda logits: int(torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1))


class Writer:
    """Writes with the base and with every adapter.

    Args:
      variants: the model and its adapters.
      tokenizer: of the base.
      logits: the model's own way from hidden states to logits.

    Attributes:
      ends: tokens that end an answer.
      limit: how many tokens the model reads at most; None for any number.
    """

    def __init__(self, variants: Variants, tokenizer: Any, logits: Callable[[Tensor], Tensor]) -> None:
        self._variants, self._tokenizer, self._logits = variants, tokenizer, logits
        self._body: Any = variants.model.get_decoder()
        self._device = variants.model.get_input_embeddings().weight.device
        self.ends = _ends(variants.model, tokenizer)
        self.limit = positions(variants.model.config.to_dict())

    def encode(self, text: str) -> list[int]:
        """Turn text into tokens, special ones included where the text writes them."""
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Turn tokens into text, without special ones."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def tokens(self, name: str | None, ids: Sequence[int], most: int, choose: Choose = likeliest) -> Iterator[int]:
        """Write on behind `ids`, until a token that ends an answer, which is not given.

        Args:
          name: the adapter, or None for the base; others may write in between.
          ids: what was read.
          most: tokens that are written.
          choose: which token is written.
        """
        room = most if self.limit is None else min(most, self.limit - len(ids))
        cache, new = None, list(ids)
        for _ in range(room if new else 0):
            logits, cache = self._step(name, new, cache)
            token = choose(logits)
            if token in self.ends:
                return
            yield token
            new = [token]

    def pieces(self, name: str | None, ids: Sequence[int], most: int, choose: Choose = likeliest) -> Iterator[str]:
        """Write on as `tokens` does, in pieces of whole characters."""
        written: list[int] = []
        shown = 0
        for token in self.tokens(name, ids, most, choose):
            written.append(token)
            text = self.decode(written)
            if not text.endswith(_HALF_CHARACTER) and len(text) > shown:
                yield text[shown:]
                shown = len(text)
        if rest := self.decode(written)[shown:]:
            yield rest

    def write(self, name: str | None, ids: Sequence[int], most: int, stops: Sequence[str] = ()) -> str:
        """Write on as `tokens` does, up to the first of `stops`, which is not part of the text."""
        written: list[int] = []
        for token in self.tokens(name, ids, most):
            written.append(token)
            text = self.decode(written)
            found = [place for stop in stops if (place := text.find(stop)) >= 0]
            if found:
                return text[: min(found)]
        return self.decode(written)

    @torch.inference_mode()
    def _step(self, name: str | None, ids: Sequence[int], cache: Any) -> tuple[Tensor, Any]:
        self._variants.use(name)
        read = torch.tensor([ids], device=self._device)
        out = self._body(input_ids=read, past_key_values=cache, use_cache=True)
        return self._logits(out.last_hidden_state[:, -1])[0].float().cpu(), out.past_key_values


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    stated = getattr(model.generation_config, "eos_token_id", None) if model.can_generate() else None
    listed = stated if isinstance(stated, list) else [stated]
    return frozenset(end for end in (*listed, tokenizer.eos_token_id) if end is not None)
