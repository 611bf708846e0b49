"""Reads `key length` lines and checks that each object is there, whole and right; listings agree."""

import sys

from clients import body_of, s3

client = s3(retries=3)
acknowledged = [line.split() for line in sys.stdin]
for key, length in acknowledged:
    got = client.get_object(Bucket="crash", Key=key)["Body"].read()
    assert got == body_of(key, int(length)), f"{key} came back wrong"
listed = set()
for page in client.get_paginator("list_objects_v2").paginate(Bucket="crash"):
    for item in page.get("Contents", []):
        listed.add(item["Key"])
        # Whatever is listed is whole, acknowledged or not.
        assert len(client.get_object(Bucket="crash", Key=item["Key"])["Body"].read()) == item["Size"]
missing = {key for key, _ in acknowledged} - listed
assert not missing, f"acknowledged but not listed: {missing}"
print(len(acknowledged), "acknowledged objects are there")
