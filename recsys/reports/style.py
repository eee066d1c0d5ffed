"""The style sheet of every page: light and dark, from 320 pixels up, and on paper. It names no file and no font to load."""

from typing import Final

PALETTE: Final = (
    "#3b7dd8", "#e08e0b", "#23a26d", "#c2599d", "#d5542b", "#8b6fd1", "#36a6bf", "#909090", "#a8792f", "#7f9a1c",
)  # fmt: skip
PANEL_WIDTH: Final = 324
"""Width of a panel in its own units; the page shows it 300 to 430 pixels wide, so 12 units of text are 11 pixels or more."""

CSS: Final = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1c2330; --soft: #566172; --line: #dfe3e9;
  --accent: #2563c9; --good: #137346; --bad: #b3382c; --tint: #eef3fc; --good-tint: #e8f5ee; --bad-tint: #fbeeec; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2029; --ink: #e7eaf0; --soft: #a3adbc;
  --line: #323a47; --accent: #79aaf5; --good: #55c792; --bad: #f08a7e; --tint: #222c3d; --good-tint: #1a3029;
  --bad-tint: #38241f; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; } h2 { font-size: 19px; margin: 0 0 6px; }
h3 { font-size: 16px; margin: 20px 0 6px; } h4 { font-size: 14px; margin: 0 0 4px; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 80ch; }
section, .conclusion { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin-top: 18px; }
code { font: 0.92em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
bdi { overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin-top: 14px; }
nav a { color: var(--accent); text-decoration: none; padding: 3px 0; }
summary { cursor: pointer; color: var(--accent); padding: 4px 0; overflow-wrap: anywhere; }
details details { margin-left: 14px; }
.better { color: var(--good); } .worse { color: var(--bad); } .equal, .unknown { color: var(--soft); }

.conclusion { border-left: 6px solid var(--soft); color: inherit; }
.conclusion.better { border-left-color: var(--good); background: var(--good-tint); }
.conclusion.worse { border-left-color: var(--bad); background: var(--bad-tint); }
.conclusion .sentence { font-size: 18px; line-height: 1.45; color: var(--ink); font-weight: 600; max-width: 76ch; }
.conclusion p:last-child { margin-bottom: 0; }

.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } thead th { vertical-align: bottom; }
th:first-child, td:first-child, .words { text-align: left; } td.words { white-space: normal; min-width: 16ch; }
td small { color: var(--soft); font-weight: 400; display: block; } td b { color: inherit; }
tr.reference { background: var(--tint); }
tr.reference td:first-child { font-weight: 600; }

dl.facts { margin: 6px 0 12px; }
dl.facts div { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 0 16px; padding: 4px 0;
  border-bottom: 1px solid var(--line); }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }

.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(296px, 100%), 1fr)); gap: 18px 22px;
  margin: 10px 0 4px; }
.panels.wide { grid-template-columns: repeat(auto-fill, minmax(min(400px, 100%), 1fr)); }
.panels figure, figure.tree { margin: 0; max-width: 430px; min-width: 0; break-inside: avoid; }
.panels figure { display: flex; flex-direction: column; justify-content: space-between; }
.panels figcaption p { font-size: 13.5px; margin: 0 0 4px; }
svg { width: 100%; height: auto; color: var(--ink); display: block; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
ul.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0; padding: 0; font-size: 14px; }
ul.legend svg { width: 26px; height: 10px; display: inline-block; margin-right: 6px; vertical-align: middle; }

.user { border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; margin: 12px 0; break-inside: avoid; }
.user h3 { margin-top: 0; }
.user .lists { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: 10px 26px; }
.user .lists > div { min-width: 0; }
.user ol, .user ul { margin: 0 0 10px; padding-left: 26px; } .user ul { list-style: none; padding-left: 4px; }
.user li { padding: 1px 4px; border-radius: 4px; }
.user li.hit { background: var(--good-tint); color: var(--good); font-weight: 600; }
.user li.hit::after { content: "✓ came next"; font-size: 12.5px; display: inline-block; margin-left: 6px; }
.user li.found::after { content: "✓ in the answer"; font-size: 12.5px; color: var(--good); display: inline-block;
  margin-left: 6px; }
.badge { display: inline-block; border: 1px solid currentColor; border-radius: 99px; padding: 0 10px; font-size: 13px;
  margin-left: 8px; font-weight: 600; white-space: nowrap; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 12px 30px; }
.two > * { min-width: 0; }
ul.path { list-style: none; margin: 6px 0; padding: 0; }
ul.path ul { list-style: none; padding-left: 14px; margin: 2px 0 2px 6px; border-left: 2px solid var(--line); }
ul.path .this { font-weight: 600; color: var(--accent); }

.panels figure.top { justify-content: flex-start; }
.leak { border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; margin: 12px 0; break-inside: avoid; }
.leak h3 { margin: 0 0 4px; } .leak.severe { border-left: 4px solid var(--bad); }
ul.warnings { list-style: none; margin: 6px 0; padding: 0; }
ul.warnings li { border-left: 4px solid var(--soft); padding: 2px 0 2px 12px; margin: 12px 0; color: var(--soft);
  max-width: 96ch; }
ul.warnings li.worse { border-left-color: var(--bad); } ul.warnings b { color: var(--ink); font-weight: 600; }

@media screen and (max-width: 720px) {
  main { padding: 18px 10px 40px; } section, .conclusion { padding: 14px 14px; } h1 { font-size: 22px; }
  .conclusion .sentence { font-size: 16.5px; }
  dl.facts div { grid-template-columns: minmax(0, 1fr); }
  table.cards, table.cards tbody, table.cards tr, table.cards td { display: block; width: 100%; }
  table.cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table.cards tr { border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px; margin: 10px 0; }
  table.cards td { border: 0; padding: 2px 0; display: flex; justify-content: space-between; gap: 12px;
    text-align: right; white-space: normal; }
  table.cards td:first-child { font-weight: 600; font-size: 16px; display: block; text-align: left; }
  table.cards td[data-label]::before { content: attr(data-label); color: var(--soft); text-align: left;
    font-size: 14px; }
  table.cards td small { display: inline; font-size: 12px; white-space: nowrap; }
}
@media print {
  :root { --page: #fff; --card: #fff; --ink: #000; --soft: #444; --line: #ccc; color-scheme: light; }
  body { font-size: 10.5pt; } th, td { font-size: 8.5pt; padding: 3px 4px; } .words { min-width: 0; }
  dl.facts { font-size: 9pt; } main { max-width: none; padding: 0; } nav { display: none; }
  section, .conclusion { border-radius: 0; padding: 8px 10px; }
  h2, h3, h4 { break-after: avoid; } tr, .user, figure { break-inside: avoid; } .scroll { overflow: visible; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
