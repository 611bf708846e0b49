"""S3 over TLS: SigV4 and unsigned trailers work for a client that trusts the certificate, and for no other."""

import os
import socket
import sys
from urllib.parse import urlparse

import botocore.exceptions
from clients import body_of, s3

CA = sys.argv[1]
trusting = s3(verify=CA)

trusting.create_bucket(Bucket="over-tls")
body = body_of("tls", 9_000_001)
sent = {}
trusting.meta.events.register("before-send.s3.PutObject", lambda request, **_: sent.update(request.headers))
put = trusting.put_object(Bucket="over-tls", Key="object", Body=body, ChecksumAlgorithm="CRC32")
assert put["ResponseMetadata"]["HTTPStatusCode"] == 200
trailer = {name.lower(): value for name, value in sent.items()}["x-amz-content-sha256"]
trailer = trailer.decode() if isinstance(trailer, bytes) else trailer
assert trailer == "STREAMING-UNSIGNED-PAYLOAD-TRAILER", trailer
assert trusting.get_object(Bucket="over-tls", Key="object")["Body"].read() == body
part = trusting.get_object(Bucket="over-tls", Key="object", Range="bytes=1000000-5000000")["Body"].read()
assert part == body[1_000_000:5_000_001]
print("held: put with an unsigned trailer, get and range")

url = trusting.generate_presigned_url("get_object", Params={"Bucket": "over-tls", "Key": "object"})
import ssl
import urllib.request

with urllib.request.urlopen(url, context=ssl.create_default_context(cafile=CA)) as answer:
    assert answer.read() == body
print("held: presigned URL")

for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    context = ssl.create_default_context(cafile=CA)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    where = urlparse(os.environ["HOLDFAST_S3"])
    for name in ("localhost", "127.0.0.1"):
        with socket.create_connection((where.hostname, where.port), timeout=10) as tcp:
            with context.wrap_socket(tcp, server_hostname=name) as stream:
                assert stream.selected_alpn_protocol() == "http/1.1"
print("held: TLS 1.2 and 1.3 with ALPN")

try:
    s3().list_buckets()
except botocore.exceptions.SSLError as error:
    assert "CERTIFICATE_VERIFY_FAILED" in str(error), error
else:
    raise AssertionError("a client without our certificate was served")
print("held: no trust, no service")

where = urlparse(os.environ["HOLDFAST_S3"])
with socket.create_connection((where.hostname, where.port), timeout=10) as tcp:
    tcp.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = bytearray()
    try:
        while piece := tcp.recv(4096):
            answer += piece
    except ConnectionResetError:
        pass
assert not answer.startswith(b"HTTP/"), answer
assert trusting.list_buckets()["Buckets"]
print("held: plain HTTP on the TLS port is turned away at once")
