"""The example policies that come with the appliance."""

from __future__ import annotations

from pathlib import Path

from appliance.errors import ArtefactMissing

_PACKAGE = Path(__file__).parent.parent
# A wheel carries the policies inside the package; a checkout has them beside it.
_FOLDERS = (_PACKAGE / "_policies", _PACKAGE.parent / "policies")


def names() -> tuple[str, ...]:
    """Name the shipped policies, sorted."""
    return tuple(sorted({file.stem for folder in _FOLDERS for file in folder.glob("*.yaml")}))


def read(name: str) -> bytes:
    """Read a shipped policy, for example `default`. Raises `ArtefactMissing` for an unknown name."""
    for folder in _FOLDERS:
        if name in names() and (folder / f"{name}.yaml").is_file():
            return (folder / f"{name}.yaml").read_bytes()
    raise ArtefactMissing("there is no shipped policy of that name", hint=f"there are: {', '.join(names())}")
