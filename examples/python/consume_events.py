"""Follows the channel of a conversation over server-sent events, until the conversation ends.

    PLATFORM_URL=http://127.0.0.1:8081 SERVICE_KEY=… python consume_events.py call-7
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx


def follow(conversation: str) -> Iterator[dict[str, Any]]:
    url = f"{os.environ['PLATFORM_URL']}/platform/v1/conversations/{conversation}/events?from=0"
    headers = {"authorization": f"Bearer {os.environ['SERVICE_KEY']}"}
    # The service sends a comment every 15 seconds, so a connection without data for longer is lost.
    with httpx.Client(timeout=30) as client:
        while True:
            try:
                with client.stream("GET", url, headers=headers) as response:
                    if response.status_code < 500:
                        response.raise_for_status()
                        for event in events(response.iter_lines()):
                            if event.get("event") == "end":
                                return
                            if "event" in event:
                                continue  # such as `progress`, which is not on the channel
                            yield json.loads(event["data"])
                            # Set after the event is processed: unprocessed events are sent again.
                            headers["last-event-id"] = event["id"]
            except httpx.TransportError as error:
                print("reconnecting:", error, file=sys.stderr)
            # The stream was closed without `end`, for example by a deployment.
            time.sleep(0.5)


def events(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Yields the fields of each event. A result with line breaks is in several `data` lines."""
    event: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if name:
            value = value.removeprefix(" ")
            event[name] = f"{event[name]}\n{value}" if name in event else value
        elif not line and "data" in event:
            yield event
            event = {}


if __name__ == "__main__":
    for envelope in follow(sys.argv[1]):
        print(json.dumps(envelope), flush=True)
