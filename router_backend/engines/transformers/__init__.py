"""The transformers engine: loads a checkpoint in a rung's precision, and decodes with a loop of our own.

The loop joins grammar, drafts and prefix cache; it knows torch tensors and token ids. `load.py` knows checkpoints.
"""
