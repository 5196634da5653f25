"""`merge`: a router checkpoint out of a base and a LoRA adapter."""

from router_tools.merge.run import MergeOptions, merge

__all__ = ["MergeOptions", "merge"]
