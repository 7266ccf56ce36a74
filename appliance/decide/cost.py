"""What a month costs, exactly to the cent: by the token, and on machines of one's own with what they cost idle.

A month has 730 hours. Each line is rounded to the cent, half up, and a sum is of rounded lines, as on an invoice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal, localcontext

from appliance.decide.prices import Prices
from appliance.decide.quantity import Quantity

HOURS = Decimal(730)
CENT, MILLION, SECONDS = Decimal("0.01"), Decimal(10**6), Decimal(3600)
MOST_MACHINES = 10_000
Chosen = Mapping[str, Decimal]
"""Values for the uncertain quantities, by their place in the file; where there is none, the stated one holds."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the price file comes to, per million tokens and per machine. USD, hours, million tokens.

    Attributes:
      tokens: million tokens in a month.
      token_price: of the service, for a million tokens in the same mixture of prompt and answer.
      fee: of the service, a month.
      machine: capital and hosting of one machine, a month, and its power while idle.
      busy: what a million tokens add: power beyond that of idling.
      staff: a month.
      capacity: million tokens that one machine can handle in a month, at the most it may be busy.
      full: the same if it were busy all the time.
    """

    tokens: Decimal
    token_price: Decimal
    fee: Decimal
    machine: Decimal
    busy: Decimal
    staff: Decimal
    capacity: Decimal
    full: Decimal

    def machines(self, tokens: Decimal) -> int:
        """Count the machines that so many million tokens in a month need; at least one."""
        return max(1, int((tokens / self.capacity).to_integral_value(ROUND_CEILING)))


@dataclass(frozen=True, slots=True)
class Month:
    """What a month costs, line by line, USD; `idle` is the part of own machines' cost for hours without work."""

    service: dict[str, Decimal]
    own: dict[str, Decimal]
    machines: int
    busy: Decimal
    idle: Decimal

    @property
    def service_total(self) -> Decimal:
        """What the service costs."""
        return sum(self.service.values(), Decimal(0))

    @property
    def own_total(self) -> Decimal:
        """What own machines cost."""
        return sum(self.own.values(), Decimal(0))


class Reader:
    """Reads quantities of a price file, some of which are chosen."""

    def __init__(self, chosen: Chosen) -> None:
        self._chosen = chosen

    def __call__(self, place: str, quantity: Quantity) -> Decimal:
        """Read one."""
        return self._chosen.get(place, quantity.value)


def rates(prices: Prices, chosen: Chosen | None = None) -> Rates:
    """Work out the rates. Use and throughput must be more than nothing, or there is nothing to compare."""
    read, own, service, use = Reader(chosen or {}), prices.own, prices.service, prices.use
    with localcontext() as context:
        context.prec = 50
        prompt, answer = read("use.prompt", use.prompt), read("use.answer", use.answer)
        tokens = prompt + answer
        paid = prompt * read("service.prompt", service.prompt) + answer * read("service.answer", service.answer)
        full = read("own.throughput", own.throughput) * SECONDS * HOURS / MILLION
        power = read("own.overhead", own.overhead) * read("own.electricity", own.electricity)
        busy, idle = read("own.power_busy", own.power_busy), read("own.power_idle", own.power_idle)
        capital = read("own.hardware", own.hardware) - read("own.residual", own.residual)
        return Rates(
            tokens=tokens,
            token_price=paid / tokens,
            fee=read("service.fee", service.fee),
            machine=capital / read("own.lifetime", own.lifetime)
            + read("own.hosting", own.hosting)
            + HOURS * idle * power,
            busy=(busy - idle) * power * HOURS / full,
            staff=read("own.staff", own.staff) * read("own.salary", own.salary),
            capacity=full * read("own.most_busy", own.most_busy) / 100,
            full=full,
        )


def month(prices: Prices) -> Month:
    """Work out a month, line by line, at the stated values."""
    own, use, service, found = prices.own, prices.use, prices.service, rates(prices)
    machines = found.machines(found.tokens)
    with localcontext() as context:
        context.prec = 50
        hours = found.tokens / found.full * HOURS
        power = own.overhead.value * own.electricity.value
        capital = (own.hardware.value - own.residual.value) / own.lifetime.value * machines
        lines = {
            "capital": capital,
            "hosting": own.hosting.value * machines,
            "power, busy": hours * own.power_busy.value * power,
            "power, idle": (machines * HOURS - hours) * own.power_idle.value * power,
            "staff": found.staff,
        }
        busy = hours / (machines * HOURS)
        idle = (capital + lines["hosting"]) * (1 - busy) + lines["power, idle"]
        paid = {
            "prompts": use.prompt.value * service.prompt.value,
            "answers": use.answer.value * service.answer.value,
            "fee": service.fee.value,
        }
    return Month(
        service={name: cents(amount) for name, amount in paid.items()},
        own={name: cents(amount) for name, amount in lines.items()},
        machines=machines,
        busy=busy,
        idle=cents(idle),
    )


def cents(amount: Decimal) -> Decimal:
    """Round to the cent, half up."""
    return amount.quantize(CENT, ROUND_HALF_UP)
