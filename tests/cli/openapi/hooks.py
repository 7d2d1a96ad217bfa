"""What schemathesis cannot generate: tokens of work items, and event streams that end.

PLATFORM is the URL of the platform listener, KEY the service key, PUBLIC the URL of the public one.
"""

import itertools
import os
import uuid

import requests
import schemathesis

CONVERSATIONS = os.environ["PLATFORM"] + "/platform/v1/conversations/"
CALLBACKS = "/api/v1/webhooks/callbacks"
platform = requests.Session()
platform.headers["Authorization"] = "Bearer " + os.environ["KEY"]
kinds = itertools.cycle(["tool", "llm", "tool"])
posts = itertools.count()


def issue(conversation, **fields):
    platform.put(CONVERSATIONS + conversation).raise_for_status()
    issued = platform.post(CONVERSATIONS + conversation + "/work-items", json=fields)
    issued.raise_for_status()
    return issued.json()


def ended_conversation():
    """The id of a conversation that has ended, with an event of each outcome."""
    conversation = f"ended-{uuid.uuid4()}"
    names = {"turnId": "turn-1", "toolCallId": "call_1", "name": "probe"}
    for body in [{"temperature": 21.5}, {"error": {"code": "NO_SUCH_CITY", "message": "there is no such city"}}, None]:
        item = issue(conversation, kind="tool", **names)
        if body is None:
            url = CONVERSATIONS + conversation + "/work-items/" + item["workItemId"]
            platform.delete(url, params={"reason": "no longer needed"}).raise_for_status()
        else:
            callback = item["callback"]
            requests.post(os.environ["PUBLIC"] + CALLBACKS, headers=callback["headers"], json=body).raise_for_status()
    issue(conversation, kind="llm", timeoutMs=1)
    with platform.get(CONVERSATIONS + conversation + "/events?from=0", stream=True) as events:
        next(line for line in events.iter_lines() if b"timed_out" in line)
    platform.delete(CONVERSATIONS + conversation).raise_for_status()
    return conversation


def is_live(conversation):
    shown = platform.get(CONVERSATIONS + requests.utils.quote(conversation, safe=""))
    return shown.json().get("state") == "live"


ended = ended_conversation()
token = None


@schemathesis.hook
def before_call(context, case, kwargs):
    global token
    path = case.operation.path
    if path.endswith("/events"):
        # The stream of a live conversation does not end.
        conversation = (case.path_parameters or {}).get("conversationId")
        if isinstance(conversation, str) and (conversation == "call-7" or is_live(conversation)):
            case.path_parameters["conversationId"] = ended
    elif path.startswith(CALLBACKS) and case.method.upper() == "POST":
        # Of three requests, one has a fresh token, one the same token again, and one is as generated.
        number = next(posts) % 3
        if number == 0 or token is None:
            token = issue("callbacks", kind=next(kinds), heartbeatTimeoutMs=60000)["callback"]["token"]
        if number == 2:
            return
        if "{token}" in path:
            case.path_parameters["token"] = token
        else:
            case.headers = dict(case.headers or {}, **{"X-Callback-Token": token})
            case.query = {}
        if isinstance(case.body, dict):
            case.body.pop("callbackToken", None)
