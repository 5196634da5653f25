"""Calls of a client's tools: what the checkpoint reads of them, and how a call is written under a token budget."""
