"""From the master key to the signs of one module: HKDF-SHA-256, ChaCha20, bits. The same on every machine.

Signs and not Gaussian numbers, because a logarithm differs between machines in its last bit and a bit does not.
"""

from __future__ import annotations

import numpy as np
import rfc8785
import torch
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from appliance.errors import KeyUnavailable

KEY_BYTES = 32
SIGNS = "appliance/watermark/v1/signs"
ESCROW = "appliance/watermark/v1/escrow"


def owner_role(run_id: str) -> str:
    """Name the role of the owner's mark of a run. Two runs get unrelated signs, so their releases do not correlate."""
    return f"owner/{run_id}"


def module_key(master: bytes, model_sha256: str, role: str, module: str) -> bytes:
    """Derive the 32-byte key of one module: HKDF-SHA-256 (RFC 5869) without salt.

    Args:
      master: 32 random bytes, drawn independently of all data and of the noise of training.
      model_sha256: digest of the base model.
      role: whose mark, see `owner_role`.
      module: name of the linear layer in the base model.
    """
    return _derive(master, [SIGNS, model_sha256, role, module])


def escrow_key(master: bytes, run_id: str) -> bytes:
    """Derive the 32-byte key under which the reference of one run is sealed."""
    return _derive(master, [ESCROW, run_id])


def _derive(master: bytes, info: list[str]) -> bytes:
    if len(master) != KEY_BYTES:
        raise KeyUnavailable("a watermark key has 32 bytes")
    return HKDF(hashes.SHA256(), KEY_BYTES, None, rfc8785.dumps(info)).derive(master)


def signs(key: bytes, outputs: int, inputs: int, rank: int) -> tuple[Tensor, Tensor]:
    """Draw the secret directions of one module.

    The keystream of ChaCha20 (counter 0, nonce 0), read bit by bit with the lowest bit of a byte first: first Y row by
    row, then X row by row; bit 0 is +1, bit 1 is -1.

    Args:
      key: from `module_key`.
      outputs: o, out_features of the layer.
      inputs: i, in_features of the layer.
      rank: r.

    Returns:
      Y [o, r] and X [i, r], float64, every entry +1 or -1.
    """
    count = (outputs + inputs) * rank
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    stream = np.frombuffer(encryptor.update(bytes((count + 7) // 8)), dtype=np.uint8)
    bits = np.unpackbits(stream, count=count, bitorder="little")
    values = torch.from_numpy(1.0 - 2.0 * bits.astype(np.float64)).view(outputs + inputs, rank)
    return values[:outputs], values[outputs:]
