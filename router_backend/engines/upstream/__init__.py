"""A checkpoint that another server decodes: llama-server, vLLM, or whatever speaks OpenAI's completions.

`wire` carries calls, `probe` finds out what the server honours, `model` is the engine and brings them together.
"""
