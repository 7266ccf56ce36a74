"""A model cut down to one layer of each kind, for as long as its shapes are being looked at.

Which kernels run follows from shapes and dtypes, and those are the same in every layer of a kind: what two layers show
of how rows depend on each other, thirty would show for fifteen times the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from appliance.train.engine import Engine

_SIMPLE = (str, int, float, bool, type(None))


@contextmanager
def shortened(engine: Engine) -> Iterator[None]:
    """Leave the engine's model, within the block, the first layer of each kind and the last; only their sites report.

    A model whose layers are not in one list stays whole.
    """
    found = _layers(engine)
    if found is None:
        yield
        return
    parent, name, layers = found
    kept = _one_of_each(list(layers))
    gone = {id(module) for layer in layers if layer not in kept for module in layer.modules()}
    whole, model = engine.expected, engine.adapter.model
    try:
        engine.expected = frozenset(
            s.index for s in engine.adapter.sites if id(model.get_submodule(s.name)) not in gone
        )
        engine.buffer.data.zero_()  # nothing writes the parts of the other sites now
        setattr(parent, name, nn.ModuleList(kept))
        yield
    finally:
        setattr(parent, name, layers)
        engine.expected = whole


def _layers(engine: Engine) -> tuple[nn.Module, str, nn.ModuleList] | None:
    """Find the module that holds the list of decoder layers, the list's name in it, and the list."""
    model: Any = engine.adapter.model
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    for parent in model.get_decoder().modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count > 2:
                return parent, name, child
    return None


def _one_of_each(layers: list[nn.Module]) -> list[nn.Module]:
    """Take the first layer of each kind, and the last one, in order."""
    kinds = {_kind(layer): layer for layer in reversed(layers)}
    chosen = {id(layer) for layer in (*kinds.values(), layers[-1])}
    return [layer for layer in layers if id(layer) in chosen]


def _kind(layer: nn.Module) -> str:
    """Describe structure, shapes and settings of a layer, but for its number."""
    settings = [
        (name, key, value)
        for name, module in layer.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, _SIMPLE) and key != "layer_idx"
    ]
    shapes = [(name, tuple(p.shape), p.dtype) for name, p in layer.named_parameters()]
    return repr((str(layer), settings, shapes))
