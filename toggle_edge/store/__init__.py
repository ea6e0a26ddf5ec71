"""What is kept between commands, and read back by all of them."""

from toggle_edge.store.database import Store, open_store
from toggle_edge.store.engine import DEFAULT_URL
from toggle_edge.store.rows import StoredBundle, StoredRun, StoredStudy, StudyIdentity

__all__ = ["DEFAULT_URL", "Store", "StoredBundle", "StoredRun", "StoredStudy", "StudyIdentity", "open_store"]
