"""Records to tokens: what the model reads, what it is trained on, how long the padded row is.

Every rule looks at one record only, so no record changes what another one becomes: the template, the truncation (the
first max_tokens tokens are kept) and the padded length (the next public bucket). A record whose supervised part was
cut off has nothing to train on; it stays in the batch with a zero gradient. So does a conversation that the template
cannot carry (`train.templates`), unless the run asked for plain text in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.errors import ConfigInvalid
from appliance.jobs.record import Record
from appliance.jobs.train import TrainSpec
from appliance.train.seams import Piece, tokenise
from appliance.train.templates import ChatTemplate
from appliance.values import Private


@dataclass(frozen=True, slots=True, repr=False)
class Encoded:
    """One record as tokens.

    Attributes:
      ids: token ids, at most max_tokens of them.
      positions: ascending positions p whose prediction of token p + 1 is trained.
      length: padded length, a public bucket.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    length: int


def buckets(max_tokens: int) -> list[int]:
    """List the public padded lengths: multiples of 8, each about 12 % above the last, up to max_tokens itself.

    >>> buckets(60)
    [8, 16, 24, 32, 40, 48, 56, 60]
    """
    lengths = [min(8, max_tokens)]
    while lengths[-1] < max_tokens:
        lengths.append(min(max_tokens, lengths[-1] + max(8, lengths[-1] * 12 // 100 // 8 * 8)))
    return lengths


class Encoder:
    """Encodes records for one base model.

    Args:
      tokenizer: the base model's tokenizer.
      spec: template, train_on and max_tokens.

    Attributes:
      buckets: the padded lengths that a record can have, ascending.
      pad: token id that fills a row.

    Raises:
      ConfigInvalid: when the base's chat template does not carry one question and its answer; what of it is the
        completion could then not be told.
    """

    def __init__(self, tokenizer: Any, spec: TrainSpec) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self.buckets = buckets(spec.max_tokens)
        wanted = spec.template != "none" and bool(tokenizer.chat_template)
        self._template = ChatTemplate(tokenizer) if wanted else None
        self._begin = _automatic_begin(tokenizer)
        self._eos = tokenizer.eos_token or ""
        self._truncated = 0
        self.pad = int(tokenizer.pad_token_id or 0)
        if self._template is not None and not self._template.carries("one turn"):
            raise ConfigInvalid(
                "the base model's chat template does not say where an answer begins",
                hint="set template.from to none",
                where="template.from",
            )

    @property
    def truncated(self) -> Private[int]:
        """How many of the records encoded so far were cut at max_tokens; it depends on the data and stays here."""
        return Private(self._truncated)

    def encode(self, record: Record) -> Encoded:
        """Encode the record's tokens, what of them is supervised, and its bucket.

        A record that the tokenizer or the template fails on has no tokens, and so a zero gradient: that a run ends must
        not depend on what one record says.
        """
        try:
            return self._encode(record)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, it is of this record, and nobody may learn of it
            return Encoded((), (), self.buckets[0])

    def _encode(self, record: Record) -> Encoded:
        begin, pieces = self._pieces(record)
        ids = list(begin)
        supervised = [self._spec.train_on == "all"] * len(begin)
        for part, train in tokenise(
            [(text, train or self._spec.train_on == "all") for text, train in pieces], self._ids
        ):
            ids += part
            supervised += [train] * len(part)
        self._truncated += len(ids) > self._spec.max_tokens
        ids, supervised = ids[: self._spec.max_tokens], supervised[: self._spec.max_tokens]
        positions = tuple(p - 1 for p in range(1, len(ids)) if supervised[p])
        return Encoded(tuple(ids), positions, next(n for n in self.buckets if n >= len(ids)))

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _pieces(self, record: Record) -> tuple[list[int], list[Piece]]:
        """Give the tokens that a text begins with by itself, and the texts behind them."""
        parts = record.parts
        if self._template is not None and record.kind == "completion":
            parts = tuple(("assistant" if role == "completion" else "user", text) for role, text in parts)
        if self._template is None or record.kind == "text":
            return self._begin, self._plain(record)
        templated = self._template.fill(parts)
        if templated is None:
            return (self._begin, self._plain(record)) if self._spec.template == "fallback" else ([], [])
        return [], templated

    def _plain(self, record: Record) -> list[Piece]:
        pieces: list[Piece] = []
        for role, text in record.parts:
            if record.kind == "chat":
                pieces += [(f"{role}: ", False), (f"{text}\n", role == "assistant")]
            else:
                pieces.append((text, role != "prompt"))
        return [*pieces, (self._eos, True)]


def _automatic_begin(tokenizer: Any) -> list[int]:
    ids = tokenizer("a", verbose=False)["input_ids"]
    return list(ids[:1]) if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else []
