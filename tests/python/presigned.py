"""Prints presigned URLs, one a line: METHOD BUCKET PREFIX COUNT."""

import sys

from clients import s3

method, bucket, prefix, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
client = s3()
for number in range(count):
    parameters = {"Bucket": bucket, "Key": f"{prefix}{number}"}
    print(client.generate_presigned_url(method, Params=parameters, ExpiresIn=3600))
