"""For drills: an engine behind a proxy that does to its answers what a file says: `faulty CONTROL SOCKET ENGINE`.

The engine is a real one, and so is what the gateway sees of it: bytes that stop, are missing, or are others.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from appliance.isolation import kernel
from appliance.jobs.serve import EngineSpec
from appliance.serve import commands

STREAM_FAULTS = ("stall", "slow", "garble", "half", "another", "cut")
SLOW_S, KEPT_EVENTS = 0.1, 4


class Proxy:
    """Passes requests on, and answers as the control file wants them."""

    def __init__(self, control: Path, inner: str, name: str) -> None:
        self._control, self._inner, self._name = control, inner, name.encode()

    def mode(self) -> str:
        """Read what is wanted now."""
        return self._control.read_text() if self._control.exists() else ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._inner)
        except OSError:
            writer.close()
            return
        asking = asyncio.create_task(self._pass(reader, up_writer))
        try:
            async for piece in self._answer(up_reader):
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass
        finally:
            asking.cancel()
            writer.close()
            up_writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()
        writer.close()  # the client went away: so does the engine's

    async def _answer(self, reader: asyncio.StreamReader) -> AsyncGenerator[bytes]:
        events = 0
        while piece := await reader.read(65536):
            while (mode := self.mode()) == "stall":
                await asyncio.sleep(0.02)
            events += piece.count(b"data: ")
            if mode == "slow":
                await asyncio.sleep(SLOW_S)
            if mode == "half" or (mode == "cut" and events > KEPT_EVENTS):
                yield piece[: len(piece) // 2]
                return
            yield self._spoil(mode, piece)

    def _spoil(self, mode: str, piece: bytes) -> bytes:
        if mode == "garble":
            return piece.replace(b'"choices"', b'"ch\xff\xfe\x00es"')
        return piece.replace(b'"model":"' + self._name, b'"model":"X' + self._name[1:]) if mode == "another" else piece


def _bound() -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)


async def _run(control: Path, socket: str, spec: EngineSpec) -> None:
    inner = f"{socket.removesuffix('.sock')}.inner.sock"  # llama.cpp knows a socket by the end of its name
    Path(inner).unlink(missing_ok=True)
    engine = subprocess.Popen(commands.command(spec, inner), preexec_fn=_bound)
    proxy = Proxy(control, inner, spec.name)
    async with await asyncio.start_unix_server(proxy.serve, socket, backlog=2048):
        while engine.poll() is None:
            await asyncio.sleep(0.05)


def main() -> None:
    """Serve until the engine ends."""
    control, socket, spec = sys.argv[1:]
    asyncio.run(_run(Path(control), socket, EngineSpec.model_validate_json(spec)))


if __name__ == "__main__":
    main()
