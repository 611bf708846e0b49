"""A write that cannot reach its quorum answers 503 SlowDown and leaves nothing visible."""

import sys

from clients import body_of, error_of, s3

bucket, key = sys.argv[1:]
client = s3()
status, code = error_of(client.put_object, Bucket=bucket, Key=key, Body=body_of("refused", 6_000_000))
print(status, code)
small = error_of(client.put_object, Bucket=bucket, Key=key + ".small", Body=b"a few bytes")
assert small == (503, "SlowDown"), small
keys = [item["Key"] for item in client.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", [])]
print("visible:", bool(keys))
assert error_of(client.head_object, Bucket=bucket, Key=key)[0] == 404
