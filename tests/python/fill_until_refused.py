"""Writes objects until the network is full: the refusal is 503 SlowDown, and all that was acknowledged is there."""

from botocore.exceptions import ClientError

from clients import body_of, s3

client = s3()
client.create_bucket(Bucket="full")
body = body_of("full", 20_000_000)
written = []
for index in range(200):
    try:
        client.put_object(Bucket="full", Key=str(index), Body=str(index).encode() + body)
        written.append(index)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        assert (status, error.response["Error"]["Code"]) == (503, "SlowDown"), error
        break
else:
    raise AssertionError("a small network took 4 GB")
assert written, "nothing fitted"
for index in written:
    got = client.get_object(Bucket="full", Key=str(index))["Body"].read()
    assert got == str(index).encode() + body, index
keys = {item["Key"] for item in client.list_objects_v2(Bucket="full")["Contents"]}
assert keys == {str(index) for index in written}, keys
print("held:", len(written), "objects")
