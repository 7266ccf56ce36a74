"""A report as one self-contained HTML file and as JSON."""

from __future__ import annotations

import functools
from importlib.resources import files
from typing import Any

import rfc8785
from markupsafe import Markup

from appliance.report.blocks import Block, Chart, Listing, Paragraph, Report, Table
from appliance.report.evidence import Evidence
from appliance.report.figures import Figure, leaf_field, plain

SCHEMA = "appliance.report/1"
TONES = {"good": "holds", "caution": "with care", "bad": "problem", "open": "not known"}


def html(report: Report, evidence: Evidence, version: str, language: str) -> bytes:
    """Draw the page. Self-contained: no script, nothing is loaded from anywhere, not even from beside it."""
    template = _environment().get_template("report.html.jinja")
    style = Markup(_packaged("style.css"))  # noqa: S704 - our own file
    values = {
        "report": report,
        "tones": TONES,
        "style": style,
        "language": language,
        "version": version,
        "run": leaf_field(evidence.reserved, "/subject"),
        "head": {field: evidence.head.figure(field) for field in ("origin", "size", "root")},
        "state": evidence.state,
    }
    return str(template.render(**values)).encode()


def twin(report: Report, evidence: Evidence, version: str, language: str) -> bytes:
    """Write the same as canonical JSON (RFC 8785) and a newline: every figure with its place, and every word."""
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
        "version": version,
        "language": language,
        "verdict": {"tone": report.tone, "sentence": plain(report.headline)},
        "findings": [{"topic": f.topic, "tone": f.tone, "sentence": plain(f.sentence)} for f in report.findings],
        "figures": [_placed(figure) for figure in dict.fromkeys(_hashable(figure) for figure in shown)],
        "sections": [
            {"anchor": section.anchor, "title": section.title, "blocks": [_block(block) for block in section.blocks]}
            for section in report.sections
        ],
    }
    return rfc8785.dumps(document) + b"\n"


class _Placed(tuple[str, int, str]):
    """A place, with the figure that stands there."""

    figure: Figure


def _hashable(figure: Figure) -> _Placed:
    placed = _Placed((figure.source, figure.entry, figure.pointer))
    placed.figure = figure
    return placed


def _placed(placed: _Placed) -> dict[str, Any]:
    figure = placed.figure
    found = {"name": figure.name, figure.place: figure.pointer, "value": figure.value}
    return found if figure.source == "head" else {**found, "entry": figure.entry}


def _block(block: Block) -> dict[str, Any]:
    if isinstance(block, Paragraph):
        return {"kind": block.kind, "text": plain(block.sentence)}
    if isinstance(block, Listing):
        return {"kind": block.kind, "rows": [plain(row) for row in block.rows]}
    if isinstance(block, Table):
        rows = [[plain(cell) for cell in row] for row in block.rows]
        return {"kind": block.kind, "caption": block.caption, "head": list(block.head), "rows": rows}
    return {"kind": block.kind, "caption": block.caption}


@functools.cache
def _environment() -> Any:
    """Templates, with everything escaped that is not markup already."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    loader = DictLoader({"report.html.jinja": _packaged("report.html.jinja")})
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["drawing"] = _drawing
    return environment


def _drawing(chart: Chart) -> Markup:
    return Markup(chart.svg)  # noqa: S704 - drawn by us; its only foreign text, the title, is escaped


def _packaged(name: str) -> str:
    return (files("appliance.report") / "templates" / name).read_text(encoding="utf-8")
