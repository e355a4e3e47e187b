"""HTML of a report: one static file with its style sheet, no scripts and nothing from the network.

Every text that comes in is escaped; only what these functions build themselves is markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from hksd_search.report.figures import Figure

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c1f23; --soft: #5b6470; --rule: #dfe3e8; --fill: #f5f6f8;
  --best: #0b5cc2; --arm: #b04a00; --teacher: #6b3fa0; --complete: #7d8a99; --pruned: #c3cad2; }
@media (prefers-color-scheme: dark) { :root { --page: #15181c; --ink: #e6e9ed; --soft: #9aa4b0; --rule: #333a42;
  --fill: #1e2329; --best: #6cb0ff; --arm: #ffa05c; --teacher: #c5a3f5; --complete: #8794a3; --pruned: #4a535e; } }
@media print { :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --rule: #ccc; --fill: #fff;
  --best: #0b5cc2; --arm: #b04a00; --teacher: #6b3fa0; --complete: #7d8a99; --pruned: #c3cad2; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } details > summary { display: none; }
  pre { max-height: none !important; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1000px; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; } p, ul, figcaption { max-width: 46rem; margin: .5rem 0; }
li { margin: .2rem 0; }
.soft, figcaption { color: var(--soft); font-size: .875rem; } figure { margin: 1.2rem 0; }
.lead { font-size: 1.06rem; }
.wide { overflow-x: auto; } .wide + .wide { margin-top: 1.2rem; }
.strips { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr));
  gap: .5rem 1.2rem; } .strips figure { margin: .4rem 0; } .strips h3 { font-size: .9rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
td:nth-child(2) { min-width: 7rem; }
th, td { padding: .28rem .8rem .28rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; } .n { text-align: right; white-space: nowrap; }
tr.strong td { font-weight: 600; }
pre { background: var(--fill); padding: .8rem 1rem; overflow: auto; max-height: 26rem;
  font-size: .82rem; line-height: 1.4; }
code { font-size: .9em; } summary { cursor: pointer; color: var(--soft); }
dt { color: var(--soft); font-size: .875rem; }
dd { margin: 0 0 .5rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; min-width: min(var(--width), 560px); max-width: var(--width); height: auto; }
svg text { font-size: 12.5px; fill: var(--soft); } svg .label { fill: var(--ink); font-weight: 600;
  paint-order: stroke; stroke: var(--page); stroke-width: 3px; stroke-linejoin: round; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); } .line { fill: none; stroke-width: 1.2; }
.cloud { fill: none; stroke-width: 6; stroke-linecap: round; }
circle.complete { fill: var(--complete); fill-opacity: .65; } path.complete { stroke: var(--complete); opacity: .65; }
path.line.complete { opacity: .4; } path.pruned { stroke: var(--pruned); } path.stopped { stroke: var(--pruned); }
circle.onfront { fill: var(--page); stroke: var(--best); stroke-width: 1.6; } path.front { stroke: var(--best); }
circle.best { fill: var(--best); } path.line.best { stroke: var(--best); stroke-width: 2.2; }
circle.arm { fill: var(--arm); } path.line.arm { stroke: var(--arm); stroke-width: 2; }
circle.teacher { fill: var(--teacher); } path.line.teacher { stroke: var(--teacher); stroke-dasharray: 6 4; }
path.zero { stroke: var(--soft); stroke-dasharray: 3 3; }
svg .label.best { fill: var(--best); } svg .label.arm { fill: var(--arm); } svg .label.teacher { fill: var(--teacher); }
"""
WORDS = ("remark", "which")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # even what got in by mistake loads nothing and runs nothing


def document(title: str, under: str, parts: Sequence[str]) -> str:
    """A whole page; `parts` are markup."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="soft">{escape(under)}</p>\n'
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A section; nothing where it has no parts."""
    inside = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{inside}\n</section>" if inside else ""


def paragraph(text: str, look: str = "") -> str:
    """A paragraph; what stands between backticks is set as code."""
    marked = re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))
    return f"<p{_class(look)}>{marked}</p>"


def bullets(items: Sequence[str]) -> str:
    """A list; nothing where it is empty."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1, strong: int | None = None) -> str:
    """A table of words at the left and numbers.

    Args:
        header: names of the columns; those in `WORDS` hold words wherever they stand.
        rows: cells.
        texts: number of columns with words at the left.
        strong: index of the row that stands out.
    """
    looks = ["t" if i < texts or name in WORDS else "n" for i, name in enumerate(header)]
    head = "".join(f"<th{_class(look)}>{escape(name)}</th>" for name, look in zip(header, looks, strict=True))
    body = "".join(
        f"<tr{_class('strong' if index == strong else '')}>"
        + "".join(f"<td{_class(look)}>{escape(cell)}</td>" for cell, look in zip(row, looks, strict=True))
        + "</tr>\n"
        for index, row in enumerate(rows)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def figure(drawn: Figure | None) -> str:
    """A figure with its finding above and its caption below; nothing where there is none."""
    if drawn is None:
        return ""
    caption = f"<figcaption>{escape(drawn.caption)}</figcaption>" if drawn.caption else ""
    svg = drawn.chart.svg(drawn.title)
    return f'<figure><h3>{escape(drawn.title)}</h3><div class="wide">{svg}</div>{caption}</figure>'


def strips(drawn: Sequence[Figure]) -> str:
    """Small figures beside each other; nothing where there are none."""
    return f'<div class="strips">{"".join(map(figure, drawn))}</div>' if drawn else ""


def code(text: str, summary: str) -> str:
    """A text as it is, folded away below its summary."""
    return f"<details open=''><summary>{escape(summary)}</summary><pre><code>{escape(text)}</code></pre></details>"


def facts(items: Sequence[tuple[str, str]]) -> str:
    """Names and what belongs to them."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in items)}</dl>"


def _class(look: str) -> str:
    return f' class="{look}"' if look else ""
