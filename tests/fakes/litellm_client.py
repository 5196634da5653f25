"""What a program that uses LiteLLM does with us: run by tests/server/test_openai_clients.py, with LiteLLM's own Python.

python tests/fakes/litellm_client.py URL KEY     # prints one JSON object
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it fetches a list of prices

import litellm

litellm.telemetry = False
litellm.suppress_debug_info = True
PLAIN = {"type": "text"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


def main(url: str, key: str) -> dict[str, Any]:
    where: dict[str, Any] = {"api_base": f"{url}/v1", "api_key": key, "max_retries": 0, "seed": 1}
    user = [{"role": "user", "content": "Prove that the sum of two odd numbers is even."}]
    chat: dict[str, Any] = {"model": "openai/router", "messages": user, **where}

    plan = litellm.completion(max_tokens=600, **chat)
    schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    place = litellm.completion(max_tokens=80, response_format=schema, **chat)
    pieces = list(
        litellm.completion(
            max_tokens=12, response_format=PLAIN, stream=True, stream_options={"include_usage": True}, **chat
        )
    )
    later = asyncio.run(litellm.acompletion(max_tokens=8, response_format=PLAIN, **chat))
    prompt = litellm.text_completion(
        model="text-completion-openai/router",
        prompt="Once upon",
        max_tokens=8,
        extra_body={"response_format": PLAIN},
        **where,
    )
    return {
        "plan": plan.choices[0].message.content,
        "plan_ended": plan.choices[0].finish_reason,
        "plan_tokens": plan.usage.completion_tokens,
        "place": place.choices[0].message.content,
        "streamed": "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices),
        "streamed_tokens": [piece.usage.completion_tokens for piece in pieces if getattr(piece, "usage", None)],
        "async": later.choices[0].message.content,
        "completion": prompt.choices[0].text,
        "too_small": failure(lambda: litellm.completion(max_tokens=10, **chat)),
        "wrong_key": failure(lambda: litellm.completion(**{**chat, "api_key": "sk-wrong"})),
    }


def failure(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
