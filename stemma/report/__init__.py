"""An answer as one HTML page: for an analyst who looks once and must understand it.

``page`` is the page and what stands around a comparison, ``comparison`` the comparison, ``donors`` where the parts of a
picture come from, ``overlay`` pixels and lines, ``markup`` the bricks; ``report.css``, ``donors.css`` and ``report.js``
lie beside them and become part of every page.
"""

from stemma.report.markup import called, text
from stemma.report.page import (
    CANDIDATES_SHOWN,
    Entry,
    Source,
    entry,
    headline,
    pictured,
    render,
    shipped_changed_min,
    summary,
    write_comparison_report,
    write_search_report,
)

__all__ = [
    "CANDIDATES_SHOWN",
    "Entry",
    "Source",
    "called",
    "entry",
    "headline",
    "pictured",
    "render",
    "shipped_changed_min",
    "summary",
    "text",
    "write_comparison_report",
    "write_search_report",
]
