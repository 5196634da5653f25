"""The Space's door: the same app, where the GPU is lent for each request (ZeroGPU)."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
# transformers reads weights in threads of its own, which ZeroGPU's stand-in for CUDA does not reach.
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")

import spaces  # noqa: F401 - before torch is

from router_backend.space.door import serve

__all__ = ["serve"]
