"""`appliance decide`: cost, score."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import render, settings
from appliance.decide.breakeven import Point
from appliance.flows import decision
from appliance.flows.decision import Cost, Decision

app = typer.Typer()


@app.command()
def cost(context: typer.Context, prices: Annotated[Path, typer.Argument(help="A dated price file.")]) -> None:
    """Compare a service that is paid by the token with machines of one's own: a month, and the break-even point."""
    chosen = settings.of(context)
    found = decision.cost(prices, datetime.now(UTC).date())
    if found.stale:
        days = found.prices.valid_days
        render.note(chosen, f"the prices are of {found.prices.dated} and were good for {days} days: ask again")
    render.result(chosen, "decide.cost", _cost_document(found), _cost_lines(found))


@app.command()
def score(
    context: typer.Context,
    scores: Annotated[Path, typer.Argument(help="A file of weights and scores on one scale.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the 10,000 weightings that are drawn.")] = 0,
) -> None:
    """Rank options by weighted scores, and say how often each would win if the weights were others."""
    chosen = settings.of(context)
    home = chosen.home() if chosen.named_root is not None else None
    found = decision.score(scores, home, seed)
    render.result(chosen, "decide.score", _score_document(found), _score_lines(found))


def _cost_document(found: Cost) -> dict[str, Any]:
    month, even = found.month, found.break_even
    return {
        "dated": found.prices.dated.isoformat(),
        "source": found.prices.source,
        "stale": found.stale,
        "service": {**_texts(month.service), "total": str(month.service_total)},
        "own": {**_texts(month.own), "total": str(month.own_total)},
        "machines": month.machines,
        "busy": _short(month.busy),
        "idle": str(month.idle),
        "break_even": {name: _point(getattr(even, name)) for name in ("stated", "earliest", "latest")},
        "swings": [{"quantity": name, "low": _point(low), "high": _point(high)} for name, low, high in even.swings],
    }


def _texts(lines: dict[str, Decimal]) -> dict[str, str]:
    return {name: str(amount) for name, amount in lines.items()}


def _short(number: Decimal) -> str:
    return str(number.quantize(Decimal("0.0001")))


def _point(point: Point | None) -> dict[str, Any] | None:
    if point is None:
        return None
    return {"mtok_per_month": _short(point.tokens), "machines": point.machines, "busy": _short(point.busy)}


def _cost_lines(found: Cost) -> list[str]:
    month, even = found.month, found.break_even
    rows = [("service", name, amount) for name, amount in month.service.items()]
    rows += [("", "total", month.service_total)]
    rows += [("own", name, amount) for name, amount in month.own.items()]
    rows += [("", "total", month.own_total)]
    busy = f"{month.machines}, busy {100 * month.busy:.1f} % of the time"
    return [
        *render.table(("a month", "", "USD"), rows),
        *render.fields(
            [
                ("machines", busy),
                ("of own, for idle hours", f"{month.idle} USD"),
                ("break-even", _said(even.stated)),
                ("at the earliest", _said(even.earliest)),
                ("at the latest", _said(even.latest)),
            ]
        ),
        *(f"  {name}: {_said(low)} to {_said(high)}" for name, low, high in even.swings),
        f"prices of {found.prices.dated}, from {found.prices.source}",
    ]


def _said(point: Point | None) -> str:
    if point is None:
        return "never"
    return f"{point.tokens:.1f} Mtok/month (machines: {point.machines}, busy {100 * point.busy:.1f} %)"


def _score_document(found: Decision) -> dict[str, Any]:
    options = [{**asdict(one), "total": str(one.total)} for one in found.ranked]
    return {"options": options, "evidenced": found.evidenced, "asserted": found.asserted}


def _score_lines(found: Decision) -> list[str]:
    rows = [
        (one.name, one.total, *(_range(share) for share in (one.near, one.any)), ", ".join(one.asserted) or "none")
        for one in found.ranked
    ]
    head = ("option", "weighted score", "wins near the weights", "wins whatever the weights", "asserted")
    linked = f"{found.evidenced} of {found.evidenced + found.asserted} scores rest on an entry of the ledger"
    return [*render.table(head, rows), f"{linked}; the others are asserted"]


def _range(share: Any) -> str:
    return f"{100 * share.share:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"
