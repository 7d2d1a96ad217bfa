"""A provider that posts results with one of Python's HTTP libraries, and retries as docs/providers.md says.

The argument is requests, httpx or aiohttp. Each line of the input is a callback: URL, token, deadline and body,
separated by `|`. Each line of the output is the status and the body of the last reply, separated by `|`; if the last
attempt got no reply, 0 and the error.
"""

import asyncio
import atexit
import random
import sys
import time
from datetime import datetime

RETRYABLE = {408, 429, 500, 502, 503, 504}
TIMEOUT = 10


def using_requests():
    import requests

    session = requests.Session()

    def post(url, headers, body):
        try:
            reply = session.post(url, data=body, headers=headers, timeout=TIMEOUT)
        except requests.RequestException as error:
            return 0, None, repr(error)
        return reply.status_code, reply.headers.get("Retry-After"), reply.text

    return post


def using_httpx():
    import httpx

    client = httpx.Client(timeout=TIMEOUT)

    def post(url, headers, body):
        try:
            reply = client.post(url, content=body, headers=headers)
        except httpx.HTTPError as error:
            return 0, None, repr(error)
        return reply.status_code, reply.headers.get("Retry-After"), reply.text

    return post


def using_aiohttp():
    import aiohttp

    loop = asyncio.new_event_loop()
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)

    async def open_session():
        return aiohttp.ClientSession(timeout=timeout)

    session = loop.run_until_complete(open_session())
    atexit.register(lambda: loop.run_until_complete(session.close()))

    async def send(url, headers, body):
        try:
            async with session.post(url, data=body, headers=headers) as reply:
                return reply.status, reply.headers.get("Retry-After"), await reply.text()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            return 0, None, repr(error)

    return lambda *callback: loop.run_until_complete(send(*callback))


def post_until(deadline, post, url, headers, body):
    until = datetime.fromisoformat(deadline.replace("Z", "+00:00")).timestamp()
    delay = 0.25
    while True:
        status, retry_after, text = post(url, headers, body)
        if status > 0 and status not in RETRYABLE:
            return status, text
        wait = max(delay * random.uniform(0.75, 1.25), float(retry_after or 0))
        left = until - time.time() - 0.25
        if left <= 0:
            return status, text
        time.sleep(min(wait, left))
        delay = min(2 * delay, 8)


LIBRARIES = {"requests": using_requests, "httpx": using_httpx, "aiohttp": using_aiohttp}
send = LIBRARIES[sys.argv[1]]()
for line in sys.stdin:
    url, token, deadline, body = line.rstrip("\n").split("|", 3)
    headers = {"Content-Type": "application/json", "X-Callback-Token": token}
    status, text = post_until(deadline, send, url, headers, body.encode())
    print(status, text.replace("\n", " "), sep="|", flush=True)
