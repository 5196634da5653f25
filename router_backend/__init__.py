"""ZeroGPU Router Backend: serves router checkpoints behind one contract, every answer a whole routing plan."""

__version__ = "0.1.0"
