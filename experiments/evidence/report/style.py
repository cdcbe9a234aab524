"""How the report looks: narrow columns, and tables that scroll by themselves on a phone."""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --paper: #a0522d; }
@media (prefers-color-scheme: dark) { :root { --paper: #e8a87c; } }
* { box-sizing: border-box; }
body { margin: 0; font: 16px/1.55 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 78rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { line-height: 1.2; }
h2 { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
p, ul, .answer, pre { max-width: 58rem; }
.question { font-style: italic; margin-top: -.5rem; }
.answer { background: var(--soft); border-left: 4px solid #888; padding: .7rem 1rem; }
details { margin: .5rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
.wide img { display: block; height: auto; max-width: 100%; background: #fff; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
.caption { font-weight: 600; font-size: .9rem; margin: 1.2rem 0 -.6rem; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; }
td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: Canvas; }
.paper { color: var(--paper); font-style: italic; }
th.paper::after { content: " (paper)"; }
.missing { color: var(--paper); font-size: .85rem; }
.small, details { font-size: .85rem; }
pre { white-space: pre-wrap; background: var(--soft); padding: .7rem; }
"""
