"""From what is asked (epsilon, steps, batch) to the one plan that builds sampler, clip, noise and accountant."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

from pydantic import ValidationError

from appliance.errors import ConfigInvalid
from appliance.privacy.accounting import MOST_ATTEMPTS, PRV_ALLOWANCE, Mechanism, calibrate, epsilon_pld
from appliance.records import PrivacyPlan, UnitOfPrivacy

UNITS_PER_DELTA = 100
"""Delta is at most 1 / (UNITS_PER_DELTA * declared units): at most 1/100 of a unit is expected to be exposed whole."""


def make_plan(
    *,
    unit: UnitOfPrivacy,
    declared_units: int,
    expected_batch_size: int,
    steps: int,
    spare_steps: int,
    epsilon: float,
    delta: float | None,
    clipping: Literal["fixed", "normalised"],
    max_grad_norm: float,
    trainable_parameters: int,
) -> PrivacyPlan:
    """A plan whose `steps` + `spare_steps` attempts together are (epsilon, delta)-DP.

    The noise is calibrated at delta minus what the noise sampler itself costs.

    Args:
      unit: whose presence is hidden.
      declared_units: how many units the data owner declares; public.
      expected_batch_size: expected units in a logical batch; at most declared_units.
      steps: optimiser steps.
      spare_steps: further attempts that are reserved for steps lost to interruptions.
      epsilon: the target.
      delta: the target, or None for 1 / (100 declared_units).
      clipping: "fixed" (norm at most max_grad_norm) or "normalised" (norm made max_grad_norm).
      max_grad_norm: the clip norm C.
      trainable_parameters: size of the adapter, which decides what the noise sampler costs.

    Raises:
      ConfigInvalid: arguments that no plan can meet; `where` names the run file's key.
    """
    _check_counts(declared_units, expected_batch_size, steps, spare_steps)
    target_delta = _target_delta(delta, declared_units)
    rate, attempts = Fraction(expected_batch_size, declared_units), steps + spare_steps
    noise_multiplier, sampler = _calibrate(rate, attempts, epsilon, target_delta, trainable_parameters)
    try:
        return PrivacyPlan(
            unit=unit,
            declared_units=declared_units,
            expected_batch_size=expected_batch_size,
            steps=steps,
            spare_steps=spare_steps,
            max_grad_norm=max_grad_norm,
            clipping=clipping,
            noise_multiplier=noise_multiplier,
            epsilon=epsilon,
            delta=target_delta,
            sampler_delta=sampler,
        )
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigInvalid(f"{field} is not possible: {error.errors()[0]['msg'].lower()}", where="privacy") from None


def _check_counts(declared_units: int, expected_batch_size: int, steps: int, spare_steps: int) -> None:
    if declared_units < 1:
        raise ConfigInvalid("at least one unit of privacy must be declared", where="data")
    if not 1 <= expected_batch_size <= declared_units:
        raise ConfigInvalid(
            f"the expected batch size must lie between 1 and the {declared_units} declared units",
            where="train.expected_batch_size",
        )
    if steps < 1 or spare_steps < 0:
        raise ConfigInvalid("at least one step is needed, and no negative number of spare ones", where="train.steps")
    if steps + spare_steps > MOST_ATTEMPTS:
        raise ConfigInvalid(f"at most {MOST_ATTEMPTS} steps can be accounted for", where="train.steps")


def _target_delta(delta: float | None, declared_units: int) -> float:
    most = 1 / (UNITS_PER_DELTA * declared_units)
    if delta is None:
        return most
    if not 0 < delta <= most:
        raise ConfigInvalid(
            f"delta must be positive and at most 1 / ({UNITS_PER_DELTA} x declared units) = {most:.3g}",
            hint="leave it at `auto`",
            where="privacy.delta",
        )
    return delta


def _calibrate(
    rate: Fraction, attempts: int, epsilon: float, delta: float, trainable_parameters: int
) -> tuple[float, float]:
    """Noise multiplier and the noise sampler's delta. At full delta it is smallest, where the sampler costs most."""
    from appliance.privacy.sampler import sampler_delta

    if not 2 * PRV_ALLOWANCE <= epsilon < math.inf:
        raise ConfigInvalid(f"epsilon must be at least {2 * PRV_ALLOWANCE:g}", where="privacy.epsilon")
    target = epsilon - PRV_ALLOWANCE
    noise_multiplier = calibrate(rate, attempts, target, delta)
    sampler = sampler_delta(trainable_parameters, attempts, epsilon, noise_multiplier)
    if sampler > delta / 2:
        raise ConfigInvalid(
            f"drawing the noise would cost {sampler:.3g} of delta {delta:.3g}",
            hint="ask for a smaller epsilon or a larger delta",
            where="privacy",
        )
    if epsilon_pld([Mechanism(noise_multiplier, rate, attempts)], delta - sampler) > target:
        noise_multiplier = calibrate(rate, attempts, target, delta - sampler)
    return noise_multiplier, sampler
