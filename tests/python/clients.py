"""What the Python tests share: a boto3 client for the network under test."""

import os

import boto3
from botocore.config import Config


def s3(retries=0, **more):
    """A client that does not retry by itself unless asked, so that each answer is seen."""
    config = Config(
        retries={"max_attempts": retries, "mode": "standard"},
        s3={"addressing_style": "path"},
        signature_version=more.pop("signature_version", "s3v4"),
    )
    return boto3.client("s3", endpoint_url=os.environ["HOLDFAST_S3"], region_name="us-east-1", config=config, **more)


def body_of(seed, length):
    """Deterministic bytes that do not repeat."""
    import hashlib

    out = bytearray()
    counter = 0
    while len(out) < length:
        out += hashlib.sha256(f"{seed} {counter}".encode()).digest()
        counter += 1
    return bytes(out[:length])


def error_of(call, *args, **kwargs):
    """(HTTP status, S3 code) of a call that must fail."""
    from botocore.exceptions import ClientError

    try:
        call(*args, **kwargs)
    except ClientError as error:
        return error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
    raise AssertionError(f"{call} succeeded with {kwargs}")
