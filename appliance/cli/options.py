"""Options and arguments that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import completing

RunFileArgument = Annotated[Path, typer.Argument(help="A run file, written by `train plan`.")]
RUN_HELP = "The run's id, or its name if no other has it."
RunArgument = Annotated[str, typer.Argument(help=RUN_HELP, autocompletion=completing.runs)]
OpenRunArgument = Annotated[str, typer.Argument(help=RUN_HELP, autocompletion=completing.open_runs)]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda.")]
DtypeOption = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
MemoryOption = Annotated[
    float | None,
    typer.Option(min=0, help="GiB of memory to count on, with --device cuda of each GPU's. Default: what is free."),
]
PassphraseFile = Annotated[
    Path | None, typer.Option(help="Read the passphrase from this file (also APPLIANCE_PASSPHRASE_FILE), of mode 600.")
]
