"""The truth about a collection: Lance rows under a sync protocol, a journal of what was acknowledged, one committer."""

from stemma.catalog.catalog import Catalog
from stemma.catalog.ledger import Snapshot
from stemma.catalog.schema import ColumnType, Draft

__all__ = ["Catalog", "ColumnType", "Draft", "Snapshot"]
