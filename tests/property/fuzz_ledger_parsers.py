"""Coverage-guided fuzzing of the parsers of tree heads, proofs, leaves and keys, the ledger's and the verifier's.

    pip install atheris
    python tests/property/fuzz_ledger_parsers.py -max_total_time=600 [CORPUS]

Not a test: atheris is no dependency and is not always to be had. It stops at an exception that is not the error that is
meant, and at something that is taken although it is neither the good input nor one that says the same.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    import atheris
except ImportError:
    sys.exit("not run: atheris is not installed (pip install atheris)")

with atheris.instrument_imports(include=["appliance"]):
    from appliance.errors import IntegrityError
    from appliance.export import verify
    from appliance.ledger import proof
    from appliance.ledger.leaf import parse_leaf
    from appliance.ledger.note import Checkpoint, VerifierKey, open_checkpoint

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "ledger" / "vectors.json").read_text(encoding="utf-8")
)
KEYS = [VerifierKey.parse(text) for text in VECTORS["verifier_keys"]]
THEIRS = [verify.Key(text, "keys") for text in VECTORS["verifier_keys"]]
NOTE, PROOF, LEAF = VECTORS["tree_head"], VECTORS["proof"]["text"], VECTORS["leaves"][1].encode()
HEAD = verify.Head(NOTE, "head")


def one(data: bytes) -> None:
    """Every parser on one input; the first byte says around which good input it lies."""
    text = data[1:].decode("utf-8", "surrogateescape")
    around = (NOTE, PROOF, "")[data[0] % 3] if data else ""
    place = len(text) * 7 % (len(around) + 1)
    text = around[:place] + text + around[place + data[-1] % 5 :] if data else text
    parsers: list[tuple[type[Exception], Callable[[], Any]]] = [
        (IntegrityError, lambda: open_checkpoint(text, KEYS)),
        (IntegrityError, lambda: Checkpoint.parse(text)),
        (IntegrityError, lambda: proof.verify(text, LEAF, VECTORS["verifier_keys"])),
        (IntegrityError, lambda: proof.verify_consistency(text, Checkpoint(HEAD.origin, HEAD.size, HEAD.root))),
        (IntegrityError, lambda: VerifierKey.parse(text)),
        (IntegrityError, lambda: parse_leaf(data)),
        (verify.Bad, lambda: verify.open_head(text, THEIRS, "head")),
        (verify.Bad, lambda: verify.check_inclusion(text, LEAF, 1, HEAD, "leaf.proof")),
        (verify.Bad, lambda: verify.check_consistency(text, 4, HEAD, "proof")),
        (verify.Bad, lambda: verify.Key(text, "key")),
        (verify.Bad, lambda: verify.parse_json(data, "leaf", "")),
    ]
    for meant, parse in parsers:
        with contextlib.suppress(meant):
            parse()
    ours = theirs = False
    with contextlib.suppress(IntegrityError):
        ours = bool(open_checkpoint(text, KEYS, exact=True))
    with contextlib.suppress(verify.Bad):
        theirs = bool(verify.open_head(text, THEIRS, "head"))
    assert ours == theirs, "the two parsers of tree heads disagree"
    assert not ours or sorted(text.splitlines()) == sorted(NOTE.splitlines()), "another tree head was taken"


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
