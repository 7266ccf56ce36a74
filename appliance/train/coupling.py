"""That no record's gradient depends on another record: proved for every shape of micro-batch that a run can have.

Kernels choose how they compute by the shapes they get, so every pair of padded length and row count is looked at, in
the process that will train and with its threads. Two records take turns in the rows, and the bits of each must be the
same in all of them; row counts that give other bits than the largest count does are not used. Last come all lengths
again, the shortest first: a model that remembers what it has seen shows.

For this the model is cut down to one layer of each kind (`train.shortened`) and has a made-up gradient at its end.
Whole, with its head and the clip, it is looked at for the shortest, the longest and the largest micro-batch, which
also shows that memory holds them. All of it is synthetic, so what it decides is public.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from appliance.errors import ConfigInvalid, GateFailed, ran_out
from appliance.train.encode import Encoded, buckets
from appliance.train.engine import Engine
from appliance.train.memory import give_back
from appliance.train.rows import Counts, RowCounts, candidates
from appliance.train.shortened import shortened

LENGTHS = tuple(buckets(256))
_SUPERVISED = (3, 5)  # of the two records; a loss that counts tokens over the batch shows where these differ
_DRIFT = "a record's gradient has other bits when it is computed again"

_Proved = dict[int, tuple[Counts, Tensor]]
"""For every padded length the counts that give a record the same bits, and the bits of both records."""


def uncouple(engine: Engine, lengths: Collection[int] = LENGTHS) -> RowCounts:
    """Find the row counts under which no record depends on another one, and set them on the engine.

    Args:
      engine: with random B, or half of what is looked at would be zero.
      lengths: every bucket that a record of the run can have.

    Raises:
      GateFailed: the same work gives other bits when it is done again.
      ConfigInvalid: the model remembers records that it has seen.
      WillNotFit: memory does not hold one record of the longest bucket.
    """
    padded = sorted({engine.pad_length(length) for length in lengths})
    before = _collect_state(engine)
    with shortened(engine):
        proved = _prove(engine, padded, head=False)
    shared = True
    engine.counts = RowCounts({}, shared)
    if not _hold_for_the_whole(engine, proved):
        engine.counts = RowCounts({}, shared := False)
        if not _hold_for_the_whole(engine, proved):
            proved = _prove(engine, padded, head=True)
    after = _collect_state(engine)
    if after != before:
        names = ", ".join(sorted(name for name, value in after.items() if before.get(name) != value))
        raise ConfigInvalid(f"the model remembers the records it has seen ({names})", where="base")
    found = {length: counts for length, (counts, _) in proved.items()}
    engine.counts = RowCounts(found, shared, {length: _digest(bits) for length, (_, bits) in proved.items()})
    return engine.counts


def recall(engine: Engine, known: RowCounts, lengths: Collection[int]) -> bool:
    """Take row counts that were proved before, if they are of these lengths and the shortest gives the same bits."""
    padded = {engine.pad_length(length) for length in lengths}
    if known.proved.keys() != padded:
        return False
    shortest = min(padded)
    with shortened(engine):
        counts, bits = _find_agreeing(engine, shortest, head=False)
    engine.counts = known if (counts, _digest(bits)) == (known.at(shortest), known.bits[shortest]) else None
    return engine.counts is known


def is_coupled(engine: Engine, lengths: Iterable[int] = (16, 64)) -> bool:
    """Tell whether a record's bits follow its neighbours, its row or the row count, as the engine is set now."""
    for length in lengths:
        known = candidates(engine.most_rows(length)) if engine.counts is None else engine.counts.at(length)
        reference = _bits(engine, length, known[0])
        if any(not _same(_bits(engine, length, count), reference) for count in known):
            return True
    return False


def _prove(engine: Engine, lengths: Sequence[int], *, head: bool) -> _Proved:
    """Prove the counts of every length and the bits under them, longest first; then all once more, and the shortest.

    Raises:
      GateFailed: the second time gives other bits.
    """
    found = {length: _find_agreeing(engine, length, head=head) for length in reversed(lengths)}
    for length in (*lengths, lengths[0]):
        counts, bits = found[length]
        if not _same(_bits(engine, length, counts[-1], head=head), bits):
            raise GateFailed(_DRIFT)
    return found


def _find_agreeing(engine: Engine, length: int, *, head: bool) -> tuple[Counts, Tensor]:
    """Find the largest count under which rows do not matter, with the smaller ones that give the same bits."""
    reference: Tensor | None = None
    counts: list[int] = []
    for count in candidates(engine.most_rows(length)):
        bits = _bits(engine, length, count, head=head)
        if bits is not None and (reference is None or _same(bits, reference)):
            reference = bits if reference is None else reference
            counts.append(count)
    if reference is None:
        raise GateFailed(_DRIFT)
    return tuple(counts), reference


def _hold_for_the_whole(engine: Engine, proved: _Proved) -> bool:
    """Hold the whole model to what its shortened form promised: at both ends, and where memory is fullest.

    Raises:
      WillNotFit: memory does not hold the smallest proved count.
    """
    fullest = max(proved, key=lambda length: (proved[length][0][0] * length, length))
    for length in {min(proved), fullest, max(proved)}:
        counts, bits = proved[length][0], None
        while bits is None:
            fitting = engine.keep_fitting(counts, length)
            bits = _bits(engine, length, fitting[0])
            if bits is None and fitting == engine.keep_fitting(counts, length):
                return False  # memory was not the reason
        if not _same(_bits(engine, length, fitting[-1]), bits):
            return False
    return True


def _bits(engine: Engine, length: int, count: int, *, head: bool = True) -> Tensor | None:
    """Compute the gradients of two records that take turns in so many rows, [2, n]; of one if there is only one row.

    None if a record has several, or if memory does not hold so many rows; the engine shrinks then.
    """
    generator = torch.Generator().manual_seed(2)
    pair = [synthetic(engine, length, length - 3 * n, generator, supervised=_SUPERVISED[n]) for n in range(2)]
    batch = [pair[row % 2] for row in range(count)]
    upstream = None if head else torch.randn(2, length, engine.width, generator=generator).mul_(0.01)
    try:
        gradients = engine.gradients(batch, physical=count, upstream=upstream)
        rows = _take_reported(engine, gradients)
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        rows = None
    if rows is None:
        give_back()
        engine.shrink(count * length)
        return None
    for turn in range(min(2, count)):
        if not torch.equal(rows[turn::2], rows[turn].expand_as(rows[turn::2])):
            return None
    return rows[:2].clone()


def _take_reported(engine: Engine, gradients: Tensor) -> Tensor:
    """Take the columns that the reporting sites wrote; behind them, where it is looked at, the factor of the clip."""
    parts = [gradients[:, start:end] for start, end in engine.reporting()]
    if engine.on_gpu or engine.whole:
        parts.append(engine.sum.factors(gradients)[:, None])
    return torch.cat(parts, dim=1)


def _same(bits: Tensor | None, reference: Tensor | None) -> bool:
    """Compare both records with these bits; of a single row only the first has any."""
    if bits is None or reference is None:
        return False
    both = min(len(bits), len(reference))
    return torch.equal(bits[:both], reference[:both])


def synthetic(
    engine: Engine, length: int, tokens: int, generator: torch.Generator, supervised: int | None = None
) -> Encoded:
    """Make a record of random tokens; two thirds of it are supervised, or its last so many tokens."""
    ids = torch.randint(0, engine.vocabulary, (tokens,), generator=generator).tolist()
    first = tokens // 3 if supervised is None else tokens - 1 - supervised
    return Encoded(tuple(ids), tuple(range(max(0, first), tokens - 1)), length)


def _collect_state(engine: Engine) -> dict[str, Any]:
    """Collect what the modules of the model hold besides their parameters: buffers and plain attributes, by name."""
    found: dict[str, Any] = {}
    for name, module in engine.adapter.model.named_modules():
        for key, value in (*vars(module).items(), *module._buffers.items()):
            if isinstance(value, Tensor):
                found[f"{name}.{key}"] = (tuple(value.shape), hashlib.sha256(_bytes(value)).hexdigest())
            elif isinstance(value, str | int | float):
                found[f"{name}.{key}"] = value
    return found


def _digest(bits: Tensor) -> str:
    return hashlib.sha256(_bytes(bits)).hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
