"""The one tree of errors: each class owns its exit status, each instance its message and its hint.

An error is raised where the value is used and caught once, in `appliance.cli.app`. A message carries ids,
digests, files, lines and offsets; it never carries record text, a key or a passphrase.
"""

from __future__ import annotations

from typing import ClassVar


class ApplianceError(Exception):
    """A refusal or failure that the appliance explains to its user.

    Args:
      message: one sentence, lower case, no full stop; public values only.
      hint: what to do next, or an empty string.
      where: a file, with line and field where they are known, or an empty string.
    """

    exit_status: ClassVar[int] = 1
    meaning: ClassVar[str] = "a bug in the appliance"

    def __init__(self, message: str, *, hint: str = "", where: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message


class UsageError(ApplianceError):
    """The command was called in a way that cannot be carried out."""

    exit_status = 2
    meaning = "usage: the command was called wrongly"


class ConfigInvalid(ApplianceError):
    """A policy, run file or home configuration does not follow its schema."""

    exit_status = 3
    meaning = "config: a policy, run file or configuration does not follow its schema"


class PolicyDenied(ApplianceError):
    """The active policy does not allow what was asked."""

    exit_status = 4
    meaning = "policy: the active policy does not allow it, or an approval is missing"


class BudgetExceeded(ApplianceError):
    """The privacy budget of a dataset would be exceeded."""

    exit_status = 5
    meaning = "budget: the privacy budget of a dataset would be exceeded"


class DataInvalid(ApplianceError):
    """The data to be ingested cannot be used."""

    exit_status = 6
    meaning = "data: the data cannot be used"


class IsolationViolated(ApplianceError):
    """An isolation that is required is not in force."""

    exit_status = 7
    meaning = "isolation: an isolation that is required is not in force"


class IntegrityError(ApplianceError):
    """Something is not what the ledger, a digest or an authentication tag says it must be."""

    exit_status = 8
    meaning = "integrity: something was altered, swapped, truncated or rolled back"


class WillNotFit(ApplianceError):
    """Memory or disk does not suffice."""

    exit_status = 9
    meaning = "resources: memory or disk does not suffice"


class GateFailed(ApplianceError):
    """A gate (utility, accounting cross-check, self-test) was not passed."""

    exit_status = 10
    meaning = "gate: a check that must pass before going on did not pass"


class ArtefactMissing(ApplianceError):
    """A file, model, dataset or run that is needed is not here, and nothing is fetched from elsewhere."""

    exit_status = 11
    meaning = "missing: a needed file, model, dataset or run is not here (nothing is ever downloaded)"


class ServingDegraded(ApplianceError):
    """No engine serves as it must, or a drill lost answers."""

    exit_status = 12
    meaning = "serving: no engine serves as it must, or a drill lost answers"


class KeyUnavailable(ApplianceError):
    """The store is sealed, the passphrase is wrong, or a key is not released."""

    exit_status = 13
    meaning = "locked: the store is sealed, the passphrase is wrong, or a key is not released"


class VerificationIncomplete(ApplianceError):
    """A verification could not be completed, or no trusted key was pinned."""

    exit_status = 14
    meaning = "incomplete: a verification could not be completed, or no trusted key was pinned"


class Stale(ApplianceError):
    """What was shown is older than what is known, or not witnessed."""

    exit_status = 15
    meaning = "stale: older than what is known, or not witnessed as required"


class Busy(ApplianceError):
    """Something else holds a lock; trying later will do."""

    exit_status = 75
    meaning = "busy: another process holds a lock; try later"


class Interrupted(ApplianceError):
    """The user interrupted; what was done is safe and can be resumed."""

    exit_status = 130
    meaning = "interrupted: nothing is lost; resume where it stopped"


_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "status_alloc_failed")


def ran_out(error: BaseException) -> bool:
    """Tell whether an exception of Python or torch says that memory ran out.

    torch has a class for it only where its own allocator on a GPU fails. On the CPU it is a plain `RuntimeError`, and
    so are what the CUDA driver and cuBLAS or cuDNN say when they find no room beside that allocator.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)
