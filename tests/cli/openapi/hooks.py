"""What schemathesis cannot generate: tokens of work items, and event streams that end.

PLATFORM is the URL of the platform listener, KEY the service key.
"""

import itertools
import os
import uuid

import requests
import schemathesis

CONVERSATIONS = os.environ["PLATFORM"] + "/platform/v1/conversations/"
CALLBACKS = "/api/v1/webhooks/callbacks"
KINDS = itertools.cycle(["tool", "llm", "tool"])
cases = itertools.count()
platform = requests.Session()
platform.headers["Authorization"] = "Bearer " + os.environ["KEY"]


def ended_conversation():
    conversation = f"ended-{uuid.uuid4()}"
    platform.put(CONVERSATIONS + conversation).raise_for_status()
    platform.post(CONVERSATIONS + conversation + "/work-items", json={"kind": "tool"}).raise_for_status()
    platform.delete(CONVERSATIONS + conversation).raise_for_status()
    return conversation


def fresh_token():
    platform.put(CONVERSATIONS + "callbacks").raise_for_status()
    issued = platform.post(CONVERSATIONS + "callbacks/work-items", json={"kind": next(KINDS)})
    issued.raise_for_status()
    return issued.json()["callback"]["token"]


ENDED = ended_conversation()
LAST_TOKEN = fresh_token()


@schemathesis.hook
def before_call(context, case, kwargs):
    global LAST_TOKEN
    path = case.operation.path
    if path.endswith("/events"):
        # A stream of a live conversation does not end.
        wanted = (case.path_parameters or {}).get("conversationId")
        if isinstance(wanted, str) and state(wanted) == "live":
            case.path_parameters["conversationId"] = ENDED
    elif path.startswith(CALLBACKS) and case.method.upper() == "POST":
        # Of three cases, one is a first callback, one is another callback with the same token, and one is as generated.
        number = next(cases) % 3
        if number == 0:
            LAST_TOKEN = fresh_token()
        if number < 2:
            if "{token}" in path:
                case.path_parameters["token"] = LAST_TOKEN
            else:
                case.headers = dict(case.headers or {}, **{"X-Callback-Token": LAST_TOKEN})
                case.query = {}


def state(conversation):
    shown = platform.get(CONVERSATIONS + requests.utils.quote(conversation, safe=""))
    return shown.json().get("state")
