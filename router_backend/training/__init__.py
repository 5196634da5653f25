"""LoRA fine-tuning of router checkpoints: rows, shorter plans, the loop, and the adapter that comes out."""

from router_backend.training.run import TrainOptions as TrainOptions
from router_backend.training.run import train as train
