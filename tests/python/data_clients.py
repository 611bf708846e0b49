"""Data tools over S3: s3fs, pyarrow, obstore, MinIO's client, the PyTorch connector's client; bytes compared, and each with its negative twin.

    data_clients.py DIRECTORY    (for scratch files)
"""

import io
import os
import urllib.parse
import urllib.request

import minio
import minio.commonconfig
import minio.deleteobjects
import minio.error
import obstore
import pyarrow
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import s3fs
from obstore.exceptions import AlreadyExistsError
from obstore.store import S3Store
from s3torchconnectorclient._mountpoint_s3_client import MountpointS3Client, S3Exception

endpoint = os.environ["HOLDFAST_S3"]
host = urllib.parse.urlsplit(endpoint).netloc


def credentials():
    import configparser

    parser = configparser.ConfigParser()
    parser.read(os.environ["AWS_SHARED_CREDENTIALS_FILE"])
    profile = parser["holdfast"]
    return profile["aws_access_key_id"], profile["aws_secret_access_key"]


KEY, SECRET = credentials()
for name in ["AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"]:
    os.environ.pop(name, None)


def body_of(seed, length):
    import hashlib

    out = bytearray()
    counter = 0
    while len(out) < length:
        out += hashlib.sha256(f"{seed} {counter}".encode()).digest()
        counter += 1
    return bytes(out[:length])


def fails(kinds, call, *args, **more):
    try:
        call(*args, **more)
    except kinds:
        return
    raise AssertionError(f"{call} succeeded")


def over_s3fs():
    fs = s3fs.S3FileSystem(key=KEY, secret=SECRET, client_kwargs={"endpoint_url": endpoint, "region_name": "us-east-1"})
    fs.mkdir("frames")
    body = body_of("s3fs", 12 * 1024 * 1024 + 5)
    with fs.open("frames/dir/large.bin", "wb", block_size=5 * 1024 * 1024) as file:
        file.write(body)
    with fs.open("frames/dir/large.bin", "rb") as file:
        assert file.read() == body
        file.seek(5_000_000)
        assert file.read(1000) == body[5_000_000:5_001_000]
    fs.pipe({"frames/dir/a": b"a", "frames/dir/sub/b": b"b"})
    assert sorted(fs.find("frames/dir")) == ["frames/dir/a", "frames/dir/large.bin", "frames/dir/sub/b"]
    assert sorted(fs.ls("frames/dir", detail=False)) == ["frames/dir/a", "frames/dir/large.bin", "frames/dir/sub"]
    assert fs.info("frames/dir/large.bin")["size"] == len(body)
    fs.mv("frames/dir/a", "frames/dir/moved")
    assert not fs.exists("frames/dir/a") and fs.cat("frames/dir/moved") == b"a"
    fails(FileNotFoundError, fs.cat, "frames/nothing")
    wrong = s3fs.S3FileSystem(key=KEY, secret="wrong", client_kwargs={"endpoint_url": endpoint}, use_listings_cache=False)
    fails(PermissionError, wrong.cat, "frames/dir/moved")
    fs.rm("frames", recursive=True)
    assert not fs.exists("frames")


def over_pyarrow():
    fs = pyarrow.fs.S3FileSystem(
        access_key=KEY, secret_key=SECRET, endpoint_override=host, scheme="http", region="us-east-1",
        allow_bucket_creation=True,
    )
    fs.create_dir("arrow")
    table = pyarrow.table({"id": list(range(200_000)), "text": [f"row {index}" for index in range(200_000)]})
    pyarrow.parquet.write_table(table, "arrow/one.parquet", filesystem=fs, row_group_size=20_000)
    assert pyarrow.parquet.read_table("arrow/one.parquet", filesystem=fs).equals(table)
    some = pyarrow.parquet.read_table("arrow/one.parquet", filesystem=fs, filters=[("id", ">=", 199_990)], columns=["id"])
    assert some["id"].to_pylist() == list(range(199_990, 200_000))
    pyarrow.dataset.write_dataset(
        table, "arrow/set", filesystem=fs, format="parquet", max_rows_per_file=50_000, max_rows_per_group=50_000
    )
    dataset = pyarrow.dataset.dataset("arrow/set", filesystem=fs, format="parquet")
    assert len(dataset.files) == 4 and dataset.count_rows() == 200_000
    assert dataset.to_table().sort_by("id").equals(table)
    fails(FileNotFoundError, fs.open_input_file, "arrow/nothing")
    wrong = pyarrow.fs.S3FileSystem(
        access_key=KEY, secret_key="wrong", endpoint_override=host, scheme="http", region="us-east-1"
    )
    fails(OSError, wrong.get_file_info, "arrow/one.parquet")


def over_obstore():
    def store(bucket, secret):
        return S3Store(
            bucket, endpoint=endpoint, access_key_id=KEY, secret_access_key=secret, region="us-east-1",
            virtual_hosted_style_request=False, client_options={"allow_http": True}, retry_config={"max_retries": 0},
        )

    s3 = store("arrow", SECRET)
    body = body_of("obstore", 11 * 1024 * 1024 + 3)
    obstore.put(s3, "obstore/large", body, chunk_size=5 * 1024 * 1024, use_multipart=True)
    assert bytes(obstore.get(s3, "obstore/large").bytes()) == body
    ranges = obstore.get_ranges(s3, "obstore/large", starts=[0, 1_000_000, len(body) - 5], lengths=[10, 70_000, 5])
    assert [bytes(piece) for piece in ranges] == [body[:10], body[1_000_000:1_070_000], body[-5:]]
    obstore.put(s3, "obstore/once", b"first", mode="create")
    fails(AlreadyExistsError, obstore.put, s3, "obstore/once", b"second", mode="create")
    tag = obstore.head(s3, "obstore/once")["e_tag"]
    obstore.put(s3, "obstore/once", b"second", mode={"e_tag": tag})
    fails(Exception, obstore.put, s3, "obstore/once", b"third", mode={"e_tag": tag})
    assert bytes(obstore.get(s3, "obstore/once").bytes()) == b"second"
    obstore.copy(s3, "obstore/large", "obstore/copy")
    names = sorted(item["path"] for page in obstore.list(s3, "obstore") for item in page)
    assert names == ["obstore/copy", "obstore/large", "obstore/once"], names
    obstore.delete(s3, ["obstore/copy", "obstore/once"])
    fails(FileNotFoundError, obstore.get, s3, "obstore/copy")
    fails(Exception, lambda: obstore.get(store("arrow", "wrong"), "obstore/large"))


def over_minio():
    def client(secret):
        return minio.Minio(host, KEY, secret, secure=False)

    s3 = client(SECRET)
    s3.make_bucket("minio")
    assert s3.bucket_exists("minio") and not s3.bucket_exists("nobody-there")
    body = body_of("minio", 11 * 1024 * 1024 + 9)
    s3.put_object("minio", "a/ü +x", io.BytesIO(body), len(body), part_size=5 * 1024 * 1024, metadata={"x-amz-meta-k": "v"})
    # Without a length every part is filled before it is sent.
    s3.put_object("minio", "unknown", io.BytesIO(body), -1, part_size=5 * 1024 * 1024)
    assert s3.get_object("minio", "a/ü +x").read() == body and s3.get_object("minio", "unknown").read() == body
    assert s3.get_object("minio", "unknown", offset=10, length=100).read() == body[10:110]
    told = s3.stat_object("minio", "a/ü +x")
    assert told.size == len(body) and told.metadata["x-amz-meta-k"] == "v"
    s3.copy_object("minio", "copy", minio.commonconfig.CopySource("minio", "a/ü +x"))
    sources = [minio.commonconfig.ComposeSource("minio", name) for name in ("copy", "unknown")]
    s3.compose_object("minio", "composed", sources)
    assert s3.get_object("minio", "composed").read() == body + body
    assert urllib.request.urlopen(s3.presigned_get_object("minio", "copy")).read() == body
    names = [item.object_name for item in s3.list_objects("minio", recursive=True)]
    assert names == ["a/ü +x", "composed", "copy", "unknown"], names
    for call, code in [
        (lambda: s3.get_object("minio", "nothing"), "NoSuchKey"),
        (lambda: client("wrong").list_buckets(), "SignatureDoesNotMatch"),
    ]:
        try:
            call()
            raise AssertionError(f"no {code}")
        except minio.error.S3Error as error:
            assert error.code == code, error
    assert not list(s3.remove_objects("minio", [minio.deleteobjects.DeleteObject(name) for name in names]))
    s3.remove_bucket("minio")


def over_the_torch_connector():
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = KEY, SECRET
    s3 = MountpointS3Client("us-east-1", "holdfast-tests", endpoint=endpoint, force_path_style=True)
    body = body_of("torch", 20 * 1024 * 1024 + 1)
    writer = s3.put_object("arrow", "torch/checkpoint", None)
    for at in range(0, len(body), 1 << 20):
        writer.write(body[at : at + (1 << 20)])
    writer.close()
    assert b"".join(s3.get_object("arrow", "torch/checkpoint")) == body
    assert s3.head_object("arrow", "torch/checkpoint").size == len(body)
    listed = [item.key for page in s3.list_objects("arrow", "torch/", "", 1000) for item in page.object_info]
    assert listed == ["torch/checkpoint"], listed
    fails(S3Exception, lambda: b"".join(s3.get_object("arrow", "torch/nothing")))
    s3.delete_object("arrow", "torch/checkpoint")


for part in [over_s3fs, over_pyarrow, over_obstore, over_minio, over_the_torch_connector]:
    part()
    print("held:", part.__name__)
