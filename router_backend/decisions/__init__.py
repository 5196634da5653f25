"""Decisions: how likely a checkpoint makes each of the answers that are allowed. Nothing is drawn or written."""
