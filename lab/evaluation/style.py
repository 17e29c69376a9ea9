"""How the page of a report looks: on a screen by day and by night, on paper, and to people who see few colours."""

from __future__ import annotations

import hashlib
from base64 import b64encode

HUES = 8
"""Colours of lines, `k0` to `k7`; each line has a mark and dashes of its own beside its colour."""
SHADES = 5
"""Colours of lines in an order, `s0` to `s4`, which differ in lightness too."""
TINTS = 6
"""Of table cells, `t0` to `t5`: the deeper, the more was missed."""

STYLE = (
    """
:root { color-scheme: light dark;
  --paper:#fff; --ink:#1c2733; --soft:#5a6774; --panel:#f6f8fa; --edge:#d8dfe6; --grid:#e7ebef;
  --warn:#b8431b; --warned:#fdf3ee; --good:#0a6f50; --gooded:#eef8f4; --tint:213 94 0;
  --k0:#0068a8; --k1:#d0560a; --k2:#0b8a66; --k3:#a04a80; --k4:#a87600; --k5:#3a97cf; --k6:#4e5965; --k7:#7c4418;
  --s0:#8ac1e6; --s1:#4a9bd4; --s2:#1274b8; --s3:#0b4f86; --s4:#062b4f; }
@media screen and (prefers-color-scheme: dark) { :root {
  --paper:#10161d; --ink:#e5ebf1; --soft:#9aa8b6; --panel:#18202a; --edge:#2d3946; --grid:#25303b;
  --warn:#ff9365; --warned:#2b1c15; --good:#55cfa6; --gooded:#12261f; --tint:255 138 76;
  --k0:#5cb3ec; --k1:#ff8f54; --k2:#45cfa5; --k3:#e39ac8; --k4:#e4b94e; --k5:#a8d6f4; --k6:#b5c0cb; --k7:#d9a982;
  --s0:#2f6d9c; --s1:#4391c9; --s2:#6fb5e4; --s3:#a5d3f2; --s4:#e0f1fc; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 1060px; margin: 2.5rem auto 4rem; padding: 0 1.5rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 3rem 0 .5rem; padding-top: 1.1rem; border-top: 1px solid var(--edge); }
h3 { font-size: 1rem; margin: 2.2rem 0 .3rem; }
p { max-width: 46rem; }
.facts, figcaption, .note { color: var(--soft); font-size: .86rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .9rem; margin: 1.5rem 0; }
.card { border: 1px solid var(--edge); background: var(--panel); border-radius: 10px; padding: .85rem 1rem; }
.card b { display: block; font-size: 1.65rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card.warn { border-color: var(--warn); background: var(--warned); } .card.warn b { color: var(--warn); }
.card span { font-size: .84rem; color: var(--soft); }
.honest, .verdict { border-left: 4px solid var(--warn); background: var(--warned); border-radius: 0 10px 10px 0;
  padding: .7rem 1.1rem; margin: 1.4rem 0; max-width: none; }
.verdict.passed { border-color: var(--good); background: var(--gooded); }
.verdict h2 { border: 0; margin: 0 0 .3rem; padding: 0; } .verdict p { margin: .2rem 0 .6rem; }
.passed > h2 b, tr.passed b { color: var(--good); } .failed > h2 b, tr.failed b { color: var(--warn); }
figure { margin: .6rem 0; } figcaption { margin: 0 0 .1rem; } figcaption b { color: var(--ink); }
.row { display: grid; grid-template-columns: repeat(3, 1fr); gap: .4rem 1.2rem; }
svg { width: 100%; height: auto; display: block; font: 12px system-ui, "Segoe UI", Arial, sans-serif; }
svg.wide { max-width: 820px; }
svg text { fill: var(--soft); } svg text.name { fill: var(--k, var(--ink)); font-weight: 600; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--soft); } svg .rule { stroke: var(--soft);
  stroke-dasharray: 2 4; }
svg .line { fill: none; stroke: var(--k); stroke-width: 2; stroke-linejoin: round; }
svg .bold .line { stroke-width: 3; } svg .mark { fill: var(--k); stroke: var(--paper); stroke-width: .8; }
svg .whisker { stroke: var(--k); stroke-width: 1.5; stroke-opacity: .5; } svg .bar { fill: var(--k0); }
svg .d1 .line { stroke-dasharray: 7 4; } svg .d2 .line { stroke-dasharray: 2 3; }
svg .d3 .line { stroke-dasharray: 10 3 2 3; } svg .limit { stroke: var(--warn); stroke-width: 1.5;
  stroke-dasharray: 5 4; } svg .error { stroke: var(--ink); stroke-width: 1.5; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; margin: .3rem 0; padding: 0;
  font-size: .84rem; } .legend li { display: flex; align-items: center; gap: .4rem; }
.legend svg { width: 34px; flex: none; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .82rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { padding: .22rem .5rem; border-bottom: 1px solid var(--edge); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
.verdict th, .verdict td { text-align: left; } .verdict th:first-child, .verdict td:first-child { position: static;
  background: none; }
td.words { white-space: normal; text-align: left; min-width: 16rem; }
thead th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; max-width: 8rem; }
thead th:first-child { min-width: 7rem; }
th.first, td.first { border-left: 2px solid var(--edge); } tr.main td { font-weight: 650; }
tr.adaptive td:first-child { border-left: 4px solid var(--warn); }
"""
    + "".join(f".k{k} {{ --k: var(--k{k}); }} " for k in range(HUES))
    + "".join(f".s{k} {{ --k: var(--s{k}); }} " for k in range(SHADES))
    + "".join(f"td.t{k} {{ background: rgb(var(--tint) / {0.11 * k:.2f}); }} " for k in range(1, TINTS))
    + """
@media (max-width: 700px) { .row { grid-template-columns: 1fr; } }
@media print { @page { margin: 14mm; } body { margin: 0; padding: 0; max-width: none; font-size: 10.5pt;
    -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  h2, h3, figcaption { break-after: avoid; } .card, figure, .verdict, .honest, tr, .row { break-inside: avoid; }
  .scroll { overflow: visible; } table { font-size: 7.4pt; } th, td { padding: .14rem .3rem; }
  th:first-child, td:first-child { position: static; } }
"""
)

_DIGEST = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"
"""The page's content security policy: this one style, and nothing else, from nowhere else."""
