"""Charts as self-contained SVG. Text is drawn as paths in the font that matplotlib brings, so bytes never differ.

Every number on a chart is the text of a figure that the table beside it shows, or zero.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from appliance.report.figures import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, GRID = "#1c2733", "#5b6875", "#d5dce3"
BLUE, TEAL, ORANGE, RED = "#1f5fa8", "#14746f", "#b35900", "#a3262a"
_ID = re.compile(r'(\bid="|href="#|url\(#)')


def number(figure: Figure) -> float:
    """Place a figure on an axis."""
    return float(Decimal(str(figure)))


def spending(points: Sequence[tuple[Figure, Figure]], finals: Mapping[str, Figure], reserved: Figure) -> str:
    """Draw epsilon against sampled steps by PLD, with the ends by PRV and RDP, and what was reserved."""
    xs, ys = [number(step) for step, _ in points], [number(epsilon) for _, epsilon in points]
    end, prv, rdp, most = xs[-1], number(finals["prv"]), number(finals["rdp"]), number(reserved)
    top = max(ys[-1], prv, rdp, most) * 1.12 or 1.0

    def draw(axes: Axes) -> None:
        axes.set_xlim(0, end * 1.38)
        axes.set_ylim(0, top)
        axes.plot([0, end], [most, most], color=MUTED, linewidth=1, dashes=(4, 3))
        axes.plot(xs, ys, color=BLUE, linewidth=2.2, marker="o", markersize=4.5)
        axes.plot([end], [prv], color=TEAL, marker="D", markersize=6, linestyle="none")
        axes.plot([end], [rdp], color=ORANGE, marker="^", markersize=7, linestyle="none")
        _label_ends(
            axes,
            end * 1.02,
            top,
            [
                (ys[-1], f"PLD {points[-1][1]}", BLUE),
                (prv, f"PRV {finals['prv']}", TEAL),
                (rdp, f"RDP {finals['rdp']}", ORANGE),
                (most, f"reserved {reserved}", MUTED),
            ],
        )
        _text(axes, end * 0.5, top * 0.05, "lower bound from an attack: not performed", MUTED, ha="center")
        _ticks_x(axes, [points[0][0], points[len(points) // 2][0], points[-1][0]])
        _zero(axes)
        _name_axes(axes, "sampled steps", "epsilon")

    description = "A line that rises with the number of sampled steps and stays below the reserved epsilon."
    return _svg("spending", "Epsilon against sampled steps", description, (7.4, 3.5), draw)


def gauge(name: str, before: Figure, after: Figure, cap: Figure, charged: Figure | None, what: str) -> str:
    """Draw a bar up to the cap: spent before, and the worst case of `what`; below it what `what` alone was charged."""
    full = max(number(cap), number(after), 1e-9)

    def draw(axes: Axes) -> None:
        axes.set_xlim(0, full * 1.02)
        axes.set_ylim(-1.15, 1.3)
        axes.barh(0.45, number(cap), height=0.5, color="#eef2f6", edgecolor=GRID)
        axes.barh(0.45, number(after), height=0.5, color="#9cbfe6", edgecolor=BLUE, hatch="////", linewidth=0)
        axes.barh(0.45, number(before), height=0.5, color=BLUE)
        axes.plot([number(cap)] * 2, [0.05, 0.85], color=RED, linewidth=2.5, solid_capstyle="butt")
        _text(axes, 0, 0.98, f"lifetime: {before} before this {what}, {after} with its reservation", INK)
        _text(axes, number(cap), 0.98, f"cap {cap}", RED, ha="right")
        if charged is not None:
            axes.barh(-0.75, number(charged), height=0.3, color=TEAL)
        said = f"this {what} alone: {charged}" if charged is not None else f"this {what} alone: not settled"
        _text(axes, 0, -0.42, said, INK)
        axes.axis("off")

    description = "A bar of what was spent before and was then reserved, up to a mark at the cap of the policy."
    return _svg(name, "Lifetime budget of the dataset", description, (7.4, 1.75), draw)


def forest(name: str, title: str, rows: Sequence[tuple[str, Figure, Figure, Figure]], axis: str) -> str:
    """Draw one line for each (letter, estimate, low, high), with a line at zero."""
    ends = [number(figure) for _, *figures in rows for figure in figures]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = (high - low or 1.0) * 0.12
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}

    def draw(axes: Axes) -> None:
        axes.set_xlim(low - margin, high + margin)
        axes.set_ylim(-0.9, len(rows) - 0.2)
        axes.axvline(0, color=MUTED, linewidth=1, dashes=(4, 3))
        for place, (letter, middle, least, most) in enumerate(reversed(rows)):
            color = TEAL if number(least) > 0 else RED if number(most) < 0 else MUTED
            axes.plot([number(least), number(most)], [place, place], color=color, linewidth=2.4)
            axes.plot([number(middle)], [place], color=color, marker="s", markersize=7)
            _text(
                axes,
                number(middle),
                place + 0.2,
                f"{letter}  {middle}  [{least}, {most}]",
                INK,
                ha="center",
                bbox=behind,
            )
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_xticks([0], ["0"], fontproperties=_font(), color=MUTED)
        _name_axes(axes, axis, "")

    description = "A square for each estimate on a line for its confidence interval; the dashed line is no difference."
    return _svg(name, title, description, (7.4, 1.1 + 0.62 * len(rows)), draw)


# --- drawing --------------------------------------------------------------------------------------------------------


def _font(size: float = 9.5) -> Any:
    import matplotlib
    from matplotlib.font_manager import FontProperties

    path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return FontProperties(fname=str(path), size=size)


def _text(axes: Axes, x: float, y: float, words: str, color: str, **options: Any) -> None:
    axes.text(x, y, words, color=color, fontproperties=_font(), parse_math=False, **options)


def _label_ends(axes: Axes, x: float, top: float, labels: list[tuple[float, str, str]]) -> None:
    """Place labels near their heights, pushed apart where they would overlap, with a line from height to label."""
    gap = top * 0.075
    for (height, words, color), place in zip(sorted(labels), _apart(sorted(labels), gap), strict=True):
        axes.plot([x, x * 1.035], [height, place], color=color, linewidth=0.8)
        _text(axes, x * 1.045, place, words, color, va="center")


def _apart(labels: list[tuple[float, str, str]], gap: float) -> list[float]:
    """Push heights at least `gap` apart: the mean of pushing up from below and of pushing down from above."""
    up = [labels[0][0]]
    for height, *_ in labels[1:]:
        up.append(max(height, up[-1] + gap))
    down = [labels[-1][0]]
    for height, *_ in labels[-2::-1]:
        down.append(min(height, down[-1] - gap))
    return [(high + low) / 2 for high, low in zip(up, reversed(down), strict=True)]


def _ticks_x(axes: Axes, figures: Sequence[Figure]) -> None:
    chosen = {number(figure): str(figure) for figure in figures}
    axes.set_xticks([0, *chosen], ["0", *chosen.values()], fontproperties=_font(), color=MUTED)


def _zero(axes: Axes) -> None:
    axes.set_yticks([0], ["0"], fontproperties=_font(), color=MUTED)


def _name_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontproperties=_font(), color=MUTED)
    axes.set_ylabel(y, fontproperties=_font(), color=MUTED)


def _svg(name: str, title: str, description: str, size: tuple[float, float], draw: Any) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    settings: Any = {"svg.fonttype": "path", "svg.hashsalt": name, "axes.unicode_minus": False, "hatch.linewidth": 0.6}
    with matplotlib.rc_context(settings):
        canvas = Canvas(figsize=size, layout="tight")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GRID)
        axes.tick_params(color=GRID)
        draw(axes)
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        canvas.savefig(written, format="svg", metadata=nothing, transparent=True)
    return _inline(written.getvalue(), f"chart-{name}", title, description)


def _inline(svg: str, name: str, title: str, description: str) -> str:
    """Take the `svg` element alone, with a title, and ids that no other chart of the page has.

    Only tags and attributes that the verifier takes for shapes come out; title and description on lines of their own.
    """
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = _ID.sub(rf"\g<1>{name}-", svg)
    (box,) = re.findall(r'^<svg[^>]* viewBox="([0-9. ]+)"', svg)
    opening = f'<svg role="img" aria-labelledby="{name}-title {name}-desc" viewBox="{box}">'
    inside = f'<title id="{name}-title">{escape(title)}</title>\n<desc id="{name}-desc">{escape(description)}</desc>'
    return f"{opening}\n{inside}\n{svg.partition('>')[2]}"
