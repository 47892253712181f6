"""How all pages look: one sheet, light and dark, nothing from elsewhere."""

from pathlib import Path

from fluxsmith.errors import UsageError

__all__ = ["STYLE", "write_page"]


def write_page(path: Path, text: str) -> None:
    """Write a page that was asked for; raises UsageError where it cannot be written there."""
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError("usage.no-page", f"{path} cannot be written: {error.strerror}", fix="give another path") from None


STYLE = """
:root { color-scheme: light dark; --ink: #1c1e22; --paper: #fcfcfa; --soft: #6b7078; --line: #dededb; --good: #2e7d4f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e4; --paper: #17181b; --soft: #9aa0a8; --line: #33353a; --good: #6fcf97; } }
body { font: 16px/1.55 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); max-width: 60rem; margin: 3rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin-bottom: .3rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.lead { color: var(--soft); margin-top: 0 }
img { max-width: 100%; border: 1px solid var(--line); border-radius: 6px; background: #fcfcfa }
table { border-collapse: collapse; width: 100% } th, td { padding: .4rem .7rem; text-align: right; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left } th { font-weight: 600; color: var(--soft) }
td .bar { display: inline-block; height: .5rem; background: var(--good); border-radius: 2px; vertical-align: middle; margin-left: .5rem }
pre { background: color-mix(in srgb, var(--ink) 6%, transparent); padding: .8rem 1rem; border-radius: 6px; overflow-x: auto }
code { font-family: ui-monospace, monospace; font-size: .92em }
table.words td, table.words th { text-align: left } div.wide { overflow-x: auto }
svg { font: 12px system-ui, sans-serif; fill: var(--ink) } rect { fill: var(--good) }
"""
