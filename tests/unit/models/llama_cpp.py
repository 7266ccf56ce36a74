"""Asks a real llama.cpp: `python llama_cpp.py FILE`, a list of requests on standard input, its answers on the output.

A process of its own: llama.cpp writes to standard error, and what it aborts on must not end the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def ask(path: Path, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What llama.cpp answers; a request with `messages` goes through the file's own chat template."""
    command = [sys.executable, "-I", __file__, str(path)]
    done = subprocess.run(command, input=json.dumps(requests), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.rpartition("ANSWERS")[2])
    assert isinstance(found, list)
    return found


def main() -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = sys.argv[1]
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 512, 1, False
    parameters.cpuparams.n_threads = 1
    server = xllamacpp.Server(parameters)
    answers = []
    for request in json.load(sys.stdin):
        handle = server.handle_chat_completions if "messages" in request else server.handle_completions
        answers.append(handle({"max_tokens": 1, "temperature": 0, **request}))
    print("ANSWERS" + json.dumps(answers, default=str))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
