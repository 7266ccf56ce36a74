"""What the noise sampler and the grid cost in privacy: one definition for the plan, the engine and the noise.

Per-record gradients are clipped and rounded to multiples of a public power of two, `grid`, so that the sum of a
logical batch is a vector of exact integers. The noise is integer too. Two facts are proved here and nowhere else.

**Sensitivity.** Let P be the number of trainable parameters, C the clip norm and gamma the grid. A record is scaled
to norm at most C(1 - GUARD) by a factor computed from a floating-point norm whose relative error is at most 2^-14
(float32 sums of squares over blocks of 1024 values in any order, blocks combined in float64; squares that underflow
matter only below 2^-48). One float32 rounding of the factor and one of each product add 2^-22. Rounding to the grid
moves it by at most gamma * sqrt(P) / 2, which is at most C * 2^-14. Together:
C * (1 - 2^-12) * (1 + 2^-14 + 2^-22) + C * 2^-14 < C. So the L2 sensitivity of the integer sum to one unit more or
less is at most C / gamma, with nothing left to charge.

**Noise.** Adding N(0, (sigma C)^2) to the sum and rounding the result to the grid is post-processing of the
Gaussian mechanism; because the sum is an integer vector it equals adding independent *rounded Gaussians* R_s, with
s = sigma C / gamma grid units. What is drawn is a discrete Gaussian D_t with t^2 = s^2 + 1/12, the variance of R_s.
The two have equal first three cumulants; the first difference is the fourth cumulant of the rounding, -1/120, hence

    chi2(R_s, D_t) = 24 / (120 * 24 * s^4)^2 * (1 + o(1)) = 2.9e-6 * s^-8     (Edgeworth; see the tests, exact sums)

and KL <= chi2 <= CHI_SQUARE * s^-8. The chain rule adds it up over P coordinates and T adaptive steps and Pinsker
gives a total variation of sqrt(P T KL / 2). The sampler itself (tables, their tails, the smoothing of the
convolution, see `appliance.train.noise`) differs from D_t by at most TABLE_TV per coordinate and step. Both together
are a total variation tau between what runs and a mechanism that is (epsilon, delta)-DP, so what runs is
(epsilon, delta + (1 + e^epsilon) tau)-DP. Without the 1/12 the divergence would be of order s^-4 and could cost
more than delta itself on a small adapter.
"""

from __future__ import annotations

import math
from fractions import Fraction

from appliance.errors import ConfigInvalid

GUARD = 2.0**-12
"""Share of the clip norm kept free for rounding."""

TABLE_TV = 2.0**-96
"""Bound on the total variation between one drawn coordinate and an exact discrete Gaussian."""

CHI_SQUARE = 1e-5
"""Bound on chi2(R_s, D_t) * s^8 for s >= 4; the leading constant is 24 / 2880^2 = 2.9e-6."""

_SMALLEST_NORM, _LARGEST_NORM = 2.0**-20, 2.0**20


def grid(max_grad_norm: float, parameters: int) -> float:
    """Choose the spacing gamma that clipped gradients and noise are multiples of.

    gamma is the largest power of two with gamma * sqrt(P) <= C * 2^-13.

    Args:
      max_grad_norm: the clip norm C.
      parameters: the number of trainable parameters P.

    Raises:
      ConfigInvalid: when the clip norm is outside [2^-20, 2^20] (float32 could underflow or overflow) or P < 1.
    """
    if not _SMALLEST_NORM <= max_grad_norm <= _LARGEST_NORM:
        raise ConfigInvalid("max_grad_norm is outside [2^-20, 2^20]", where="privacy.max_grad_norm")
    if parameters < 1:
        raise ConfigInvalid("there is no trainable parameter", where="lora.targets")
    bound = (Fraction(max_grad_norm) * Fraction(1, 2**13)) ** 2 / parameters
    exponent = math.floor(math.log2(max_grad_norm / 2**13 / math.sqrt(parameters))) + 1
    while Fraction(2) ** (2 * exponent) > bound:
        exponent -= 1
    return 2.0**exponent


def grid_units(noise_multiplier: float, max_grad_norm: float, parameters: int) -> Fraction:
    """State the noise's standard deviation in grid units, s = sigma * C / gamma, exact in the given floats."""
    return Fraction(noise_multiplier) * Fraction(max_grad_norm) / Fraction(grid(max_grad_norm, parameters))


def noise_variance(noise_multiplier: float, max_grad_norm: float, parameters: int) -> Fraction:
    """State the parameter t^2 = s^2 + 1/12 of the discrete Gaussian that is drawn, in squared grid units, exact."""
    return grid_units(noise_multiplier, max_grad_norm, parameters) ** 2 + Fraction(1, 12)


def sampler_delta(parameters: int, attempts: int, epsilon: float, noise_multiplier_lower: float) -> float:
    """Bound what drawing the noise with finite tables on a grid adds to delta, at the stated epsilon.

    Args:
      parameters: P, the trainable parameters.
      attempts: T, all sampled steps that are reserved.
      epsilon: the epsilon at which delta is stated.
      noise_multiplier_lower: a lower bound on the noise multiplier that will be used. The grid is at most
        C * 2^-13 / sqrt(P), so s >= noise_multiplier_lower * 2^13 * sqrt(P) whatever C is.

    Returns:
      (1 + e^epsilon) * (P T TABLE_TV + sqrt(P T CHI_SQUARE / 2) s^-4), at most 1.

    Raises:
      ConfigInvalid: when the noise is below 4 grid units, where the bound on the divergence is not proved.
    """
    s = noise_multiplier_lower * 2.0**13 * math.sqrt(parameters)
    if s < 4:
        raise ConfigInvalid("the noise multiplier is too small for the noise grid", where="privacy")
    draws = float(parameters) * attempts
    total_variation = draws * TABLE_TV + math.sqrt(draws * CHI_SQUARE / 2) * s**-4
    if epsilon > 600:
        return 1.0
    return min(1.0, (1.0 + math.exp(epsilon)) * total_variation)
