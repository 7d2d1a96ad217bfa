"""Reads an event stream with one of Python's libraries, and prints the result of each envelope as a line of JSON.

Arguments: requests, httpx-sse or sseclient-py; the URL; the service key. Ends with the event `end`.
"""

import json
import sys


def with_requests(url, headers):
    """Lines as text, as most scripts read a stream: requests splits them where str.splitlines does."""
    import requests

    name, data = "", []
    with requests.get(url, headers=headers, stream=True, timeout=20) as reply:
        for line in reply.iter_lines(chunk_size=1, decode_unicode=True):
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif line == "" and data:
                yield name, "\n".join(data)
                name, data = "", []


def with_httpx_sse(url, headers):
    import httpx
    from httpx_sse import connect_sse

    with httpx.Client(timeout=20) as client, connect_sse(client, "GET", url, headers=headers) as source:
        for event in source.iter_sse():
            yield event.event, event.data


def with_sseclient(url, headers):
    import requests
    import sseclient

    with requests.get(url, headers=headers, stream=True, timeout=20) as reply:
        for event in sseclient.SSEClient(reply.iter_content(chunk_size=None)).events():
            yield event.event, event.data


READERS = {"requests": with_requests, "httpx-sse": with_httpx_sse, "sseclient-py": with_sseclient}
reader, url, key = sys.argv[1:]
for name, data in READERS[reader](url, {"Authorization": f"Bearer {key}"}):
    if name == "end":
        break
    print(json.dumps(json.loads(data)["result"]), flush=True)
