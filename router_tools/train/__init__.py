"""LoRA fine-tuning of router checkpoints: rows, shorter plans, the loop, and the adapter that comes out."""

from router_tools.train.options import TrainOptions
from router_tools.train.run import train

__all__ = ["TrainOptions", "train"]
