"""What both sides of `test_space_rungs` ask."""

from __future__ import annotations

from router_backend.types import GenerateRequest, SamplingParams

RUNGS = ("bf16", "fp16", "8bit", "4bit")
REQUEST = GenerateRequest("r", "Prove that it is even.", SamplingParams(24, temperature=0))
