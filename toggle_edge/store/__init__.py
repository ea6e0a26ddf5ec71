"""What is kept between commands, and read back by all of them."""

from toggle_edge.store.engine import DEFAULT_URL
from toggle_edge.store.rows import StoredBundle, StoredReading, StoredRun, StoredStudy, StudyIdentity
from toggle_edge.store.studies import Store, open_store

__all__ = [
    "DEFAULT_URL",
    "Store",
    "StoredBundle",
    "StoredReading",
    "StoredRun",
    "StoredStudy",
    "StudyIdentity",
    "open_store",
]
