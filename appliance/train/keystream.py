"""The only source of randomness in training: AES-256 in counter mode under a key from the operating system.

A `Keystream` is made for one use (one sample, one thread's part of one noise vector) and dropped. Its key is never
stored, returned or configurable, so neither a sample nor a noise vector can be replayed.
"""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Words = NDArray[np.uint64]


class Keystream:
    """A stream of uniform 64-bit words, indistinguishable from random to anyone without the key."""

    __slots__ = ("_encryptor",)

    def __init__(self) -> None:
        self._encryptor = Cipher(algorithms.AES256(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def words(self, count: int) -> Words:
        """Draw the next `count` uniform words, uint64 [count]."""
        return np.frombuffer(self._encryptor.update(bytes(8 * count)), dtype="<u8").astype(np.uint64, copy=False)
