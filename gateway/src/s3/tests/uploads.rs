//! Multipart uploads.

use super::*;

const PART: usize = 5 << 20;

async fn create(world: &World, path: &str, headers: client::Headers<'_>) -> String {
    let created =
        world.client.call("POST", &format!("{path}?uploads"), headers, b"").await.expect_status(200);
    let text = created.text();
    let start = text.find("<UploadId>").unwrap() + "<UploadId>".len();
    text[start..text.find("</UploadId>").unwrap()].to_owned()
}

async fn part(world: &World, path: &str, id: &str, number: usize, body: &[u8]) -> Answer {
    world.client.put(&format!("{path}?partNumber={number}&uploadId={id}"), body).await
}

async fn complete(world: &World, path: &str, id: &str, parts: &[(usize, &str)]) -> Answer {
    let lines: String = parts
        .iter()
        .map(|(number, tag)| format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"))
        .collect();
    let xml = format!("<CompleteMultipartUpload>{lines}</CompleteMultipartUpload>");
    world.client.call("POST", &format!("{path}?uploadId={id}"), &[], xml.as_bytes()).await
}

#[tokio::test]
async fn parts_become_one_object() {
    let world = World::with_bucket("bucket").await;
    let path = "/bucket/big";
    let id = create(&world, path, &[("x-amz-meta-k", "v"), ("content-type", "text/x")]).await;
    let bodies = [body_of(PART), body_of(PART + 77), body_of(123)];
    let mut tags = Vec::new();
    for (index, body) in bodies.iter().enumerate() {
        let answer = part(&world, path, &id, index + 1, body).await.expect_status(200);
        tags.push(answer.header("etag").to_owned());
    }
    let listed = world.client.get(&format!("{path}?uploadId={id}")).await.expect_status(200).text();
    assert_eq!(listed.matches("<PartNumber>").count(), 3, "{listed}");
    let uploads = world.client.get("/bucket?uploads").await.expect_status(200).text();
    assert!(uploads.contains(&id), "{uploads}");
    world.client.get(path).await.expect_error(404, "NoSuchKey");

    let parts: Vec<_> = tags.iter().enumerate().map(|(index, tag)| (index + 1, tag.as_str())).collect();
    let done = complete(&world, path, &id, &parts).await.expect_status(200);
    assert!(done.text().contains("-3"), "{}", done.text());
    let got = world.client.get(path).await.expect_status(200);
    assert!(got.body == bodies.concat());
    assert_eq!(got.header("x-amz-meta-k"), "v");
    assert_eq!(got.header("content-type"), "text/x");
    assert_eq!(got.header("x-holdfast-cid"), done.header("x-holdfast-cid"));
    let border = world.client.call("GET", path, &[("range", "bytes=5242870-5242890")], b"").await;
    assert!(border.expect_status(206).body == bodies.concat()[5_242_870..5_242_891]);
    // A client that never got the answer asks again, and hears the same; another list of parts is another matter.
    let again = complete(&world, path, &id, &parts).await.expect_status(200);
    assert_eq!(again.body, done.body);
    assert_eq!(again.header("x-holdfast-cid"), done.header("x-holdfast-cid"));
    complete(&world, path, &id, &parts[..2]).await.expect_error(404, "NoSuchUpload");
    // Each part alone, by its number.
    for (index, body) in bodies.iter().enumerate() {
        let got = world.client.get(&format!("{path}?partNumber={}", index + 1)).await.expect_status(206);
        assert!(got.body == *body);
        assert_eq!(got.header("x-amz-mp-parts-count"), "3");
    }
    world.client.get(&format!("{path}?partNumber=4")).await.expect_error(416, "InvalidPartNumber");
    let attributes = [("x-amz-object-attributes", "ETag,ObjectParts,ObjectSize")];
    let told =
        world.client.call("GET", &format!("{path}?attributes"), &attributes, b"").await.expect_status(200);
    let text = told.text();
    assert!(text.contains("<PartsCount>3</PartsCount>") && text.contains("<Size>123</Size>"), "{text}");
    assert!(!text.contains("<StorageClass>"), "only what was asked for: {text}");
}

#[tokio::test]
async fn checksums_that_were_not_kept_are_not_taken_on_trust() {
    let world = World::with_bucket("bucket").await;
    let path = "/bucket/o";
    let id = create(&world, path, &[("x-amz-checksum-algorithm", "CRC32C")]).await;
    let answer = part(&world, path, &id, 1, b"123456789").await.expect_status(200);
    let complete = |sum: &str| {
        let xml = format!(
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{}</ETag>{sum}</Part></CompleteMultipartUpload>",
            answer.header("etag")
        );
        let client = world.client.clone();
        let path = format!("{path}?uploadId={id}");
        async move { client.call("POST", &path, &[], xml.as_bytes()).await }
    };
    complete("<ChecksumSHA256>AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=</ChecksumSHA256>")
        .await
        .expect_error(400, "InvalidRequest");
    complete("<ChecksumCRC32C>AAAAAA==</ChecksumCRC32C>").await.expect_error(400, "InvalidPart");
    complete("<ChecksumCRC32C>4waSgw==</ChecksumCRC32C>").await.expect_status(200);
}

#[tokio::test]
async fn parts_are_copied_from_objects() {
    let world = World::with_bucket("bucket").await;
    let body = body_of(PART + 1000);
    world.client.put("/bucket/source", &body).await.expect_status(200);
    let path = "/bucket/target";
    let id = create(&world, path, &[]).await;
    let copy = |number: usize, range: &'static str| {
        let client = world.client.clone();
        let path = format!("{path}?partNumber={number}&uploadId={id}");
        async move {
            let headers = [("x-amz-copy-source", "/bucket/source"), ("x-amz-copy-source-range", range)];
            client.call("PUT", &path, &headers, b"").await
        }
    };
    copy(1, "bytes=0-99999999").await.expect_error(416, "InvalidRange");
    copy(1, "bytes=5-").await.expect_error(400, "InvalidArgument");
    let tag = |answer: &Answer| {
        let text = answer.text().replace("&quot;", "\"");
        let start = text.find("<ETag>").unwrap() + 6;
        text[start..text.find("</ETag>").unwrap()].to_owned()
    };
    let first = tag(&copy(1, "bytes=0-5242879").await.expect_status(200));
    let second = tag(&copy(2, "bytes=5242870-5243879").await.expect_status(200));
    complete(&world, path, &id, &[(1, &first), (2, &second)]).await.expect_status(200);
    let expected = [&body[..PART], &body[5_242_870..5_243_880]].concat();
    assert!(world.client.get(path).await.expect_status(200).body == expected);
}

#[tokio::test]
async fn mistakes_have_the_codes_that_clients_know() {
    let world = World::with_bucket("bucket").await;
    let path = "/bucket/o";
    let id = create(&world, path, &[]).await;
    let small = part(&world, path, &id, 1, b"small").await.expect_status(200);
    let last = part(&world, path, &id, 2, b"last").await.expect_status(200);
    let (one, two) = (small.header("etag"), last.header("etag"));
    complete(&world, path, &id, &[(2, two), (1, one)]).await.expect_error(400, "InvalidPartOrder");
    complete(&world, path, &id, &[(1, "\"other\"")]).await.expect_error(400, "InvalidPart");
    complete(&world, path, &id, &[(1, one), (3, two)]).await.expect_error(400, "InvalidPart");
    complete(&world, path, &id, &[(1, one), (2, two)]).await.expect_error(400, "EntityTooSmall");
    complete(&world, path, &id, &[]).await.expect_error(400, "MalformedXML");
    part(&world, path, &id, 0, b"x").await.expect_error(400, "InvalidArgument");
    part(&world, path, &id, 10_001, b"x").await.expect_error(400, "InvalidArgument");
    part(&world, path, "00112233445566778899aabbccddeeff", 1, b"x").await.expect_error(404, "NoSuchUpload");
    part(&world, path, "nonsense", 1, b"x").await.expect_error(404, "NoSuchUpload");
    world.client.call("DELETE", &format!("{path}?uploadId={id}"), &[], b"").await.expect_status(204);
    part(&world, path, &id, 1, b"x").await.expect_error(404, "NoSuchUpload");
    world.client.get(path).await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn checksums_of_parts_make_the_checksum_of_the_object() {
    let world = World::with_bucket("bucket").await;
    let path = "/bucket/o";
    let id = create(
        &world,
        path,
        &[("x-amz-checksum-algorithm", "CRC32"), ("x-amz-checksum-type", "FULL_OBJECT")],
    )
    .await;
    let bodies = [body_of(PART), body_of(99)];
    let mut tags = Vec::new();
    for (index, body) in bodies.iter().enumerate() {
        let answer = part(&world, path, &id, index + 1, body).await.expect_status(200);
        assert!(answer.headers.contains_key("x-amz-checksum-crc32"), "computed although not sent");
        tags.push(answer.header("etag").to_owned());
    }
    complete(&world, path, &id, &[(1, &tags[0]), (2, &tags[1])]).await.expect_status(200);
    let head = world.client.call("HEAD", path, &[("x-amz-checksum-mode", "ENABLED")], b"").await;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &bodies.concat());
    use base64::Engine as _;
    let expected = base64::engine::general_purpose::STANDARD.encode(&crc.to_be_bytes()[4..]);
    assert_eq!(head.header("x-amz-checksum-crc32"), expected);
    assert_eq!(head.header("x-amz-checksum-type"), "FULL_OBJECT");
}
