"""A report as one self-contained HTML file and as JSON."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import rfc8785
from markupsafe import Markup

from appliance.report.blocks import Chart, Report
from appliance.report.evidence import Evidence
from appliance.report.figures import Figure, Key, leaf_field
from appliance.report.wording import packaged, placed

SCHEMA = "appliance.report/2"
TONES = {"good": "holds", "caution": "with care", "bad": "problem", "open": "not known"}


def html(report: Report, evidence: Evidence, language: str) -> bytes:
    """Draw the page. Self-contained: no script, nothing is loaded from anywhere, not even from beside it.

    One block stands on one line: the verifier compares line by line.
    """
    return _render(report, evidence, language, lambda part: part, _draw).encode()


def skeleton(report: Report, evidence: Evidence, language: str) -> str:
    """Draw the page with the place of each figure instead of it, and the words of each drawing instead of it."""
    return _render(report, evidence, language, lambda part: placed(part, evidence), _words_of)


def _render(
    report: Report,
    evidence: Evidence,
    language: str,
    shown: Callable[[str | Figure | Key], Any],
    drawn: Callable[[Chart], Markup],
) -> str:
    values = {
        "report": report,
        "tones": TONES,
        "style": Markup(packaged("templates/style.css")),  # noqa: S704 - our own file
        "language": language,
        "run": leaf_field(evidence.reserved, "/subject"),
        "head": {field: evidence.head.figure(field) for field in ("origin", "size", "root")},
        "shown": shown,
        "drawn": drawn,
    }
    return str(_environment().get_template("report.html.jinja").render(**values))


def _draw(chart: Chart) -> Markup:
    return Markup(chart.svg)  # noqa: S704 - drawn by us; its only foreign text, the title, is escaped


def _words_of(chart: Chart) -> Markup:
    return Markup("\n".join(re.findall("<(?:title|desc)[^>]*>([^<]*)<", chart.svg)))  # noqa: S704 - escaped as above


def twin(report: Report, evidence: Evidence, language: str) -> bytes:
    """Write verdict and figures as canonical JSON (RFC 8785) and a newline. Sentences stand on the page alone."""
    head = evidence.head
    shown = [*report.figures(), *(head.figure(field) for field in ("origin", "size", "root"))]
    shown.append(leaf_field(evidence.reserved, "/subject"))
    document: Any = {
        "schema": SCHEMA,
        "run_id": evidence.run_id,
        "state": evidence.state,
        "origin": head.origin,
        "tree_size": head.size,
        "root": head.root,
        "language": language,
        "verdict": {"tone": report.tone},
        "findings": [{"topic": finding.topic, "tone": finding.tone} for finding in report.findings],
        "figures": [_placed(figure) for figure in {(f.source, f.entry, f.pointer): f for f in shown}.values()],
    }
    return rfc8785.dumps(document) + b"\n"


def _placed(figure: Figure) -> dict[str, Any]:
    found = {figure.place: figure.pointer, "value": figure.value}
    return found if figure.source == "head" else {**found, "entry": figure.entry}


@functools.cache
def _environment() -> Any:
    """Load the templates, with everything escaped that is not markup already."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    loader = DictLoader({"report.html.jinja": packaged("templates/report.html.jinja")})
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
