"""Follows the channel of a conversation in Redis with a consumer group, until the conversation ends.

Redis stores the position of the group, and the entries that each consumer has read and not acknowledged. The stream's
key is `channel.redisStream` in the response to PUT:

    REDIS_URL=redis://127.0.0.1:6379 python consume_redis.py '{cb:17}:channel:…'
"""

import os
import sys

import redis

GROUP = "platform"
# The same after a restart. Only one consumer may read a conversation at a time; several would break the order.
CONSUMER = "consumer-1"


def follow(client: redis.Redis, stream: str) -> None:
    try:
        # Before the first result, the stream does not exist.
        client.xgroup_create(stream, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise
    # First the entries that this consumer read and did not acknowledge before a crash, then new ones.
    position = "0"
    while True:
        streams = client.xreadgroup(GROUP, CONSUMER, {stream: position}, count=100, block=5_000)
        entries = streams[0][1] if streams else []
        if position == "0" and not entries:
            position = ">"
        for entry, fields in entries:
            if "envelope" in fields:
                print(fields["envelope"], flush=True)
            # Acknowledged after it is processed: other entries are read again after a crash.
            client.xack(stream, GROUP, entry)
            if "end" in fields:
                return


if __name__ == "__main__":
    with redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, socket_timeout=10) as connection:
        follow(connection, sys.argv[1])
