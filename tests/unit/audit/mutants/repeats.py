"""Faults of the noise: values that depend on each other, or come from another generator than the system's."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from appliance.train.keystream import Keystream
from appliance.train.tap import ReleaseTap
from tests.unit.audit.mutants.noise import Vector, deviation, noise
from tests.unit.audit.mutants.registry import Patch, mutant

# --- independence ---------------------------------------------------------------------------------------------------


def remembering(patch: Patch, change: Callable[[Vector, list[Vector]], Vector]) -> None:
    """Passes every noise vector through `change`, with all that were made before."""
    kept: dict[int, list[Vector]] = {}

    def remember(n: Vector) -> Vector:
        before = kept.setdefault(len(n), [])
        before.append(change(n, before))
        return before[-1].copy()

    noise(patch, remember)


@mutant("noise.steps")
def noise_reused_every_step(patch: Patch, tap: ReleaseTap) -> None:
    remembering(patch, lambda n, before: before[0] if before else n)


@mutant("noise.steps")
def noise_that_repeats_with_period_four(patch: Patch, tap: ReleaseTap) -> None:
    remembering(patch, lambda n, before: before[-4] if len(before) >= 4 else n)


@mutant("noise.steps")
def noise_that_repeats_with_period_six(patch: Patch, tap: ReleaseTap) -> None:
    remembering(patch, lambda n, before: before[-6] if len(before) >= 6 else n)


@mutant("noise.draws")
def noise_that_repeats_after_three_hundred_draws(patch: Patch, tap: ReleaseTap) -> None:
    remembering(patch, lambda n, before: before[-300] if len(before) >= 300 else n)


@mutant("noise.steps")
def noise_reused_every_third_step_with_the_other_sign(patch: Patch, tap: ReleaseTap) -> None:
    remembering(patch, lambda n, before: -before[-3] if len(before) >= 3 else n)


@mutant("noise.steps")
def noise_that_remembers_the_step_before(patch: Patch, tap: ReleaseTap) -> None:
    remembering(patch, lambda n, before: 0.995 * n + 0.0998749 * before[-1] if before else n)


@mutant("noise.cross-tensor")
def the_same_noise_for_every_tensor(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: np.resize(np.concatenate([n[: stop - start] for _, start, stop in tap.tensors]), len(n)))


@mutant("noise.shifts")
def a_keystream_that_starts_again(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: np.resize(n[: max(1, len(n) // 2 - 77)], len(n)))


@mutant("noise.shifts")
def neighbours_that_cancel(patch: Patch, tap: ReleaseTap) -> None:
    noise(patch, lambda n: np.where(np.arange(len(n)) % 2, -np.roll(n, 1), n))


@mutant("noise.chains")
def a_fine_level_that_starts_again(patch: Patch, tap: ReleaseTap) -> None:
    multiplier = tap.multipliers[-1]

    def again(n: Vector) -> Vector:
        fine = np.mod(n, multiplier)
        return n - fine + np.resize(fine[: max(1, len(n) // 2 - 33)], len(n))

    noise(patch, again)


@mutant("noise.repeats")
def noise_from_a_pool(patch: Patch, tap: ReleaseTap) -> None:
    generator = np.random.default_rng()
    pool = np.rint(generator.standard_normal(1 << 16) * deviation(tap))
    noise(patch, lambda n: generator.choice(pool, len(n)))


# --- where it comes from --------------------------------------------------------------------------------------------


def keyed(patch: Patch, key: Callable[[], bytes]) -> None:
    """Makes every keystream from this key."""

    def begin(self: Any) -> None:
        self._encryptor = Cipher(algorithms.AES256(key()), modes.CTR(bytes(16))).encryptor()

    patch.setattr(Keystream, "__init__", begin)


@mutant("noise.draws")
def one_key_for_ever(patch: Patch, tap: ReleaseTap) -> None:
    keyed(patch, lambda: bytes(32))


@mutant("noise.entropy")
def a_key_of_thirty_two_bits(patch: Patch, tap: ReleaseTap) -> None:
    keyed(patch, lambda: hashlib.sha256(os.urandom(32)[:4]).digest())


@mutant("noise.entropy")
def a_key_from_the_clock(patch: Patch, tap: ReleaseTap) -> None:
    keyed(patch, lambda: hashlib.sha256(time.perf_counter_ns().to_bytes(8, "big")).digest())


@mutant("noise.entropy")
def a_generator_that_is_seeded_once(patch: Patch, tap: ReleaseTap) -> None:
    generator = np.random.default_rng(5)
    keyed(patch, lambda: generator.bytes(32))


@mutant("noise.entropy")
def gaussians_of_a_simulation(patch: Patch, tap: ReleaseTap) -> None:
    generator = np.random.default_rng()
    noise(patch, lambda n: np.rint(generator.standard_normal(len(n)) * deviation(tap)))
