"""Uploads small and large objects, printing each acknowledged key at once, until the gateway goes away."""

import sys
import threading

from clients import body_of, s3

lock = threading.Lock()


def work(worker):
    client = s3()
    for index in range(100_000):
        key = f"{worker}/{index}"
        length = 3_500_000 if index % 9 == 0 else 1_000 + 997 * (index % 50)
        body = body_of(key, length)
        try:
            if index % 13 == 5:
                upload = client.create_multipart_upload(Bucket="crash", Key=key)["UploadId"]
                part = client.upload_part(Bucket="crash", Key=key, UploadId=upload, PartNumber=1, Body=body)
                done = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
                client.complete_multipart_upload(Bucket="crash", Key=key, UploadId=upload, MultipartUpload=done)
            else:
                client.put_object(Bucket="crash", Key=key, Body=body)
        except Exception:
            return
        with lock:
            print(key, length, flush=True)


threads = [threading.Thread(target=work, args=(worker,)) for worker in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
