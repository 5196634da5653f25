"""Text under a token budget: what plans and JSON for a client's schema have in common."""
