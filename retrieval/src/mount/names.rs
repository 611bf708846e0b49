//! Between keys and names. A key is a path whose components are names; a key that no path can spell is hidden.

use super::error::FsError;

/// Bytes of one name: Linux's own limit.
pub(super) const NAME_LEN_MAX: usize = 255;
/// Bytes of a key: S3's.
pub(super) const KEY_LEN_MAX: usize = 1024;

/// A name that a program gave, if a key can hold it.
pub(super) fn checked(name: &[u8]) -> Result<&str, FsError> {
    if name.len() > NAME_LEN_MAX {
        return Err(FsError::NameTooLong);
    }
    let name = std::str::from_utf8(name).map_err(|_| FsError::BadName)?;
    if is_visible(name) { Ok(name) } else { Err(FsError::Invalid) }
}

/// Whether a key's component can be a file's name.
pub(super) fn is_visible(name: &str) -> bool {
    let is_special = name.is_empty() || name == "." || name == "..";
    let is_spelt = name.len() <= NAME_LEN_MAX && name.bytes().all(|byte| byte != 0 && byte != b'/');
    !is_special && is_spelt
}

/// The key of `name` in the directory whose keys begin with `prefix`; a directory's marker needs one byte more.
pub(super) fn join(prefix: &str, name: &str) -> Result<String, FsError> {
    if prefix.len() + name.len() + 1 > KEY_LEN_MAX {
        return Err(FsError::NameTooLong);
    }
    Ok(format!("{prefix}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_key_or_no_path_can_spell_have_their_own_errno() {
        assert!(matches!(checked(&[b'x'; 256]), Err(FsError::NameTooLong)));
        assert!(matches!(checked(b"\xff\xfe"), Err(FsError::BadName)));
        assert!(matches!(checked(b".."), Err(FsError::Invalid)));
        assert_eq!(checked("straße 1".as_bytes()).ok(), Some("straße 1"));
        assert!(matches!(join(&"p/".repeat(400), &"n".repeat(224)), Err(FsError::NameTooLong)));
        assert!(!is_visible("") && !is_visible("a\0b") && is_visible("...") && is_visible(" "));
    }
}
