"""Entry point of the key agent's process."""

from __future__ import annotations

from pathlib import Path

from appliance.isolation import process
from appliance.keyagent.gatekeeper import Gatekeeper
from appliance.keyagent.line import Line
from appliance.ledger.note import VerifierKey, open_checkpoint
from appliance.store.agent import serve
from appliance.store.charge import receive


def main() -> None:
    """Take the root key over, and answer until the time is up or somebody says `lock`."""
    process.deny_core_dumps()
    root, told = receive()
    trusted = tuple(told.trusted)
    newest = open_checkpoint(told.head, [VerifierKey.parse(key) for key in trusted])
    line = Line(trusted, told.places, Path(told.anchor), newest)
    serve(
        Path(told.socket),
        root,
        kek_dir=Path(told.epoch_keys),
        ttl_s=told.ttl_s,
        who=told.who,
        authorise=Gatekeeper(line, since=told.since).check,
        follow=line.follow,
    )


if __name__ == "__main__":
    main()
