"""Text under a token budget: what plans and JSON for a client's schema have in common.

`stages` is what a script asks of a model, `grammar` and `clip` what a text may hold, `writer` brings both together.
"""
