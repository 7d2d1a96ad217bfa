"""Posts the results of work items."""

import asyncio
import json
import random
from datetime import datetime
from time import time
from typing import Any

import httpx

RETRYABLE = {408, 429, 500, 502, 503, 504}


async def post_callback(callback: dict[str, Any], result: Any) -> dict[str, Any]:
    """Posts a result, and repeats the request until the deadline. Returns the receipt.

    `callback` is the object that the platform sends with the work. `result` is JSON; {"error": {"code": …, "message": …}} reports a
    failure.
    """
    if callback["carrier"] == "body":
        if not isinstance(result, dict):
            raise TypeError("a token in the body needs a result that is an object")
        result = {**result, callback["name"]: callback["token"]}
    body = json.dumps(result)  # serialized only once, because a retry must send the same bytes
    until = datetime.fromisoformat(callback["deadline"]).timestamp()
    pause = 0.25
    async with httpx.AsyncClient(timeout=10) as client:
        while True:
            wait = pause
            try:
                reply = await client.request(
                    callback["method"], callback["url"], headers=callback["headers"], content=body
                )
            except httpx.TransportError as error:
                failure = repr(error)
            else:
                if reply.is_success:
                    return reply.json()
                failure = f"{reply.status_code} {reply.text}"
                if reply.status_code not in RETRYABLE:
                    raise RuntimeError(f"the result was not accepted: {failure}")
                seconds = reply.headers.get("retry-after", "")
                wait = max(wait, int(seconds) if seconds.isdecimal() else 0)
            wait *= random.uniform(1, 1.25)
            left = until - time() - 0.25  # the last attempt is just before the deadline
            if left <= 0:
                raise RuntimeError(f"the result was not accepted before the deadline: {failure}")
            await asyncio.sleep(min(wait, left))
            pause = min(2 * pause, 8)
