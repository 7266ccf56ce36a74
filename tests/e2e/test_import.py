"""Models from outside, imported by the sandboxed worker."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.e2e.conftest import Appliance


def test_a_gguf_file_is_imported_in_the_sandbox(
    sealed: Appliance, write_tiny_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    sealed("model", "import", str(write_tiny_gguf(tmp_path / "m.gguf")), "--name", "from-gguf")
    assert "from-gguf" in [row["name"] for row in sealed.json("model", "list")["models"]]
    assert not list((sealed.home / "runs").glob("import*"))


def test_a_model_of_a_million_layers_is_refused(sealed: Appliance, tiny_model_dir: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_model_dir, tmp_path / "deep"))
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 10**6}))
    refused = sealed("model", "import", str(model), "--name", "deep", expect=6)
    assert "1000000 layers are configured" in refused.err
