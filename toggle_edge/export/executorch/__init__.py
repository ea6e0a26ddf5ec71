"""The `executorch-xnnpack` target: what runs here, what runs in a process that sees the overlay, and the runner."""

EXECUTORCH = "executorch-xnnpack"
