"""stemma: where does a picture come from, and what was changed in it?

``stemma.open("photos.stemma")`` gives an embedded collection; ``stemma.Client("http://…")`` asks a served one.
Both are imported when first used, so that ``import stemma`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stemma.api import Answer, Ask
    from stemma.client import AsyncClient, Client
    from stemma.collection import Collection, open
    from stemma.errors import StemmaError

__version__ = "0.1.0"
__all__ = ["Answer", "Ask", "AsyncClient", "Client", "Collection", "StemmaError", "open"]

_HOMES = {
    "Answer": "stemma.api",
    "Ask": "stemma.api",
    "AsyncClient": "stemma.client",
    "Client": "stemma.client",
    "Collection": "stemma.collection",
    "StemmaError": "stemma.errors",
    "open": "stemma.collection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'stemma' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
