"""What a worker leaves of an exception that nobody expected: memory that ran out can be resumed, the rest is a bug."""

from __future__ import annotations

import pytest
import torch

from appliance.worker.__main__ import _bug


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
    ],
)
def test_memory_that_ran_out_is_no_bug(error: Exception) -> None:
    assert _bug(error).error == "WillNotFit"


def test_words_of_a_record_do_not_decide_what_it_was() -> None:
    failure = _bug(ValueError("a patient's text that says: out of memory"))
    assert failure.error == "ApplianceError"
    assert "patient" not in failure.message
