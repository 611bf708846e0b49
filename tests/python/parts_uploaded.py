"""Returns once an unfinished upload of a bucket has two parts.

    parts_uploaded.py BUCKET
"""

import sys
import time

from clients import s3

client, bucket = s3(), sys.argv[1]
deadline = time.monotonic() + 60
while time.monotonic() < deadline:
    try:
        uploads = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    except client.exceptions.NoSuchBucket:
        uploads = []
    for upload in uploads:
        parts = client.list_parts(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        if len(parts.get("Parts", [])) >= 2:
            print("two parts")
            sys.exit(0)
    time.sleep(0.01)
sys.exit("no upload came to two parts within a minute")
