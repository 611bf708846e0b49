//! `multipart/form-data`, read from memory: fields up to the file, then the file. What follows the file is ignored, as
//! in S3.

use bytes::Bytes;
use s3s::{S3Error, S3Result, s3_error};

use super::malformed;

/// Fields in front of the file.
const FIELDS_MAX: usize = 200;
/// Bytes of one field.
const FIELD_BYTES_MAX: usize = 32 * 1024;
const KEY_BYTES_MAX: usize = 1024;

/// A form, up to its file.
#[derive(Debug)]
pub(super) struct Form {
    /// Names in lower case.
    fields: Vec<(String, String)>,
    file_name: String,
    /// Where the file's bytes begin.
    file_start: usize,
    delimiter: String,
}

impl Form {
    /// Reads the fields in front of the file and the head of the file's part; `None` when there must be more of the body.
    /// When `is_whole` there is no more.
    pub(super) fn parse_head(content_type: &str, body: &[u8], is_whole: bool) -> S3Result<Option<Self>> {
        let boundary = boundary(content_type).ok_or_else(|| malformed("The form has no boundary"))?;
        let delimiter = format!("\r\n--{boundary}");
        // Whatever is not there may still come, unless the body has ended.
        let or_later = |error: S3Error| if is_whole { Err(error) } else { Ok(None) };
        let first = &delimiter.as_bytes()[2..];
        let mut at = if body.starts_with(first) {
            first.len()
        } else {
            match find(body, delimiter.as_bytes(), 0) {
                Some(found) => found + delimiter.len(),
                None => return or_later(malformed("The form has no part")),
            }
        };
        let mut fields: Vec<(String, String)> = Vec::new();
        loop {
            if body[at..].starts_with(b"--") {
                return Err(s3_error!(InvalidArgument, "POST requires exactly one file upload per request."));
            }
            let Some(head_end) = find(body, b"\r\n\r\n", at) else {
                return or_later(malformed("A part has no head"));
            };
            let head = std::str::from_utf8(&body[at..head_end])
                .map_err(|_| malformed("A part's head is not text"))?;
            let start = head_end + 4;
            let name =
                parameter(head, "name").ok_or_else(|| malformed("A part has no name"))?.to_ascii_lowercase();
            if name == "file" {
                let file_name = parameter(head, "filename").unwrap_or_default();
                return Ok(Some(Self { fields, file_name, file_start: start, delimiter }));
            }
            let Some(end) = find(body, delimiter.as_bytes(), start - 2) else {
                return or_later(not_well_formed());
            };
            let content = &body[start.min(end.max(start))..end.max(start)];
            if content.len() > FIELD_BYTES_MAX || fields.len() >= FIELDS_MAX {
                return Err(error_too_long());
            }
            let value = String::from_utf8(content.to_vec()).map_err(|_| malformed("A field is not UTF-8"))?;
            fields.push((name, value));
            at = end + delimiter.len();
        }
    }

    /// The file, out of the whole body.
    pub(super) fn file(&self, body: Bytes) -> S3Result<Bytes> {
        let start = self.file_start;
        let end = find(&body, self.delimiter.as_bytes(), start - 2).ok_or_else(not_well_formed)?;
        Ok(body.slice(start..end.max(start)))
    }

    /// Bytes that the file has at most in a body of `length`.
    pub(super) fn file_len_max(&self, length: usize) -> u64 {
        // A last delimiter, two dashes and a line's end stand behind it.
        length.saturating_sub(self.file_start + self.delimiter.len() + 4) as u64
    }

    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields().find(|(field, _)| *field == name).map(|(_, value)| value)
    }

    /// The key, in which `${filename}` stands for the name of the file.
    pub(super) fn key(&self) -> S3Result<String> {
        let key = self.field("key").unwrap_or_default();
        if key.is_empty() {
            return Err(s3_error!(
                InvalidArgument,
                "Bucket POST must contain a field named 'key'. If it is specified, please check the order of the fields."
            ));
        }
        // Old browsers send whole paths.
        let name = self.file_name.rsplit(['/', '\\']).next().unwrap_or_default();
        let key = key.replace("${filename}", name);
        if key.len() > KEY_BYTES_MAX {
            return Err(s3_error!(KeyTooLongError, "Your key is too long"));
        }
        Ok(key)
    }
}

fn not_well_formed() -> S3Error {
    malformed("The body of your POST request is not well-formed multipart/form-data.")
}

pub(super) fn error_too_long() -> S3Error {
    super::error::custom(
        "MaxPostPreDataLengthExceeded",
        http::StatusCode::BAD_REQUEST,
        "Your POST request fields preceding the upload file were too large.",
    )
}

fn boundary(content_type: &str) -> Option<String> {
    let found = content_type.split(';').find_map(|part| part.trim().strip_prefix("boundary="))?;
    let found = found.trim_matches('"');
    (!found.is_empty() && found.len() <= 70).then(|| found.to_owned())
}

/// A parameter of the part's Content-Disposition.
fn parameter(head: &str, name: &str) -> Option<String> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with("content-disposition:"))?;
    let mut rest = line;
    while let Some((_, tail)) = rest.split_once(';') {
        rest = tail;
        let Some((found, value)) = tail.trim_start().split_once('=') else { continue };
        if found.trim().eq_ignore_ascii_case(name) {
            let value = value.trim_start();
            return Some(match value.strip_prefix('"') {
                Some(quoted) => quoted.split('"').next().unwrap_or_default().to_owned(),
                None => value.split(';').next().unwrap_or_default().trim().to_owned(),
            });
        }
    }
    None
}

fn find(body: &[u8], wanted: &[u8], from: usize) -> Option<usize> {
    let hay = body.get(from..)?;
    // Only places where the first byte is right are looked at closer: files are long.
    let mut at = 0;
    while let Some(step) = hay.get(at..)?.iter().position(|byte| *byte == wanted[0]) {
        at += step;
        if hay[at..].starts_with(wanted) {
            return Some(from + at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=xYz";

    fn form(body: &str) -> S3Result<(Form, Bytes)> {
        let body = Bytes::from(body.replace('\n', "\r\n"));
        let form = Form::parse_head(TYPE, &body, true)?.expect("the body is whole");
        let file = form.file(body)?;
        Ok((form, file))
    }

    #[test]
    fn fields_and_file_are_told_apart() {
        let (form, file) = form(
            "--xYz\nContent-Disposition: form-data; name=\"Key\"\n\nup/${filename}\n--xYz\nContent-Disposition: form-data; name=\"empty\"\n\n\n--xYz\nContent-Disposition: form-data; filename=\"C:\\a\\b c.txt\"; name=\"file\"\nContent-Type: text/plain\n\nline\n--xY\n--xYz\nContent-Disposition: form-data; name=\"submit\"\n\nx\n--xYz--\n",
        )
        .unwrap();
        assert_eq!(form.key().unwrap(), "up/b c.txt");
        assert_eq!(form.field("empty"), Some(""));
        assert_eq!(&file[..], b"line\r\n--xY");
        assert_eq!(form.field("submit"), None);
    }

    #[test]
    fn broken_forms_are_refused() {
        for body in [
            "",
            "--xYz--\n",
            "--xYz\nContent-Disposition: form-data; name=\"key\"\n\nk\n--xYz--\n",
            "--xYz\nContent-Disposition: form-data; name=\"file\"\n\nno end",
            "--xYz\nno head",
            "--xYz\nX: y\n\nvalue\n--xYz--\n",
        ] {
            assert!(form(body).is_err(), "{body}");
        }
        assert!(Form::parse_head("multipart/form-data", b"", false).is_err());
    }

    #[test]
    fn the_head_is_read_wherever_the_body_is_cut() {
        let body = "--xYz\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n--xYz\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nbytes\r\n--xYz--\r\n";
        let file_at = body.find("bytes").unwrap();
        for cut in 0..body.len() {
            let parsed = Form::parse_head(TYPE, &body.as_bytes()[..cut], false).unwrap();
            assert_eq!(parsed.is_some(), cut >= file_at, "{cut}");
        }
    }
}
