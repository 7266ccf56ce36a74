"""From what is asked (epsilon, steps, batch) to the one plan that builds sampler, clip, noise and accountant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationError

from appliance.errors import ConfigInvalid
from appliance.jobs.plan import Phase, PrivacyPlan, UnitOfPrivacy
from appliance.privacy.accounting import MOST_ATTEMPTS, PRV_ALLOWANCE, calibrate_schedule, composition, epsilon_pld
from appliance.privacy.lifetime import UNITS_PER_DELTA, lifetime_delta, run_delta
from appliance.privacy.sampler import grid


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
    phases: Sequence[Phase] = (),
) -> PrivacyPlan:
    """Make a plan whose `steps` + `spare_steps` attempts together are (epsilon, delta)-DP.

    The noise is calibrated at delta minus what the noise sampler itself costs.

        >>> plan = make_plan(
        ...     unit=UnitOfPrivacy(kind="record"), declared_units=1000, expected_batch_size=100, steps=20,
        ...     spare_steps=2, epsilon=8.0, delta=None, clipping="fixed", max_grad_norm=1.0, trainable_parameters=1000,
        ... )
        >>> plan.sample_rate, plan.attempts, plan.delta, round(plan.noise_multiplier, 2)
        (Fraction(1, 10), 22, 9e-06, 0.69)

    Args:
      unit: whose presence is hidden.
      declared_units: how many units the data owner declares; public.
      expected_batch_size: expected units in a logical batch; at most declared_units.
      steps: optimiser steps.
      spare_steps: further attempts that are reserved for steps lost to interruptions.
      epsilon: the target.
      delta: the target, or None for what `run_delta` gives: nine tenths of 1 / (100 declared_units).
      clipping: "fixed" (norm at most max_grad_norm) or "normalised" (norm made max_grad_norm).
      max_grad_norm: the clip norm C.
      trainable_parameters: size of the adapter, which decides what the noise sampler costs.
      phases: a curriculum, whose phases share out the steps; they compose one after the other, as if every unit were
        in all of them.

    Raises:
      ConfigInvalid: arguments that no plan can meet; `where` names the run file's key.
    """
    _check_counts(declared_units, expected_batch_size, steps, spare_steps)
    if not 2 * PRV_ALLOWANCE <= epsilon < math.inf:
        raise ConfigInvalid(f"epsilon must be at least {2 * PRV_ALLOWANCE:g}", where="privacy.epsilon")
    target_delta = _target_delta(delta, declared_units)
    grid(max_grad_norm, trainable_parameters)  # one that has no grid is refused before anything is reserved
    try:
        draft = PrivacyPlan(
            phases=tuple(phases),
            unit=unit,
            declared_units=declared_units,
            expected_batch_size=expected_batch_size,
            steps=steps,
            spare_steps=spare_steps,
            max_grad_norm=max_grad_norm,
            clipping=clipping,
            noise_multiplier=1.0,
            epsilon=epsilon,
            delta=target_delta,
            sampler_delta=0.0,
        )
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigInvalid(f"{field} is not possible: {error.errors()[0]['msg'].lower()}", where="privacy") from None
    noise_multiplier, sampler = _calibrate(draft, trainable_parameters)
    return draft.model_copy(update={"noise_multiplier": noise_multiplier, "sampler_delta": sampler})


def share_out(ratios: Sequence[float], steps: int) -> list[int]:
    """Share out steps: `ratios` of `steps`, rounded so that they add up (largest remainder), none without a step.

        >>> share_out([0.7, 0.2, 0.1], 16)
        [11, 3, 2]

    Raises:
      ConfigInvalid: the ratios do not add up to 1, or there are fewer steps than phases.
    """
    if abs(math.fsum(ratios) - 1) > 1e-6:
        raise ConfigInvalid(f"the ratios add up to {math.fsum(ratios):g} and not to 1", where="curriculum")
    if steps < len(ratios):
        raise ConfigInvalid(f"{steps} steps cannot be shared by {len(ratios)} phases", where="curriculum")
    exact = [ratio * steps for ratio in ratios]
    shares = [max(1, math.floor(share)) for share in exact]
    while (missing := steps - sum(shares)) != 0:
        change = 1 if missing > 0 else -1
        able = [n for n, share in enumerate(shares) if change > 0 or share > 1]
        shares[max(able, key=lambda n: change * (exact[n] - shares[n]))] += change
    return shares


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
    most = lifetime_delta(declared_units)
    if delta is None:
        return run_delta(declared_units)
    if not 0 < delta <= most:
        raise ConfigInvalid(
            f"delta must be positive and at most 1 / ({UNITS_PER_DELTA} x declared units) = {most:.3g}",
            hint="leave it at `auto`",
            where="privacy.delta",
        )
    return delta


def _calibrate(plan: PrivacyPlan, trainable_parameters: int) -> tuple[float, float]:
    """Find noise multiplier and sampler's delta. At full delta the noise is least, where the sampler costs most."""
    from appliance.privacy.sampler import sampler_delta

    epsilon, delta, rates = plan.epsilon, plan.delta, plan.rates(plan.attempts)
    target = epsilon - PRV_ALLOWANCE
    noise_multiplier = calibrate_schedule(rates, target, delta)
    sampler = sampler_delta(trainable_parameters, plan.attempts, epsilon, noise_multiplier)
    if sampler > delta / 2:
        raise ConfigInvalid(
            f"drawing the noise would cost {sampler:.3g} of delta {delta:.3g}",
            hint="ask for a smaller epsilon or a larger delta",
            where="privacy",
        )
    if epsilon_pld(composition(plan, plan.attempts, noise_multiplier), delta - sampler) > target:
        noise_multiplier = calibrate_schedule(rates, target, delta - sampler)
    return noise_multiplier, sampler
