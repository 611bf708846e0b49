use std::collections::BTreeMap;

use holdfast_protocol::{BlockLen, Digest};
use serde::Deserialize;

use super::*;
use crate::unixfs::{RootBuilder, TreeBuilder};

#[derive(Deserialize)]
struct Vectors {
    wide: Vec<Wide>,
    nested: Nested,
}

#[derive(Deserialize)]
struct Wide {
    files: u64,
    cid: String,
    tree_size: u64,
}

#[derive(Deserialize)]
struct Nested {
    files: BTreeMap<String, Option<Text>>,
    cid: String,
    tree_size: u64,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Whole(String),
    Repeated { repeat: String, times: usize },
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../../tests/vectors/directories.json")).unwrap()
}

fn root(bytes: &[u8]) -> Link {
    let mut builder = RootBuilder::new();
    for block in bytes.chunks(1 << 20) {
        builder.push(Digest::of(block), BlockLen::of(block).unwrap());
    }
    builder.finish_link()
}

fn child(name: String, bytes: &[u8]) -> Child {
    let link = root(bytes);
    Child { name, cid: link.cid, tree_size: link.tree_size }
}

#[test]
fn wide_directories_equal_those_of_another_implementation() {
    for Wide { files, cid, tree_size } in vectors().wide {
        let children = (0..files).map(|i| child(format!("file-{i:06}.jpg"), i.to_string().as_bytes()));
        let link = directory(children.collect()).unwrap();
        assert_eq!((link.cid.to_string(), link.tree_size), (cid, tree_size), "{files} files");
    }
}

#[test]
fn a_tree_of_directories_equals_that_of_another_implementation() {
    let nested = vectors().nested;
    let mut tree = TreeBuilder::new();
    // BTreeMap's order is that of a listing.
    for (key, text) in nested.files {
        let text = match text {
            None => None,
            Some(Text::Whole(text)) => Some(text),
            Some(Text::Repeated { repeat, times }) => Some(repeat.repeat(times)),
        };
        match text {
            None => tree.directory(&key).unwrap(),
            Some(text) => tree.file(&key, &root(text.as_bytes())).unwrap(),
        }
    }
    let link = tree.finish().unwrap();
    assert_eq!((link.cid.to_string(), link.tree_size), (nested.cid, nested.tree_size));
}

#[test]
fn names_made_to_collide_are_an_error_and_no_endless_descent() {
    // Two names of one hash, as a hostile uploader would bring them: all that matters is the hash.
    let one = child("one".to_owned(), b"1");
    let other = child("other".to_owned(), b"2");
    let error = shard(&[(7, one), (7, other)], 0).unwrap_err();
    assert!(matches!(error, DirectoryError::Collision { .. }));
}
