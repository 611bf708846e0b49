"""Writes through one of two gateways and reads through the other, while either of them or their database may die.

Each worker owns its keys, so it knows at any time what must be read: what was acknowledged last. A request may fail
because nobody answers or with 503, and is then made again; any other answer is a failure, and so are other bytes.
Prints a line for every tenth acknowledged write. Ends when its input ends: then both gateways must list and serve the
same, which is what was acknowledged.
"""

import os
import sys
import threading
import time

from botocore.exceptions import ClientError
from clients import body_of, s3

WORKERS = 6
KEYS = 4
SIZES = [0, 700, 90_000, 1_300_000]
PATIENCE_S = 90
BUCKET = "shared"

urls = os.environ["HOLDFAST_GATEWAYS"].split()
over = threading.Event()
lock = threading.Lock()
acknowledged = {}
counts = {"writes": 0, "tried again": 0}
failures = []


def clients():
    made = []
    for url in urls:
        os.environ["HOLDFAST_S3"] = url
        made.append(s3())
    return made


def until_answered(gateways, first, call):
    """What `call` returns from one gateway or, while that one is away or busy, from the other."""
    deadline = time.monotonic() + PATIENCE_S
    turn = first
    while True:
        try:
            return call(gateways[turn % len(gateways)])
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status != 503 or time.monotonic() > deadline:
                raise
        except Exception:
            # Refused, reset, or cut off in the middle of an answer.
            if time.monotonic() > deadline:
                raise
        with lock:
            counts["tried again"] += 1
        turn += 1
        time.sleep(0.02)


def put(key, body):
    return lambda gateway: gateway.put_object(Bucket=BUCKET, Key=key, Body=body)


def get(key):
    return lambda gateway: gateway.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def head(key):
    return lambda gateway: gateway.head_object(Bucket=BUCKET, Key=key)


def work(worker, gateways):
    number = 0
    while not over.is_set():
        key = f"{worker}/{number % KEYS}"
        body = body_of(f"{key} {number}", SIZES[(number + worker) % len(SIZES)])
        written = until_answered(gateways, number, put(key, body))
        with lock:
            acknowledged[key] = body
            counts["writes"] += 1
            if counts["writes"] % 10 == 0:
                print("acknowledged", counts["writes"], flush=True)
        # Read-after-write, by the other gateway first.
        assert until_answered(gateways, number + 1, get(key)) == body, f"{key} is not what was written"
        seen = until_answered(gateways, number + 1, head(key))
        assert seen["ETag"] == written["ETag"], f"{key}: {seen['ETag']} after {written['ETag']}"
        number += 1


def guarded(worker, gateways):
    try:
        work(worker, gateways)
    except BaseException as error:
        with lock:
            failures.append(f"worker {worker}: {error!r}")
        print("failed", flush=True)


def main():
    gateways = clients()
    gateways[0].create_bucket(Bucket=BUCKET)
    # boto3's clients may be shared by threads; making them may not.
    threads = [threading.Thread(target=guarded, args=(worker, gateways)) for worker in range(WORKERS)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
    assert not failures, failures
    for gateway in gateways:
        listed = {}
        for page in gateway.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            listed.update({item["Key"]: item["Size"] for item in page.get("Contents", [])})
        assert listed == {key: len(body) for key, body in acknowledged.items()}, listed
        for key, body in acknowledged.items():
            assert gateway.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body, key
    print("done", counts["writes"], "writes,", counts["tried again"], "requests made again", flush=True)


main()
