use tlog_tiles::{HashReader, record_hash, stored_hashes, tree_hash};

use super::*;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// The library's own store of hashes: the oracle.
#[derive(Default)]
struct Stored(RefCell<Vec<Hash>>);

impl HashReader for &Stored {
    fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog_tiles::Error> {
        let stored = self.0.borrow();
        Ok(indexes.iter().map(|index| stored[usize::try_from(*index).unwrap()]).collect())
    }
}

fn entry(index: u64) -> Vec<u8> {
    vec![u8::try_from(index % 251).unwrap(); usize::try_from(index % 90).unwrap() + 1]
}

#[test]
fn roots_and_tiles_are_those_of_the_library() {
    let oracle = Stored::default();
    let mut tail = LogTail::new();
    let mut files = BTreeMap::new();
    let mut roots = BTreeMap::new();
    for index in 0..70_000u64 {
        let hashes = stored_hashes(index, &entry(index), &&oracle).unwrap();
        oracle.0.borrow_mut().extend(hashes);
        assert_eq!(tail.append(&entry(index)), Ok(index));
        let size = index + 1;
        let near_a_tile = size < 520 || size % 256 < 2 || size % 65_536 < 3;
        if near_a_tile {
            let root = tree_hash(size, &&oracle).unwrap();
            assert_eq!(tail.root(), root, "size {size}");
            files.extend(tail.files().into_iter().map(|file| (file.path, file.bytes)));
            roots.insert(size, root);
        }
    }
    files.extend(tail.files().into_iter().map(|file| (file.path, file.bytes)));
    roots.insert(70_000, tail.root());
    assert_eq!(files["tile/0/000.p/3"].len(), 96);
    assert!(files.contains_key("tile/1/001.p/17") && files.contains_key("tile/2/000.p/1"));
    let read = |path: &str| files.get(path).cloned();
    // Any earlier state is a beginning of the last one, by the tiles alone; and no other root is.
    let newest = (70_000, roots[&70_000]);
    for (size, root) in roots.iter().filter(|(size, _)| *size % 37 == 0 || *size % 256 == 0) {
        assert_eq!(check_extension((*size, *root), newest, &read), Ok(()), "size {size}");
        let other = Hash([7; 32]);
        let forked = check_extension((*size, other), newest, &read);
        assert_eq!(forked, Err(ExtensionError::Forked { size: *size }));
    }
    assert!(matches!(check_extension(newest, (5, roots[&5]), &read), Err(ExtensionError::Shrunk { .. })));
    let missing = check_extension((300, roots[&300]), newest, &|_| None);
    assert_eq!(missing, Err(ExtensionError::Tiles { size: 70_000 }));
    // The tail opens again at the last size and goes on as if nothing had happened.
    let mut again = LogTail::open(70_000, read).unwrap();
    assert_eq!(again.root(), tail.root());
    for index in 70_000..70_300 {
        again.append(&entry(index)).unwrap();
        tail.append(&entry(index)).unwrap();
    }
    assert_eq!((again.root(), again.files()), (tail.root(), tail.files()));
}

#[test]
fn bundles_hold_their_entries() {
    let mut tail = LogTail::new();
    let mut files = Vec::new();
    for index in 0..300 {
        tail.append(&entry(index)).unwrap();
    }
    files.extend(tail.files());
    let bundle = |path: &str| &files.iter().find(|file| file.path == path).unwrap().bytes;
    let first = bundle_entries(bundle("tile/entries/000")).unwrap();
    let second = bundle_entries(bundle("tile/entries/001.p/44")).unwrap();
    let all: Vec<Vec<u8>> = first.into_iter().chain(second).map(<[u8]>::to_vec).collect();
    assert_eq!(all, (0..300).map(entry).collect::<Vec<_>>());
    let tile = bundle("tile/0/000");
    assert_eq!(tile[..32], record_hash(&entry(0)).0);
    assert_eq!(bundle_entries(&[0, 2, 1]), None);
}

#[test]
fn entries_that_no_bundle_holds_are_refused() {
    let mut tail = LogTail::new();
    assert_eq!(tail.append(&[]), Err(TailError::Entry { len: 0 }));
    assert_eq!(tail.append(&vec![0; 65_536]), Err(TailError::Entry { len: 65_536 }));
    assert_eq!(tail.append(&vec![0; 65_535]), Ok(0));
    assert_eq!((tail.size(), LogTail::new().root()), (1, tlog_tiles::EMPTY_HASH));
}

#[test]
fn a_damaged_edge_is_noticed() {
    let mut tail = LogTail::new();
    (0..5).for_each(|index| {
        tail.append(&entry(index)).unwrap();
    });
    let files: BTreeMap<String, Vec<u8>> =
        tail.files().into_iter().map(|file| (file.path, file.bytes)).collect();
    assert!(LogTail::open(5, |path| files.get(path).cloned()).is_ok());
    assert!(matches!(LogTail::open(6, |path| files.get(path).cloned()), Err(TailError::Missing { .. })));
    let cut = |path: &str| files.get(path).map(|bytes| bytes[..bytes.len() - 1].to_vec());
    assert!(matches!(LogTail::open(5, cut), Err(TailError::Length { .. })));
}

#[test]
fn paths_are_those_of_the_format() {
    assert_eq!(tile_path("0", 0, 256), "tile/0/000");
    assert_eq!(tile_path("entries", 1_234_067, 8), "tile/entries/x001/x234/067.p/8");
}

fn key(seed: u8) -> holdfast_protocol::SigningKey {
    holdfast_protocol::SigningKey::from_seed(&[seed; 32]).unwrap()
}

#[test]
fn checkpoints_are_signed_and_cosigned() {
    let (ours, other) = (key(1), key(2));
    let note = sign_checkpoint("holdfast.example/audit", 42, Hash([3; 32]), &ours).unwrap();
    let lines: Vec<&str> = note.lines().collect();
    assert_eq!(lines[..2], ["holdfast.example/audit", "42"]);
    let both = cosign(&note, "auditor.other", &other, 1_780_000_000_999).unwrap();
    let read = SignedCheckpoint::parse(&both).unwrap();
    assert_eq!((read.size, read.root), (42, Hash([3; 32])));
    assert_eq!(read.verify(&ours.public()), Ok(()));
    assert_eq!(read.verify(&other.public()), Err(NoteError::Unsigned));
    assert_eq!(read.cosigned_by("auditor.other", &other.public()), Ok(1_780_000_000));
    assert_eq!(read.cosigned_by("auditor.other", &ours.public()), Err(NoteError::Unsigned));
    let forged = SignedCheckpoint::parse(&both.replacen("42", "43", 1)).unwrap();
    assert_eq!(forged.verify(&ours.public()), Err(NoteError::Forged));
    assert_eq!(forged.cosigned_by("auditor.other", &other.public()), Err(NoteError::Forged));
    for bad in ["", "x\n1\n", "a\n\u{2014} b c\n"] {
        assert_eq!(SignedCheckpoint::parse(bad), Err(NoteError::Malformed));
    }
    assert!(
        note::verifier_key("holdfast.example/audit", &ours.public()).starts_with("holdfast.example/audit+")
    );
}
