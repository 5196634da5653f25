"""Decoding of our own, for models that give logits: grammar, drafts, prefix cache, and the loop that joins them.

It knows torch tensors and token ids; checkpoints and their precisions are `engines.transformers`' business.
"""
