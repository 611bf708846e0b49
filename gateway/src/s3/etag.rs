//! Entity tags: from BLAKE3, never MD5, and always with a dash in them.
//!
//! The dash is S3's own mark of "not the MD5 of the bytes", so clients do not compare it with one. A tag names one
//! version: the root CID of a private object is that of its ciphertext, which differs from upload to upload.

use cid::Cid;
use holdfast_protocol::Digest;

const TAG_BYTES: usize = 16;

/// The tag of an object that came in one PUT.
pub(crate) fn of_object(root: &Cid) -> String {
    tag(&root.to_bytes(), 1)
}

/// The tag of one part: over its blocks, which a part has no CID for.
pub(crate) fn of_part(blocks: impl IntoIterator<Item = Digest>) -> String {
    let mut hasher = blake3::Hasher::new();
    for digest in blocks {
        hasher.update(digest.as_bytes());
    }
    format!("{}-1", hex::encode(&hasher.finalize().as_bytes()[..TAG_BYTES]))
}

/// The tag of an object that was completed from these parts.
pub(crate) fn of_parts<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut bytes = Vec::new();
    let mut count = 0;
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
        bytes.push(0);
        count += 1;
    }
    tag(&bytes, count)
}

fn tag(bytes: &[u8], parts: usize) -> String {
    format!("{}-{parts}", hex::encode(&blake3::hash(bytes).as_bytes()[..TAG_BYTES]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_stable_and_never_look_like_an_md5() {
        let root = Digest::of(b"held").raw_cid();
        let object = of_object(&root);
        assert_eq!(object, of_object(&root));
        assert_eq!(object.len(), 34);
        assert!(object.ends_with("-1"));
        assert!(of_parts(["a-1", "b-1"]).ends_with("-2"));
    }

    #[test]
    fn other_content_has_another_tag() {
        assert_ne!(of_part([Digest::of(b"a")]), of_part([Digest::of(b"b")]));
        assert_ne!(of_parts(["a", "bc"]), of_parts(["ab", "c"]));
        assert_ne!(of_part([]), of_part([Digest::of(b"")]));
    }
}
