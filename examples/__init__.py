"""Programs that use a router, to read and to copy: `python -m examples.graph`."""
