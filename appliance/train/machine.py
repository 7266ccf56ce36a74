"""What decides the bits that a process computes, besides the model and the job: processor, threads, libraries, code."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
_ROOMS = ("models", "train")
_SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "OMP_NUM_THREADS")


def machine_digest(device: torch.device) -> str:
    """Digest what a proof of row counts holds for, SHA-256 (hex): processor, threads, libraries, code, settings."""
    found: dict[str, Any] = {
        "code": _code(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "processor": [platform.machine(), *_processor()],
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "settings": {name: os.environ.get(name, "") for name in _SETTINGS},
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found["gpu"] = [card.name, card.major, card.minor, card.multi_processor_count, torch.version.cuda]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def _code() -> str:
    """Digest the modules that compute gradients, SHA-256 (hex): another version of them may compute other bits."""
    found = hashlib.sha256()
    for room in _ROOMS:
        for path in sorted((Path(__file__).parents[1] / room).glob("*.py")):
            found.update(f"{room}/{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _processor() -> list[str]:
    """Model and features of the first processor as the kernel lists them; its frequency changes and is no part."""
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part")
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    return [line for line in first if line.partition("\t")[0].strip(" :\t") in wanted]
