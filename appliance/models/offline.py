"""Using transformers without network, without chatter, and with its failures turned into refusals.

transformers and huggingface_hub read their switches when they are imported, so this module sets them before the
first import, and `strict` refuses to go on where something imported them too early.
"""

from __future__ import annotations

import errno
import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from appliance.errors import ApplianceError, DataInvalid, IsolationViolated, WillNotFit, ran_out

SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def go_offline() -> None:
    """Import transformers with its network switched off and its log silent.

    Raises:
      IsolationViolated: if transformers was imported earlier with the network allowed.
    """
    os.environ.update(SWITCHES)
    # torch makes this directory on import, in /tmp where a sandbox may not let it; nothing here compiles.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", "/")
    import transformers

    if not transformers.utils.hub.is_offline_mode():
        raise IsolationViolated(
            "transformers was loaded before it was told to stay off the network",
            hint="set HF_HUB_OFFLINE=1 before the process starts",
        )
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL + 1)
    transformers.utils.logging.disable_progress_bar()


@contextmanager
def strict(failure: str, where: str, hint: str = "") -> Iterator[None]:
    """Run a library over foreign files: nothing is printed, and every failure becomes an `ApplianceError`.

    The library's own text stays out of the message (it is long, and quotes the foreign file); it is the cause.

    Args:
      failure: message of the refusal, such as "the tokenizer cannot be loaded".
      where: the file or directory at fault.
      hint: what the user can do about it.

    Raises:
      WillNotFit: memory or disk ran out.
      DataInvalid: anything else went wrong.
    """
    go_offline()
    # Some progress bars can only be silenced by taking their stream away.
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except ApplianceError:
            raise
        except Exception as error:
            if ran_out(error):
                raise WillNotFit(f"{failure}: memory does not suffice", where=where) from error
            if _disk_full(error):
                raise WillNotFit(f"{failure}: the disk is full", where=where) from error
            raise DataInvalid(f"{failure} ({type(error).__name__})", hint=hint, where=where) from error


def _disk_full(error: Exception) -> bool:
    """Tell whether the disk or a quota is full; safetensors says so only in its text."""
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    return any(f"(os error {code})" in str(error) for code in NO_SPACE)
