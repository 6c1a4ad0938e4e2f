"""The chart: client time a command, as bars, in SVG written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.harness import Result

WIDTH = 790
LABELS = 290  # where the bars start
RATIOS = 60  # room for the figures behind the bars
AXIS = 1.5  # the ratio at which a bar is cut off
BAR = 18
ROW = 26

# A card of its own colour: legible also where the page's theme is not the system's.
STYLE = """
  .card { fill: #ffffff }
  text { fill: #1f2328; font: 13px system-ui, -apple-system, "Segoe UI", sans-serif }
  .title { font-weight: 600 }
  .note { fill: #59636e; font-size: 12px }
  .bar { fill: #afb8c1 }
  .ours { fill: #1a7f37 }
  .base { stroke: #59636e; stroke-dasharray: 3 3 }
  .cut { stroke: #ffffff; stroke-width: 4 }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117 }
    text { fill: #f0f6fc }
    .note { fill: #9198a1 }
    .bar { fill: #656c76 }
    .ours { fill: #3fb950 }
    .base { stroke: #9198a1 }
    .cut { stroke: #0d1117 }
  }
"""

TEMPLATE = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" role="img"
  aria-label="Client time a command, held against redis-py">
<style>{style}</style>
<rect class="card" width="{width}" height="{height}" rx="6"/>
{parts}
</svg>
"""


def draw(results: Sequence[Result]) -> str:
    """Return a chart of ratios to each benchmark's base."""
    scale = (WIDTH - LABELS - RATIOS) / AXIS
    parts = [_text(20, 30, "Client time a command: shorter is better", "title")]
    top = 48
    for result in results:
        parts.append(_text(20, top + 14, result.title, "title"))
        parts.append(_text(LABELS, top + 14, f"{result.base} = 1", "note"))
        top += ROW
        first = top
        for name, figures in result.contenders.items():
            ratio = figures.client_ratio.median
            width = min(ratio, AXIS) * scale
            kind = "bar ours" if name == "autobatch" else "bar"
            parts.append(_text(20, top + 14, name))
            parts.append(
                f'<rect class="{kind}" x="{LABELS}" y="{top}" '
                f'width="{width:.1f}" height="{BAR}" rx="2"/>'
            )
            if ratio > AXIS:
                parts.append(f'<path class="cut" d="M{LABELS + width - 24:.1f} {top + 22}l8 -26"/>')
            parts.append(_text(LABELS + width + 8, top + 14, f"{ratio:.2f}"))
            top += ROW
        parts.append(f'<path class="base" d="M{LABELS + scale:.1f} {first - 4}V{top - 4}"/>')
        top += 12
    return TEMPLATE.format(style=STYLE, width=WIDTH, height=top + 4, parts="\n".join(parts))


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y}">{escape(text)}</text>'
