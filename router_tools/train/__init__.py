"""LoRA fine-tuning of router checkpoints: rows, shorter plans, the loop, and the adapter that comes out."""

from router_tools.train.options import TrainOptions as TrainOptions
from router_tools.train.run import train as train
