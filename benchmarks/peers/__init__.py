"""Our server beside others that hold the same checkpoints: `make peers` (docs/performance.md)."""
