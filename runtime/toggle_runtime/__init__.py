"""The on-device package: control plane in the standard library, worker in numpy and an inference engine.

Runs on Python 3.8 and later, knows nothing of the host package, and is shipped as one `.pyz`.
"""

__version__ = "0.1.0"

PROTOCOL_VERSION = 4
"""Version of the JSON lines that host and agent exchange. Either side refuses another version."""
