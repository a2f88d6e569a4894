"""Building blocks of a report: one HTML file that opens without a network and can be sent by mail.

Blocks are strings of HTML made from plain values; every text is escaped, pictures are embedded. `page` puts blocks
together with the style, light or dark as the reader's system is set.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing is fetched, whatever is in the page
STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1c1e; --quiet: #63636a; --line: #d9d9de;
  --wash: #f4f4f7; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161618; --ink: #ececee; --quiet: #a2a2aa; --line: #3a3a40; --wash: #212126; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0; }
p.quiet, figcaption, caption { color: var(--quiet); font-size: .9rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0 0 .4rem; }
th, td { padding: .28rem .8rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { font-weight: 600; border-bottom-width: 2px; vertical-align: bottom; }
th.number, td.number { text-align: right; }
tbody tr:nth-child(even) { background: var(--wash); }
tr.strong td { font-weight: 600; }
figure { margin: .8rem 0; }
img { max-width: 100%; height: auto; border-radius: 6px; display: block; }
pre { background: var(--wash); padding: .7rem .9rem; border-radius: 6px; overflow-x: auto; font-size: .9rem; }
nav a { margin-right: .9rem; }
a { color: inherit; }
"""


def page(title: str, blocks: Iterable[str], *, lead: str = "") -> str:
    """The whole document.

    Args:
        title: heading and name of the page.
        blocks: what the functions below return, in order.
        lead: one sentence under the heading.
    """
    opening = f"<p>{escape(lead)}</p>" if lead else ""
    body = "\n".join(blocks)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n{opening}\n{body}\n</body>\n</html>\n"
    )


def section(title: str, blocks: Iterable[str], *, anchor: str = "") -> str:
    """A heading and what stands under it; `anchor` can be linked to with `contents`."""
    mark = f' id="{escape(anchor)}"' if anchor else ""
    return f"<section{mark}>\n<h2>{escape(title)}</h2>\n" + "\n".join(blocks) + "\n</section>"


def contents(anchors: Sequence[tuple[str, str]]) -> str:
    """Links to sections: pairs of anchor and text."""
    links = "".join(f'<a href="#{escape(anchor)}">{escape(text)}</a>' for anchor, text in anchors)
    return f"<nav>{links}</nav>"


def paragraph(text: str, *, quiet: bool = False) -> str:
    """One paragraph of plain text."""
    kind = ' class="quiet"' if quiet else ""
    return f"<p{kind}>{escape(text)}</p>"


def commands(text: str) -> str:
    """Lines to type, kept as they are."""
    return f"<pre>{escape(text)}</pre>"


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    caption: str = "",
    digits: int | Sequence[int | None] = 3,
    strong: Iterable[int] = (),
) -> str:
    """A table whose numbers stand under one another.

    Args:
        columns: headings.
        rows: cells: text, numbers, None or NaN (an en dash).
        caption: line above the table.
        digits: behind the point, for all floats or one entry a column.
        strong: numbers of rows set in bold.
    """
    places = [digits] * len(columns) if isinstance(digits, int) else list(digits)
    body = [list(row) for row in rows]
    for row in body:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells does not fit {len(columns)} columns: {row}")
    numeric = [
        any(isinstance(row[column], (int, float)) for row in body)
        and not any(isinstance(row[column], str) for row in body)
        for column in range(len(columns))
    ]
    bold = set(strong)
    head = "".join(f"<th{_kind(numeric[i])}>{escape(name)}</th>" for i, name in enumerate(columns))
    lines = []
    for number, row in enumerate(body):
        cells = "".join(f"<td{_kind(numeric[i])}>{_shown(cell, places[i])}</td>" for i, cell in enumerate(row))
        weight = ' class="strong"' if number in bold else ""
        lines.append(f"<tr{weight}>{cells}</tr>")
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    middle = "\n".join(lines)
    inside = f"{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{middle}\n</tbody>"
    return f'<div class="wide"><table>{inside}</table></div>'


def figure(png: bytes, *, text: str, caption: str = "") -> str:
    """An embedded picture; `text` says what it shows to those who cannot see it."""
    data = base64.b64encode(png).decode("ascii")
    under = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img alt="{escape(text)}" src="data:image/png;base64,{data}">{under}</figure>'


def _kind(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _shown(cell: Any, digits: int | None) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, float):
        return f"{cell:.{3 if digits is None else digits}f}".replace("-", "−")
    return escape(str(cell))
