"""A heatmap of attention as one HTML page: pictures inside, no script, nothing from elsewhere, and a caveat."""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Iterable

from appliance.jobs.attention import Faithfulness, Heatmap, Picture
from appliance.names import visible

SURE = 0.01
_CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """\
body{font:14px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
img{image-rendering:pixelated;border:1px solid #999;background:#fff}
figure{display:inline-block;margin:.3em;text-align:center;font-size:11px}
.t span{display:inline-block;padding:0 2px;margin:1px;border-radius:2px;white-space:pre}
table{border-collapse:collapse}td,th{padding:.1em .8em;text-align:left;border-bottom:1px solid #ddd}
"""


def page(found: Heatmap) -> bytes:
    """Write the page. What stands in it is the operator's prompt: it belongs to whoever asked for it."""
    parts = [
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Attention</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_CSP}"><style>{_STYLE}</style></head><body>',
        f"<h1>Attention of the {_text(found.variant)} model</h1>",
        f"<p>{len(found.tokens)} tokens; the next one would be <b>{_text(found.predicted)}</b>. Rows are tokens that "
        "look, columns what they look at, from the first at the top left; darker is more (square root). Every row of "
        f"weights sums to 1 within {found.row_error:.1g}.</p>",
        _faithfulness(found.faithfulness),
        "<h2>What the last token looks at, all layers together</h2>",
        f'<p class="t">{"".join(_tokens(found))}</p>',
        _image(found.rollup, 640),
        "<h2>Layers</h2><p>Means over heads; single heads, at less resolution and each by its own maximum, below.</p>",
    ]
    for layer, heads in zip(found.layers, found.heads, strict=True):
        drawn = "".join(_image(head, 96) for head in heads)
        parts.append(f"<details><summary>{_text(layer.name)}</summary>{_image(layer, 320)}{drawn}</details>")
    return "\n".join([*parts, "</body></html>\n"]).encode()


def verdict(found: Faithfulness | None) -> str:
    """Say in one sentence whether the picture may be read as what mattered."""
    if found is None:
        return "Whether this shows what mattered was not tested."
    better = "more" if found.p < SURE else "not shown to be more"
    against = "less" if found.attention < found.gradient else "no less"
    return (
        f"Deleting what attention points to costs {found.attention:.3f} nat, a random order {found.random:.3f} "
        f"(p = {found.p:.3g}, {found.orders} orders): {better} than chance, and {against} than gradient times input "
        f"({found.gradient:.3f})."
    )


def _faithfulness(found: Faithfulness | None) -> str:
    caveat = "Attention weights are no explanation by themselves: a model can look at a token and not use it."
    return f"<p><b>Faithfulness.</b> {_text(verdict(found))} {caveat}</p>"


def _tokens(found: Heatmap) -> Iterable[str]:
    size = found.rollup.size
    last = base64.b64decode(found.rollup.pixels)[-size:]
    most = max(last) or 1
    for token, weight in zip(found.tokens, last, strict=True):
        share = (weight / most) ** 2
        yield f'<span style="background:rgba(200,60,20,{share:.2f})">{_text(token)}</span>'


def _image(picture: Picture, width: int) -> str:
    data = base64.b64encode(png(base64.b64decode(picture.pixels), picture.size)).decode()
    name = _text(picture.name)
    return (
        f'<figure><img width="{width}" height="{width}" alt="{name}" src="data:image/png;base64,{data}">'
        f"<figcaption>{name}</figcaption></figure>"
    )


def png(pixels: bytes, size: int) -> bytes:
    """Write a square picture in 16 greys as a PNG file; 255 is black, since more attention is darker."""
    rows = bytearray()
    for start in range(0, size * size, size):
        row = [15 - (value >> 4) for value in pixels[start : start + size]] + [15] * (size % 2)
        rows += b"\0" + bytes(row[n] << 4 | row[n + 1] for n in range(0, len(row), 2))
    header = struct.pack(">IIBBBBB", size, size, 4, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _text(text: str) -> str:
    return html.escape(visible(text))
