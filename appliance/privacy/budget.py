"""What a dataset may lose over its lifetime. Pure functions: the flows bring the spends, policies set the caps.

A run spends from its own dataset and from every dataset that shares a unit with it. `privacy.lifetime` composes them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from appliance.errors import BudgetExceeded, ConfigInvalid
from appliance.privacy.lifetime import Cap, Spend, Spent, lifetime, same_unit


def check_budget(
    asked: Spend, *, spends: Iterable[Spend], overlaps: Mapping[str, Collection[str]], caps: Mapping[str, Cap]
) -> tuple[Spent, Spent]:
    """Refuse `asked` unless it keeps every dataset it touches within its cap.

    For each X among the run's dataset and those overlapping it, all runs on X and on the datasets overlapping X count.
    An X of another unit of privacy, on which nothing was spent, is closed by this and does not hold it up.

    Args:
      asked: what the new run would reserve; a spend of the same run among `spends` is replaced by it.
      spends: every run and evaluation in the ledger.
      overlaps: for each dataset, those that share a unit with it; one direction is enough.
      caps: the cap of every dataset.

    Returns:
      What was spent from the run's own dataset before, and what with it.

    Raises:
      BudgetExceeded: names the dataset, what is spent, what it comes to and the cap.
      ConfigInvalid: a dataset concerned has no cap.
    """
    others = [spend for spend in spends if spend.run_id != asked.run_id]
    near = sorted(_neighbours(asked.dataset_id, overlaps) - {asked.dataset_id})
    own = _check_one(asked.dataset_id, asked, others, overlaps, caps)
    for dataset in near:
        if same_unit(_cap(dataset, caps).unit, asked.unit):
            _check_one(dataset, asked, others, overlaps, caps)
        elif any(spend.costs and spend.dataset_id == dataset for spend in others):
            raise _mixed(asked.dataset_id, dataset)
    return own


def _check_one(
    dataset: str,
    asked: Spend,
    others: Sequence[Spend],
    overlaps: Mapping[str, Collection[str]],
    caps: Mapping[str, Cap],
) -> tuple[Spent, Spent]:
    cap = _cap(dataset, caps)
    group = _neighbours(dataset, overlaps)
    earlier = [spend for spend in others if spend.dataset_id in group]
    foreign = [spend for spend in earlier if spend.costs and not same_unit(spend.unit, cap.unit)]
    if foreign:
        raise _mixed(dataset, foreign[0].dataset_id)
    before, after = lifetime(earlier, cap, both=False), lifetime([*earlier, asked], cap, both=False)
    if after.epsilon > cap.epsilon:
        raise _exceeded(dataset, cap, before, after)
    return before, after


def _exceeded(dataset: str, cap: Cap, before: Spent, after: Spent) -> BudgetExceeded:
    by = "" if after.rule == "distributions" else f" by the Rényi filter of order {cap.order:g}"
    return BudgetExceeded(
        f"dataset {dataset} has spent epsilon {before.epsilon:.4f}, with what is asked {after.epsilon:.4f}{by}, "
        f"which exceeds the cap {cap.epsilon:g} (at delta {cap.delta:.3g})",
        hint="ask for a smaller epsilon or fewer steps, or use a dataset that shares no unit with this one; "
        "`appliance budget show` says what is left",
    )


def _mixed(dataset: str, other: str) -> BudgetExceeded:
    return BudgetExceeded(
        f"dataset {dataset} shares units with dataset {other}, which has another unit of privacy and was used already: "
        "what its runs cost one kind of unit says nothing of the other",
        hint=f"go on with dataset {other}, or use data of other people; where two columns with different names hold "
        "the same subjects, ingest again with the column named alike",
    )


def _cap(dataset: str, caps: Mapping[str, Cap]) -> Cap:
    if dataset not in caps:
        raise ConfigInvalid(f"dataset {dataset} has no lifetime budget")
    return caps[dataset]


def _neighbours(dataset: str, overlaps: Mapping[str, Collection[str]]) -> set[str]:
    """Find the dataset, and all that overlap it by either one's account."""
    return {dataset, *overlaps.get(dataset, ()), *(other for other, theirs in overlaps.items() if dataset in theirs)}
