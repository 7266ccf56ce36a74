"""Costs, worked by hand and exact to the cent; break-even points; what is refused."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from appliance.decide.breakeven import break_even, point
from appliance.decide.cost import cents, month, rates
from appliance.decide.prices import Prices, read
from appliance.errors import ConfigInvalid

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
EXAMPLE = (EXAMPLES / "prices.yaml").read_text()


def prices(*changes: tuple[str, str], text: str = EXAMPLE) -> Prices:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return read(text.encode(), "prices.yaml")


def test_a_month_by_hand() -> None:
    """500 Mtok at 2,500 tok/s are 55.56 h; 6.5 kW of them, and 1.4 kW of the other 674.44 h, at 1.4 x 0.30 USD."""
    found = month(prices())
    assert {name: str(amount) for name, amount in found.own.items()} == {
        "capital": "4166.67",  # 200,000 / 48 = 4166.666...
        "hosting": "1200.00",
        "power, busy": "151.67",  # 55.5555... x 6.5 x 0.42 = 151.6666...
        "power, idle": "396.57",  # 674.4444... x 1.4 x 0.42 = 396.5733...
        "staff": "2250.00",
    }
    assert str(found.own_total) == "8164.91"
    assert {name: str(amount) for name, amount in found.service.items()} == {
        "prompts": "12000.00",
        "answers": "6000.00",
        "fee": "0.00",
    }
    assert found.machines == 1
    assert str(found.idle) == "5354.82"  # 5366.666... x (1 - 55.5555... / 730) + 396.5733...


def test_more_than_a_machine_can_do_takes_two() -> None:
    """At 60 % of 730 h one machine does 3,942 Mtok."""
    found = month(prices(("answer: 100 Mtok/month", "answer: 3542.01 Mtok/month")))
    assert found.machines == 2
    assert str(found.own["capital"]) == "8333.33"
    assert str(found.own["staff"]) == "2250.00"
    assert month(prices(("answer: 100 Mtok/month", "answer: 3542 Mtok/month"))).machines == 1


@pytest.mark.parametrize(("amount", "rounded"), [("0.005", "0.01"), ("0.0049", "0.00"), ("2.675", "2.68")])
def test_half_a_cent_is_rounded_up(amount: str, rounded: str) -> None:
    assert str(cents(Decimal(amount))) == rounded


def test_the_seeds_comparison_redone() -> None:
    found = read((EXAMPLES / "seed-cost.yaml").read_bytes(), "seed-cost.yaml")
    result, even = month(found), break_even(found).stated
    assert (str(result.service_total), str(result.own_total)) == ("90.00", "11037.60")
    assert even is not None
    assert cents(even.tokens) == Decimal("245.28")  # 11,037.60 / 45 USD
    assert (100 * even.busy).quantize(Decimal("0.01")) == Decimal("0.78")
    eight = 8 * Decimal("1.89")
    assert (Decimal("8.70") / eight * 60).quantize(Decimal("0.1")) == Decimal("34.5")
    assert cents(eight * 730) == Decimal("11037.60")
    text = (EXAMPLES.parent / "deciding.md").read_text()
    assert all(figure in text for figure in ("11,037.60", "245.28", "0.78 %", "34.5 minutes", "2.04 requests"))
    assert round(23.4 * 0.087, 2) == 2.04


def test_at_the_break_even_point_both_cost_the_same() -> None:
    found = rates(prices())
    even = point(found)
    assert even is not None
    own = even.machines * found.machine + found.staff + found.busy * even.tokens
    assert abs(own - even.tokens * found.token_price - found.fee) < Decimal("1e-30")


def test_the_interval_holds_every_value_in_between() -> None:
    stated = prices()
    even = break_even(stated)
    assert even.earliest is not None
    assert even.latest is not None
    for part in range(0, 11):
        chosen = {n: q.low + (q.high - q.low) * Decimal(part) / 10 for n, q in stated.uncertain().items()}
        inside = point(rates(stated, chosen))
        assert inside is not None
        assert even.earliest.tokens <= inside.tokens <= even.latest.tokens
    swings = [abs(low.tokens - high.tokens) for _, low, high in even.swings if low and high]
    assert swings == sorted(swings, reverse=True)
    assert len(swings) == len(stated.uncertain()) == 5


def test_a_service_that_costs_less_than_power_is_never_beaten() -> None:
    cheap = prices(("prompt: 30 USD/Mtok", "prompt: 0.01 USD/Mtok"), ("answer: 60 USD/Mtok", "answer: 0.01 USD/Mtok"))
    assert break_even(cheap).stated is None
    assert break_even(cheap).latest is None


def test_machines_that_cannot_earn_themselves_are_never_enough() -> None:
    slow = prices(("{value: 2500 tok/s, low: 1200 tok/s, high: 4000 tok/s}", "20 tok/s"))
    assert break_even(slow).stated is None


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("hosting: 1200 USD/month", "hosting: 1200", "1200 has no unit: write '1200 USD/month'"),
        ("hosting: 1200 USD/month", 'hosting: "1200"', "not a number with its unit, which is USD/month"),
        ("hosting: 1200 USD/month", "hosting: 1200 EUR/month", "must be USD/month"),
        ("power_busy: 6.5 kW", "power_busy: 6500 W", "must be kW"),
        ("power_busy: 6.5 kW", "power_busy: -6.5 kW", "not a number with its unit"),
        ("residual: 10000 USD", "residual: {value: 1 USD, low: 2 USD, high: 3 USD}", "not between low and high"),
        ("residual: 10000 USD", "residual: {value: 1 USD, low: 0 USD}", "value, low and high"),
        ("residual: 10000 USD", "residual: {value: 1 USD, low: 0, high: 3 USD}", "0 has no unit"),
        ("  fee: 0 USD/month\n", "", "missing here: 'fee'"),
        ("  fee: 0 USD/month\n", "  fee: 0 USD/month\n  discount: 3 %\n", "unknown key"),
        ('dated: "2026-11-26"', "dated: yesterday", "written as 2026-11-26"),
        ('dated: "2026-11-26"', "dated: 20261126", "written as 2026-11-26"),
        ("throughput: {value: 2500 tok/s, low: 1200 tok/s, high: 4000 tok/s}", "throughput: 0 tok/s", "more than 0"),
        ("lifetime: 48 months", "lifetime: 0 months", "more than 0"),
        ("most_busy: 60 %", "most_busy: 160 %", "at most 100"),
        ("residual: 10000 USD", "residual: 999999 USD", "worth more at its end"),
        ("power_idle: 1.4 kW", "power_idle: 7 kW", "more power idle than busy"),
    ],
)
def test_what_is_refused_names_the_line_and_what_to_write(old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigInvalid) as refused:
        prices((old, new))
    assert said in refused.value.message
    assert refused.value.where.startswith("prices.yaml:")


def test_prices_grow_stale() -> None:
    found = prices()
    assert not found.stale(date(2027, 2, 24))
    assert found.stale(date(2027, 2, 25))
