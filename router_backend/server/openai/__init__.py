"""The API that OpenAI's clients speak: `/v1/chat/completions`, `/v1/completions`, `/v1/models`."""
