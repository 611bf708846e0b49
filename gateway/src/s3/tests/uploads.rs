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
    complete(&world, path, &id, &parts).await.expect_error(404, "NoSuchUpload");
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
