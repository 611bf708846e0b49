"""What clients get wrong, or do on purpose: a clear error each, never a 5xx, and nothing lost."""

import datetime
import http.client
import os
import re
import socket
from unittest import mock
from urllib.parse import urlparse

import boto3
from botocore.config import Config

from clients import error_of, s3

client = s3()
endpoint = urlparse(os.environ["HOLDFAST_S3"])
client.create_bucket(Bucket="strict")
client.put_object(Bucket="strict", Key="kept", Body=b"kept")


def raw(method, path, headers=(), body=b""):
    """A request as it is, with no client's help. (status, S3 code)."""
    connection = http.client.HTTPConnection(endpoint.hostname, endpoint.port, timeout=30)
    connection.putrequest(method, path)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    if body:
        connection.send(body)
    answer = connection.getresponse()
    text = answer.read().decode("utf-8", "replace")
    code = re.search("<Code>(.*?)</Code>", text)
    return answer.status, code.group(1) if code else ""


def wrong_keys():
    stranger = s3(aws_access_key_id="AKIANOBODY", aws_secret_access_key="x" * 40)
    assert error_of(stranger.list_buckets) == (403, "InvalidAccessKeyId")
    access = boto3.Session().get_credentials().access_key
    forger = s3(aws_access_key_id=access, aws_secret_access_key="x" * 40)
    assert error_of(forger.get_object, Bucket="strict", Key="kept") == (403, "SignatureDoesNotMatch")
    assert error_of(forger.put_object, Bucket="strict", Key="kept", Body=b"forged")[0] == 403


def no_signature():
    assert raw("GET", "/strict/kept") == (403, "AccessDenied")
    assert raw("PUT", "/strict/kept", [("Content-Length", "1")], b"x")[0] == 403


def signature_version_2():
    old = s3(signature_version="s3")
    status, code = error_of(old.get_object, Bucket="strict", Key="kept")
    assert (status, code) in [(400, "InvalidRequest"), (403, "AccessDenied")], (status, code)
    status, _ = raw("GET", "/strict/kept?AWSAccessKeyId=A&Signature=B&Expires=9999999999")
    assert status in (400, 403), status


def clock_skew():
    import botocore.auth
    from botocore.awsrequest import AWSRequest

    def status_when(clock):
        # The client's own signer, in Python: the native one reads the system's clock.
        request = AWSRequest("GET", f"{endpoint.geturl()}/strict?list-type=2", {"x-amz-content-sha256": "UNSIGNED-PAYLOAD"})
        signer = botocore.auth.S3SigV4Auth(boto3.Session().get_credentials(), "s3", "us-east-1")
        with mock.patch.object(botocore.auth, "get_current_datetime", lambda *a, **k: clock):
            signer.add_auth(request)
        return raw("GET", "/strict?list-type=2", request.headers.items())

    now = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None)
    assert status_when(now)[0] == 200, status_when(now)
    assert status_when(now - datetime.timedelta(hours=2)) == (403, "RequestTimeTooSkewed")
    assert status_when(now + datetime.timedelta(hours=2)) == (403, "RequestTimeTooSkewed")


def unknown_things():
    assert error_of(client.get_object, Bucket="nobody", Key="x") == (404, "NoSuchBucket")
    assert error_of(client.put_object, Bucket="nobody", Key="x", Body=b"x") == (404, "NoSuchBucket")
    assert error_of(client.get_object, Bucket="strict", Key="nothing") == (404, "NoSuchKey")
    assert error_of(client.upload_part, Bucket="strict", Key="k", UploadId="nonsense", PartNumber=1, Body=b"x") == (
        404,
        "NoSuchUpload",
    )
    assert error_of(client.get_bucket_inventory_configuration, Bucket="strict", Id="x") == (501, "NotImplemented")


def huge_headers():
    try:
        status, _ = raw("GET", "/strict/kept", [("x-long", "a" * 200_000)])
        assert 400 <= status < 500, status
    except (ConnectionError, http.client.HTTPException):
        pass
    status, _ = raw("GET", "/strict/kept", [(f"x-h-{i}", "v") for i in range(90)])
    assert status == 403, status
    too_long = "k" * 1025
    assert error_of(client.put_object, Bucket="strict", Key=too_long, Body=b"x") == (400, "KeyTooLongError")


def body_shorter_than_promised():
    url = client.generate_presigned_url("put_object", Params={"Bucket": "strict", "Key": "short"}, ExpiresIn=60)
    path = url.split(endpoint.netloc, 1)[1]
    with socket.create_connection((endpoint.hostname, endpoint.port)) as wire:
        wire.sendall(f"PUT {path} HTTP/1.1\r\nHost: {endpoint.netloc}\r\nContent-Length: 3000000\r\n\r\n".encode())
        wire.sendall(b"x" * 1_500_000)
    with socket.create_connection((endpoint.hostname, endpoint.port)) as wire:
        wire.sendall(f"PUT {path} HTTP/1.1\r\nHost: {endpoint.netloc}\r\nContent-Length: 3000000\r\n\r\n".encode())
        wire.sendall(b"x" * 1_500_000)
        wire.shutdown(socket.SHUT_WR)
        answer = wire.recv(65536)
        assert b" 200 " not in answer.split(b"\r\n", 1)[0], answer
    assert error_of(client.head_object, Bucket="strict", Key="short")[0] == 404


def garbage_on_the_wire():
    for junk in [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200, b"nonsense\r\n\r\n", b"\x00" * 4096]:
        with socket.create_connection((endpoint.hostname, endpoint.port)) as wire:
            wire.settimeout(30)
            wire.sendall(junk)
            wire.shutdown(socket.SHUT_WR)
            while wire.recv(65536):
                pass


for part in [
    wrong_keys,
    no_signature,
    signature_version_2,
    clock_skew,
    unknown_things,
    huge_headers,
    body_shorter_than_promised,
    garbage_on_the_wire,
]:
    part()
    print("held:", part.__name__)
# After all of it, what was there is there.
assert client.get_object(Bucket="strict", Key="kept")["Body"].read() == b"kept"
