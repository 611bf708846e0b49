"""Random ranges of an object equal those of the file."""

import random
import sys

from clients import s3

bucket, key, path = sys.argv[1:]
client = s3(retries=3)
expected = open(path, "rb").read()
draw = random.Random(7)
for _ in range(60):
    first = draw.randrange(len(expected))
    last = min(first + draw.randrange(1, 200_000), len(expected) - 1)
    got = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={first}-{last}")["Body"].read()
    assert got == expected[first : last + 1], (first, last)
print("ranges equal")
