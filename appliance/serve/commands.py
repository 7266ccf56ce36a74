"""How an engine is started, by its kind."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.isolation import interpreter
from appliance.jobs.serve import EngineSpec

VLLM = ("python3", "-m", "vllm.entrypoints.openai.api_server")
VLLM_ARGUMENTS = (
    *("--model", "{model}", "--uds", "{socket}", "--served-model-name", "{name}"),
    *("--max-model-len", "{context}", "--max-num-seqs", "{places}"),
)
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD")


def command(spec: EngineSpec, socket: str) -> list[str]:
    """Make the command of an engine that is to listen on `socket`."""
    if spec.kind == "llama.cpp":
        numbers = map(str, (spec.context, spec.slots, spec.threads))
        return interpreter.module("appliance.serve.llamacpp", spec.model, socket, spec.name, *numbers)
    if spec.kind == "transformers":
        return interpreter.module("appliance.serve.plain", spec.model, socket, spec.name, str(spec.threads))
    words = (*(spec.command or VLLM), *VLLM_ARGUMENTS) if spec.kind == "vllm" else spec.command
    known = {"model": spec.model, "socket": socket, "name": spec.name, "context": str(spec.context)}
    known |= {"slots": str(spec.slots), "places": str(spec.slots + 1)}
    return [_fill(word, known) for word in words]


def _fill(word: str, known: dict[str, str]) -> str:
    for name, value in known.items():
        word = word.replace(f"{{{name}}}", value)
    return word


def environment(spec: EngineSpec, scratch: Path) -> dict[str, str]:
    """Make the environment of an engine: little of this process' own, nothing that phones home, threads that sleep."""
    return {name: os.environ[name] for name in KEPT if name in os.environ} | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": str(spec.threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "KMP_BLOCKTIME": "0",
        "TMPDIR": str(scratch),
        "XDG_CACHE_HOME": str(scratch),
    }
