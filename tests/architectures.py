"""Every causal language model that transformers can build small, and how each of them can be trained.

`python -m tests.architectures` writes the matrix of docs/models.md anew.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from appliance.errors import ApplianceError
from appliance.models.offline import go_offline
from appliance.models.twin import build_twin, derive, shrink
from appliance.train.trial import find_obstacle
from appliance.worker.trial import PRECISIONS

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
START, END = "<!-- matrix: written by tests/architectures.py -->", "<!-- end of the matrix -->"
HANDFUL = ("llama", "granite", "gemma2", "gemma3", "bloom", "falcon", "gpt2", "bert")


def kinds() -> dict[str, Any]:
    """The configuration class of every kind of causal language model, by its name."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return {config.model_type: config for config in MODEL_FOR_CAUSAL_LM_MAPPING.keys()}  # noqa: SIM118 - lazy


def small(kind: str) -> Any:
    """A small random model of a kind; None where transformers does not build one that runs from its defaults."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            config = kinds()[kind]()
            shrink(config)
            model = build_twin(config)
            if sum(parameter.numel() for parameter in model.parameters()) > 20_000_000:
                return None
            model(input_ids=torch.arange(8)[None], use_cache=False)
    except Exception:  # noqa: BLE001 - foreign architectures fail in every way
        return None
    return model


def store(model: Any, directory: Path) -> None:
    """Write a small model as it would be published; its lists of layers and its special tokens are made to fit."""
    from transformers import GenerationConfig

    for config in {id(part): part for part in (model.config, model.config.get_text_config())}.values():
        for key in ("layer_types", "mlp_layer_types"):
            if isinstance(vars(config).get(key), list | tuple):
                setattr(config, key, list(getattr(config, key))[: config.num_hidden_layers])
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if isinstance(getattr(config, key, None), int):
                setattr(config, key, 1)
    model.generation_config = GenerationConfig()
    model.save_pretrained(directory)


def outcomes(kind: str) -> dict[str, str] | None:
    """For each precision an empty string or the reason of the refusal; None where there is no small model."""
    model = small(kind)
    if model is None:
        return None
    found: dict[str, str] = {}
    for precision in PRECISIONS:
        if len(found) == 2 and all(found.values()):
            break
        try:
            dtype = "bfloat16" if precision == "bfloat16" else "float32"
            found[precision] = find_obstacle(derive(model, precision), dtype)
        except ApplianceError as refusal:
            found[precision] = refusal.message
    return found


def row(kind: str, found: dict[str, str] | None) -> str:
    """A row of the matrix."""
    if found is None:
        return f"| {kind} | no small model of it runs: not tried | | | |"
    cells = [("exact" if not found[name] else _reason(found[name])) if name in found else "" for name in PRECISIONS]
    return f"| {kind} | {' | '.join(cells)} |"


def read_rows() -> dict[str, str]:
    """The rows of the matrix as the page has them, by kind."""
    lines = PAGE.read_text().partition(START)[2].partition(END)[0].splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    return {line.split("|")[1].strip(): line for line in rows}


def write(rows: Iterable[str]) -> None:
    before, _, rest = PAGE.read_text().partition(START)
    head = f"| architecture | {' | '.join(PRECISIONS)} |\n|---|{'---|' * len(PRECISIONS)}"
    PAGE.write_text("\n".join([before + START, "", head, *rows, "", END + rest.partition(END)[2]]))


def _reason(text: str) -> str:
    return text.replace("|", "/")


def _told(wanted: Iterable[str]) -> Iterator[str]:
    for kind in wanted:
        made = row(kind, outcomes(kind))
        print(json.dumps(made), file=sys.stderr, flush=True)
        yield made


if __name__ == "__main__":
    go_offline()
    write(list(_told(sorted(kinds()))))
