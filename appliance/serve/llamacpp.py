"""llama.cpp's own HTTP server on a Unix socket: `llamacpp MODEL SOCKET NAME CONTEXT SLOTS THREADS`.

Its cache of prompts is off: what one client asked would else be told to another by how soon its answer begins.
"""

from __future__ import annotations

import signal
import sys

import xllamacpp


def main() -> None:
    """Serve until this process is ended."""
    model, socket, name, context, slots, threads = sys.argv[1:]
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = [socket]
    params.model_alias = {name}
    params.n_parallel = int(slots) + 1
    params.n_ctx = int(context) * params.n_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.n_threads_http = params.n_parallel + 4
    params.cache_prompt, params.cache_ram_mib, params.cache_idle_slots = False, 0, False
    params.ui, params.endpoint_slots, params.endpoint_props, params.offline = False, False, False, True
    params.verbosity = -1
    server = xllamacpp.Server(params)
    while server.listening_address:
        signal.pause()


if __name__ == "__main__":
    main()
