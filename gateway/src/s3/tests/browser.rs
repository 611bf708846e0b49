//! What browsers do: preflights, answers to other origins, forms.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;

#[tokio::test]
async fn pages_of_allowed_origins_may_read() {
    let world = World::with_bucket("bucket").await;
    let client = &world.client;
    client.put("/bucket/k", b"x").await.expect_status(200);
    let preflight = |origin: &'static str, method: &'static str, asked: &'static str| {
        let client = client.clone();
        async move {
            let headers = [
                ("origin", origin),
                ("access-control-request-method", method),
                ("access-control-request-headers", asked),
            ];
            client.anonymous("OPTIONS", "/bucket/k", &headers).await
        }
    };
    preflight("https://app.example.org", "GET", "").await.expect_error(403, "AccessForbidden");
    client.get("/bucket?cors").await.expect_error(404, "NoSuchCORSConfiguration");
    let rules = b"<CORSConfiguration><CORSRule><AllowedOrigin>https://app.example.org</AllowedOrigin><AllowedMethod>GET</AllowedMethod><AllowedMethod>PUT</AllowedMethod><AllowedHeader>content-*</AllowedHeader><ExposeHeader>ETag</ExposeHeader><MaxAgeSeconds>300</MaxAgeSeconds></CORSRule></CORSConfiguration>";
    client.put("/bucket?cors", rules).await.expect_status(200);
    let allowed = preflight("https://app.example.org", "PUT", "Content-Type").await.expect_status(200);
    assert_eq!(allowed.header("access-control-allow-origin"), "https://app.example.org");
    assert_eq!(allowed.header("access-control-allow-headers"), "Content-Type");
    assert_eq!(allowed.header("access-control-max-age"), "300");
    preflight("https://app.example.org", "DELETE", "").await.expect_error(403, "AccessForbidden");
    preflight("https://evil.example", "GET", "").await.expect_error(403, "AccessForbidden");
    preflight("https://app.example.org", "GET", "authorization").await.expect_error(403, "AccessForbidden");
    let got = client.call("GET", "/bucket/k", &[("origin", "https://app.example.org")], b"").await;
    assert_eq!(got.header("access-control-expose-headers"), "ETag");
    let other =
        client.call("GET", "/bucket/k", &[("origin", "https://evil.example")], b"").await.expect_status(200);
    assert!(other.headers.get("access-control-allow-origin").is_none());
    client.call("DELETE", "/bucket?cors", &[], b"").await.expect_status(204);
    preflight("https://app.example.org", "GET", "").await.expect_error(403, "AccessForbidden");
}

/// A form as a browser would send it, signed for one hour.
fn form(secret: &str, conditions: &str, fields: &[(&str, &str)], file: &str) -> String {
    let (day, date) = ("20260101", "20260101T000000Z");
    let credential = format!("HOLDTESTKEY/{day}/us-east-1/s3/aws4_request");
    let policy = STANDARD.encode(format!(
        r#"{{"expiration":"2099-01-01T00:00:00.000Z","conditions":[{{"x-amz-algorithm":"AWS4-HMAC-SHA256"}},{{"x-amz-credential":"{credential}"}},{{"x-amz-date":"{date}"}},{conditions}]}}"#
    ));
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in [day, "us-east-1", "s3", "aws4_request", &policy] {
        key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
    }
    let signature = hex::encode(key);
    let mut body = String::new();
    let own = [
        ("policy", policy.as_str()),
        ("x-amz-algorithm", "AWS4-HMAC-SHA256"),
        ("x-amz-credential", &credential),
        ("x-amz-date", date),
        ("x-amz-signature", &signature),
    ];
    for (name, value) in fields.iter().chain(&own) {
        body.push_str(&format!(
            "--edge\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
        ));
    }
    body.push_str(&format!(
        "--edge\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.txt\"\r\n\r\n{file}\r\n--edge--\r\n"
    ));
    body
}

/// A form that the test's own key signed for one object of `bucket`.
pub(super) fn signed_form(key: &str, file: &str) -> String {
    let conditions = format!(r#"{{"bucket":"bucket"}},{{"key":"{key}"}}"#);
    form("secret-of-the-test", &conditions, &[("key", key)], file)
}

/// Posts a form to `bucket`.
pub(super) async fn post(world: &World, body: &str) -> Answer {
    let request = format!(
        "POST /bucket HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: multipart/form-data; boundary=edge\r\ncontent-length: {}\r\n\r\n{body}",
        world.client.address,
        body.len()
    );
    world.client.exchange(request.as_bytes()).await
}

#[tokio::test]
async fn forms_upload_what_their_policy_allows() {
    let world = World::with_bucket("bucket").await;
    let post = |body: String| {
        let world = &world;
        async move { post(world, &body).await }
    };
    let secret = "secret-of-the-test";
    let conditions = r#"{"bucket":"bucket"},["starts-with","$key","up/"],["starts-with","$content-type",""],["starts-with","$x-amz-meta-who",""],["content-length-range",1,100],{"success_action_status":"201"}"#;
    let fields = [
        ("key", "up/${filename}"),
        ("Content-Type", "text/plain"),
        ("x-amz-meta-who", "browser"),
        ("success_action_status", "201"),
    ];
    let done = post(form(secret, conditions, &fields, "from a form")).await.expect_status(201);
    assert!(done.text().contains("<Key>up/f.txt</Key>"), "{}", done.text());
    let got = world.client.get("/bucket/up/f.txt").await.expect_status(200);
    assert_eq!((got.text().as_str(), got.header("content-type")), ("from a form", "text/plain"));
    assert_eq!(got.header("x-amz-meta-who"), "browser");
    assert_eq!(got.header("etag"), done.header("etag"));

    post(form("wrong", conditions, &fields, "x")).await.expect_error(403, "SignatureDoesNotMatch");
    post(form(secret, conditions, &fields, "")).await.expect_error(400, "EntityTooSmall");
    post(form(secret, conditions, &fields, &"x".repeat(101))).await.expect_error(400, "EntityTooLarge");
    let mut elsewhere = fields;
    elsewhere[0] = ("key", "down/x");
    post(form(secret, conditions, &elsewhere, "x")).await.expect_error(403, "AccessDenied");
    post("--edge\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n--edge\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nx\r\n--edge--\r\n".to_owned())
        .await
        .expect_error(403, "AccessDenied");
    world.client.get("/bucket/down/x").await.expect_error(404, "NoSuchKey");
}
