"""The S3 calls of this release, as boto3 makes them, each with its negative twin."""

import os
import urllib.error
import urllib.request

from clients import body_of, error_of, s3

client = s3()
MIB = 1024 * 1024


def buckets():
    client.create_bucket(Bucket="alpha")
    client.create_bucket(Bucket="beta")
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["alpha", "beta"]
    client.head_bucket(Bucket="alpha")
    assert error_of(client.head_bucket, Bucket="nobody")[0] == 404
    client.delete_bucket(Bucket="beta")
    assert error_of(client.delete_bucket, Bucket="beta") == (404, "NoSuchBucket")
    client.put_object(Bucket="alpha", Key="x", Body=b"x")
    assert error_of(client.delete_bucket, Bucket="alpha") == (409, "BucketNotEmpty")
    client.delete_object(Bucket="alpha", Key="x")
    assert error_of(client.create_bucket, Bucket="Not_A_Bucket")[0] == 400


def objects_of_every_size():
    for length in [0, 1, 15, 16, 1023, 16 * 1024, 100_000, MIB - 1, MIB, MIB + 1, 4 * MIB, 4 * MIB + 1, 9_999_999]:
        body = body_of(f"size {length}", length)
        put = client.put_object(Bucket="alpha", Key=f"size/{length}", Body=body)
        assert "-" in put["ETag"], put["ETag"]
        got = client.get_object(Bucket="alpha", Key=f"size/{length}")
        assert got["Body"].read() == body, length
        assert got["ETag"] == put["ETag"]
        assert got["ContentLength"] == length
        cid = got["ResponseMetadata"]["HTTPHeaders"]["x-holdfast-cid"]
        assert cid.startswith("baf"), cid
        head = client.head_object(Bucket="alpha", Key=f"size/{length}")
        assert (head["ContentLength"], head["ETag"]) == (length, put["ETag"])


def ranges():
    body = body_of("ranges", 7 * MIB + 12_345)
    client.put_object(Bucket="alpha", Key="ranges", Body=body)
    size = len(body)
    cases = [(0, 0), (0, 65_535), (16_384, 16_384), (MIB - 1, MIB), (MIB + 5, 3 * MIB + 77), (size - 1, size - 1)]
    cases += [((i * 1_234_567) % size, min((i * 1_234_567) % size + 65_535, size - 1)) for i in range(20)]
    for first, last in cases:
        got = client.get_object(Bucket="alpha", Key="ranges", Range=f"bytes={first}-{last}")
        assert got["Body"].read() == body[first : last + 1], (first, last)
        assert got["ContentRange"] == f"bytes {first}-{last}/{size}"
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    got = client.get_object(Bucket="alpha", Key="ranges", Range=f"bytes={size - 10}-")
    assert got["Body"].read() == body[-10:]
    got = client.get_object(Bucket="alpha", Key="ranges", Range="bytes=-1000")
    assert got["Body"].read() == body[-1000:]
    got = client.get_object(Bucket="alpha", Key="ranges", Range=f"bytes=5-{size * 2}")
    assert got["Body"].read() == body[5:]
    assert error_of(client.get_object, Bucket="alpha", Key="ranges", Range=f"bytes={size}-") == (416, "InvalidRange")


def metadata():
    client.put_object(
        Bucket="alpha",
        Key="meta/über 文件+&=.bin",
        Body=b"bytes",
        Metadata={"epoch": "7", "run-id": "a b c"},
        ContentType="application/x-tar",
        ContentEncoding="zstd",
        ContentDisposition='attachment; filename="x.tar"',
        ContentLanguage="en",
        CacheControl="max-age=60",
    )
    head = client.head_object(Bucket="alpha", Key="meta/über 文件+&=.bin")
    assert head["Metadata"] == {"epoch": "7", "run-id": "a b c"}, head["Metadata"]
    assert head["ContentType"] == "application/x-tar"
    assert head["ContentEncoding"] == "zstd"
    assert head["ContentDisposition"] == 'attachment; filename="x.tar"'
    assert head["ContentLanguage"] == "en"
    assert head["CacheControl"] == "max-age=60"


def conditionals():
    etag = client.put_object(Bucket="alpha", Key="if", Body=b"one")["ETag"]
    assert client.get_object(Bucket="alpha", Key="if", IfMatch=etag)["Body"].read() == b"one"
    assert error_of(client.get_object, Bucket="alpha", Key="if", IfMatch='"other"')[0] == 412
    assert error_of(client.get_object, Bucket="alpha", Key="if", IfNoneMatch=etag)[0] == 304
    assert error_of(client.put_object, Bucket="alpha", Key="if", Body=b"two", IfNoneMatch="*")[0] == 412
    assert client.get_object(Bucket="alpha", Key="if")["Body"].read() == b"one"


def overwriting_and_deleting():
    first = client.put_object(Bucket="alpha", Key="again", Body=b"first")["ETag"]
    second = client.put_object(Bucket="alpha", Key="again", Body=b"second")["ETag"]
    assert first != second
    assert client.get_object(Bucket="alpha", Key="again")["Body"].read() == b"second"
    client.delete_object(Bucket="alpha", Key="again")
    assert error_of(client.get_object, Bucket="alpha", Key="again") == (404, "NoSuchKey")
    client.delete_object(Bucket="alpha", Key="again")


def listings():
    names = [f"list/{folder}/{index:03}" for folder in "abc" for index in range(30)] + ["list/top"]
    for name in names:
        client.put_object(Bucket="alpha", Key=name, Body=name.encode())
    found = []
    for page in client.get_paginator("list_objects_v2").paginate(
        Bucket="alpha", Prefix="list/", PaginationConfig={"PageSize": 7}
    ):
        found += [item["Key"] for item in page["Contents"]]
        assert page["KeyCount"] <= 7
    assert found == sorted(names)
    page = client.list_objects_v2(Bucket="alpha", Prefix="list/", Delimiter="/")
    assert [item["Prefix"] for item in page["CommonPrefixes"]] == ["list/a/", "list/b/", "list/c/"]
    assert [item["Key"] for item in page["Contents"]] == ["list/top"]
    page = client.list_objects_v2(Bucket="alpha", Prefix="list/", StartAfter="list/c/028")
    assert [item["Key"] for item in page["Contents"]] == ["list/c/029", "list/top"]
    assert error_of(client.list_objects_v2, Bucket="nobody") == (404, "NoSuchBucket")


def multipart():
    parts = [body_of("part 1", 5 * MIB), body_of("part 2", 5 * MIB + 321), body_of("part 3", 77)]
    upload = client.create_multipart_upload(Bucket="alpha", Key="multi", Metadata={"kind": "parts"})["UploadId"]
    etags = {}
    for number in [2, 1, 3]:
        # The second attempt at a part replaces the first.
        client.upload_part(Bucket="alpha", Key="multi", UploadId=upload, PartNumber=number, Body=b"to be replaced")
        answer = client.upload_part(
            Bucket="alpha", Key="multi", UploadId=upload, PartNumber=number, Body=parts[number - 1]
        )
        etags[number] = answer["ETag"]
    assert error_of(client.head_object, Bucket="alpha", Key="multi")[0] == 404
    listed = client.list_parts(Bucket="alpha", Key="multi", UploadId=upload)["Parts"]
    assert [(part["PartNumber"], part["Size"]) for part in listed] == [(n, len(parts[n - 1])) for n in (1, 2, 3)]
    uploads = client.list_multipart_uploads(Bucket="alpha")["Uploads"]
    assert [(item["Key"], item["UploadId"]) for item in uploads] == [("multi", upload)]

    def complete(numbers, tags=etags):
        return {
            "Bucket": "alpha",
            "Key": "multi",
            "UploadId": upload,
            "MultipartUpload": {"Parts": [{"PartNumber": n, "ETag": tags[n]} for n in numbers]},
        }

    assert error_of(client.complete_multipart_upload, **complete([2, 1, 3])) == (400, "InvalidPartOrder")
    wrong = {**etags, 2: '"0123456789abcdef-1"'}
    assert error_of(client.complete_multipart_upload, **complete([1, 2, 3], wrong)) == (400, "InvalidPart")
    small = {**complete([3, 1])}
    assert error_of(client.complete_multipart_upload, **small) == (400, "InvalidPartOrder")
    client.complete_multipart_upload(**complete([1, 2, 3]))
    got = client.get_object(Bucket="alpha", Key="multi")
    assert got["Body"].read() == b"".join(parts)
    assert got["Metadata"] == {"kind": "parts"}
    first, last = 5 * MIB - 100, 10 * MIB + 400
    ranged = client.get_object(Bucket="alpha", Key="multi", Range=f"bytes={first}-{last}")
    assert ranged["Body"].read() == b"".join(parts)[first : last + 1]

    upload = client.create_multipart_upload(Bucket="alpha", Key="small")["UploadId"]
    tags = {
        n: client.upload_part(Bucket="alpha", Key="small", UploadId=upload, PartNumber=n, Body=b"tiny")["ETag"]
        for n in (1, 2)
    }
    too_small = {
        "Bucket": "alpha",
        "Key": "small",
        "UploadId": upload,
        "MultipartUpload": {"Parts": [{"PartNumber": n, "ETag": tags[n]} for n in (1, 2)]},
    }
    assert error_of(client.complete_multipart_upload, **too_small) == (400, "EntityTooSmall")
    client.abort_multipart_upload(Bucket="alpha", Key="small", UploadId=upload)
    assert error_of(client.list_parts, Bucket="alpha", Key="small", UploadId=upload) == (404, "NoSuchUpload")
    assert "Uploads" not in client.list_multipart_uploads(Bucket="alpha")


def checksums():
    from botocore.exceptions import ClientError

    for algorithm in ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"]:
        put = client.put_object(Bucket="alpha", Key="sum", Body=b"summed", ChecksumAlgorithm=algorithm)
        assert put[f"Checksum{algorithm}"], put
    status = error_of(client.put_object, Bucket="alpha", Key="bad", Body=b"x", ChecksumSHA256="A" * 43 + "=")
    assert status == (400, "BadDigest"), status
    status = error_of(client.put_object, Bucket="alpha", Key="bad", Body=b"x", ContentMD5="AAAAAAAAAAAAAAAAAAAAAA==")
    assert status == (400, "BadDigest"), status
    try:
        client.head_object(Bucket="alpha", Key="bad")
        raise AssertionError("an object with a wrong checksum became visible")
    except ClientError:
        pass


def presigned_and_public():
    client.put_object(Bucket="alpha", Key="signed", Body=b"by URL")
    url = client.generate_presigned_url("get_object", Params={"Bucket": "alpha", "Key": "signed"}, ExpiresIn=60)
    assert urllib.request.urlopen(url).read() == b"by URL"
    try:
        urllib.request.urlopen(url.replace("signed?", "other?"))
        raise AssertionError("a URL for another key passed")
    except urllib.error.HTTPError as error:
        assert error.code == 403, error.code
    anonymous = f"{os.environ['HOLDFAST_S3']}/alpha/signed"
    try:
        urllib.request.urlopen(anonymous)
        raise AssertionError("a private object was served to anybody")
    except urllib.error.HTTPError as error:
        assert error.code == 403, error.code
    client.create_bucket(Bucket="public", ACL="public-read")
    client.put_object(Bucket="public", Key="open", Body=b"for all")
    assert urllib.request.urlopen(f"{os.environ['HOLDFAST_S3']}/public/open").read() == b"for all"


def public_cids_name_the_bytes():
    """The root CID of a public object of one block is that of the bytes; known since BLAKE3's own vectors."""
    client.put_object(Bucket="public", Key="empty-is-not-hashed", Body=b"IETF")
    head = client.head_object(Bucket="public", Key="empty-is-not-hashed")
    # BLAKE3("IETF") = 83a2de1ee6f4e6ab686889248f4ec0cf4cc5709446a682ffd1cbb4d6165181e2, published with the function.
    digest = "83a2de1ee6f4e6ab686889248f4ec0cf4cc5709446a682ffd1cbb4d6165181e2"
    import base64

    raw = bytes([0x01, 0x55, 0x1E, 0x20]) + bytes.fromhex(digest)
    expected = "b" + base64.b32encode(raw).decode().lower().rstrip("=")
    cid = head["ResponseMetadata"]["HTTPHeaders"]["x-holdfast-cid"]
    assert cid == expected, (cid, expected)
    # Public blocks are shared: the same bytes under another key have the same name.
    client.put_object(Bucket="public", Key="twin", Body=b"IETF")
    twin = client.head_object(Bucket="public", Key="twin")["ResponseMetadata"]["HTTPHeaders"]["x-holdfast-cid"]
    assert twin == cid
    client.delete_object(Bucket="public", Key="empty-is-not-hashed")
    assert client.get_object(Bucket="public", Key="twin")["Body"].read() == b"IETF"
    zeros = bytes(5 * MIB)
    client.put_object(Bucket="public", Key="zeros", Body=zeros)
    assert client.get_object(Bucket="public", Key="zeros")["Body"].read() == zeros
    # Private ones are not: encryption draws a fresh key for every attempt.
    cids = set()
    for _ in range(2):
        client.put_object(Bucket="alpha", Key="fresh", Body=b"IETF")
        cids.add(client.head_object(Bucket="alpha", Key="fresh")["ResponseMetadata"]["HTTPHeaders"]["x-holdfast-cid"])
    assert len(cids) == 2 and expected not in cids


for part in [
    buckets,
    objects_of_every_size,
    ranges,
    metadata,
    conditionals,
    overwriting_and_deleting,
    listings,
    multipart,
    checksums,
    presigned_and_public,
    public_cids_name_the_bytes,
]:
    part()
    print("held:", part.__name__)
