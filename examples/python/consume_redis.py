"""Follows the channel of a conversation in Redis with a consumer group, until the conversation ends.

Redis keeps the position of the group, and what each consumer has read and not confirmed. The stream's key is
`channel.redisStream` in the reply to PUT:

    REDIS_URL=redis://127.0.0.1:6379 python consume_redis.py '{cb:17}:channel:…'
"""

import os
import sys

import redis

GROUP = "platform"
# Unchanged by a restart. Only one consumer may read a conversation at a time, or its order is lost.
CONSUMER = "consumer-1"


def follow(client: redis.Redis, stream: str) -> None:
    try:
        # Before the first result, there is no stream.
        client.xgroup_create(stream, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise
    # First what this consumer has read and not confirmed before a crash, then what is new.
    position = "0"
    while True:
        streams = client.xreadgroup(GROUP, CONSUMER, {stream: position}, count=100, block=5_000)
        entries = streams[0][1] if streams else []
        if position == "0" and not entries:
            position = ">"
        for entry, fields in entries:
            if "envelope" in fields:
                print(fields["envelope"], flush=True)
            # After it is handled: what was not handled comes again.
            client.xack(stream, GROUP, entry)
            if "end" in fields:
                return


if __name__ == "__main__":
    with redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, socket_timeout=10) as connection:
        follow(connection, sys.argv[1])
