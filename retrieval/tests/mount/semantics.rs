//! What the mount promises, one promise a test, without the kernel.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_retrieval::mount::{FileSystem, FsError, OpenMode, ReadStart};

use crate::world::{World, config};

const READ: OpenMode = OpenMode { write: false, truncate: false };
const WRITE: OpenMode = OpenMode { write: true, truncate: false };
const MIB: usize = 1 << 20;

fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 2_654_435_761) >> 7 & 0xff).expect("a byte")).collect()
}

async fn ino(files: &FileSystem, name: &str) -> u64 {
    files.lookup(FileSystem::ROOT, name.as_bytes()).await.expect("there").ino
}

#[tokio::test]
async fn a_version_replaced_elsewhere_is_stale_for_its_readers_and_new_for_the_next() {
    let world = World::new();
    world.backend.insert("a", vec![1; 10 * MIB]);
    let first = ino(&world.files, "a").await;
    let old = world.files.open(first, READ).await.expect("open").handle;
    assert_eq!(world.files.read(old, 0, 4).await.expect("read"), vec![1; 4]);
    world.backend.insert("a", vec![2; 10 * MIB]);
    assert!(matches!(world.files.open(first, READ).await, Err(FsError::Stale)));
    let second = ino(&world.files, "a").await;
    assert_ne!(first, second);
    let new = world.files.open(second, READ).await.expect("open").handle;
    assert_eq!(world.files.read(new, 0, 4).await.expect("read"), vec![2; 4]);
    let error = world.files.read(old, 9 << 20, 4).await.expect_err("never bytes of another version");
    assert_eq!(error.errno(), libc::ESTALE);
}

#[tokio::test]
async fn pages_are_kept_exactly_while_the_version_stays() {
    let world = World::new();
    world.backend.insert("a", "one");
    let first = ino(&world.files, "a").await;
    let opened = world.files.open(first, READ).await.expect("open");
    assert!(!opened.keep_pages, "nothing was read yet");
    world.files.release(opened.handle).await;
    let opened = world.files.open(first, READ).await.expect("open");
    assert!(opened.keep_pages);
    world.files.release(opened.handle).await;
    world.backend.insert("a", "two");
    assert!(matches!(world.files.open(first, READ).await, Err(FsError::Stale)), "look it up again");
    let opened = world.files.open(ino(&world.files, "a").await, READ).await.expect("open");
    assert!(!opened.keep_pages, "another version");
}

#[tokio::test]
async fn writing_into_a_large_file_fetches_only_what_was_not_written() {
    let world = World::new();
    let mut held = noise(40 * MIB);
    world.backend.insert("a", held.clone());
    let inode = ino(&world.files, "a").await;
    let handle = world.files.open(inode, WRITE).await.expect("open").handle;
    world.files.write(handle, 5, b"hello").await.expect("write");
    assert_eq!(world.backend.bytes_read.load(Ordering::Relaxed), 0, "nothing is copied when writing begins");
    held[5..10].copy_from_slice(b"hello");
    assert_eq!(world.files.read(handle, 0, 20).await.expect("read"), held[..20]);
    world.files.upload(inode).await.expect("fsync");
    assert!(world.backend.get("a").expect("there") == held, "durable after fsync, with all the rest");
    world.files.release(handle).await;
}

#[tokio::test]
async fn fsync_is_durable_before_the_close() {
    let world = World::new();
    let (attr, opened) = world.files.create(FileSystem::ROOT, b"log", false).await.expect("create");
    assert_eq!(world.backend.get("log"), None, "nobody sees it before the first close or fsync");
    for line in [&b"one"[..], b"onetwo", b"onetwothree"] {
        world.files.write(opened.handle, 0, line).await.expect("write");
        world.files.upload(attr.ino).await.expect("fsync");
        assert_eq!(world.backend.get("log").as_deref(), Some(line));
    }
    world.files.release(opened.handle).await;
}

#[tokio::test]
async fn exclusive_creation_is_exclusive_between_machines() {
    let one = World::new();
    let other = World::over(Arc::clone(&one.backend), |_| {});
    one.files.create(FileSystem::ROOT, b"lock", true).await.expect("the first");
    let second = other.files.create(FileSystem::ROOT, b"lock", true).await.expect_err("the second");
    assert_eq!(second.errno(), libc::EEXIST);
}

#[tokio::test(start_paused = true)]
async fn a_dead_network_is_eio_within_the_limit_and_nothing_is_lost() {
    let world = World::new();
    world.backend.insert("a", vec![1; 10 * MIB]);
    let inode = ino(&world.files, "a").await;
    let reader = world.files.open(inode, READ).await.expect("open").handle;
    let (attr, writer) = world.files.create(FileSystem::ROOT, b"new", false).await.expect("create");
    world.files.write(writer.handle, 0, b"unsaved").await.expect("write: local");
    world.backend.set_silent(true);
    let began = tokio::time::Instant::now();
    let read = world.files.read(reader, 8 << 20, 100).await.expect_err("no network");
    assert_eq!(read.errno(), libc::EIO);
    assert!(began.elapsed() <= Duration::from_secs(62), "{:?}", began.elapsed());
    let began = tokio::time::Instant::now();
    assert_eq!(world.files.upload(attr.ino).await.expect_err("no network").errno(), libc::EIO);
    assert_eq!(world.files.lookup(FileSystem::ROOT, b"b").await.expect_err("no network").errno(), libc::EIO);
    assert!(
        began.elapsed() <= Duration::from_secs(10),
        "later ones wait no minute each: {:?}",
        began.elapsed()
    );
    world.backend.set_silent(false);
    world.files.upload(attr.ino).await.expect("fsync again");
    assert_eq!(world.backend.get("new").as_deref(), Some(&b"unsaved"[..]));
    assert_eq!(world.files.read(reader, 8 << 20, 100).await.expect("read"), vec![1; 100]);
}

#[tokio::test]
async fn the_end_of_a_mount_uploads_what_is_dirty_and_keeps_what_it_cannot() {
    let world = World::with(|config| config.patience = Duration::from_millis(10));
    let (_, opened) = world.files.create(FileSystem::ROOT, b"open", false).await.expect("create");
    world.files.write(opened.handle, 0, b"dirty").await.expect("write");
    let finished = world.files.finish().await;
    assert_eq!((finished.uploaded, finished.failed.len()), (1, 0));
    assert_eq!(world.backend.get("open").as_deref(), Some(&b"dirty"[..]));
    world.files.write(opened.handle, 0, b"DIRTY").await.expect("write");
    world.backend.set_down(true);
    let finished = world.files.finish().await;
    assert_eq!(finished.failed.len(), 1);
    assert_eq!(finished.failed[0].0, "open");
    let staging = world.staging;
    drop(world.files);
    let (_, left) = FileSystem::new(config(staging.path()), world.backend).expect("staging");
    assert_eq!(left.len(), 1);
    assert_eq!(
        (left[0].key.as_str(), std::fs::read(&left[0].path).expect("kept")),
        ("open", b"DIRTY".to_vec())
    );
}

#[tokio::test]
async fn a_file_renamed_before_its_close_appears_whole_at_its_new_name_only() {
    let world = World::new();
    world.backend.insert("final", "old");
    let (attr, opened) = world.files.create(FileSystem::ROOT, b"tmp", false).await.expect("create");
    world.files.write(opened.handle, 0, b"new").await.expect("write");
    ino(&world.files, "final").await;
    let root = FileSystem::ROOT;
    world.files.rename((root, b"tmp"), (root, b"final"), false).await.expect("rename");
    assert_eq!(world.backend.get("final").as_deref(), Some(&b"new"[..]));
    assert_eq!(world.backend.keys(), ["final"]);
    world.files.write(opened.handle, 3, b"er").await.expect("write on");
    world.files.upload(attr.ino).await.expect("close");
    assert_eq!(world.backend.get("final").as_deref(), Some(&b"newer"[..]));
    let kept = world.files.rename((root, b"final"), (root, b"final"), true).await;
    kept.expect("onto itself is nothing");
}

#[tokio::test]
async fn an_unlinked_file_lives_on_for_its_writer_and_is_never_uploaded() {
    let world = World::new();
    let (attr, opened) = world.files.create(FileSystem::ROOT, b"scratch", false).await.expect("create");
    world.files.write(opened.handle, 0, b"temporary").await.expect("write");
    world.files.unlink(FileSystem::ROOT, b"scratch").await.expect("unlink");
    assert_eq!(world.files.read(opened.handle, 0, 99).await.expect("read"), &b"temporary"[..]);
    world.files.upload(attr.ino).await.expect("close");
    world.files.release(opened.handle).await;
    assert!(world.backend.keys().is_empty());
    world.files.forget(attr.ino, 1);
    assert_eq!(world.files.counts(), (0, 1), "nothing is kept but the root");
}

#[tokio::test]
async fn an_open_file_is_read_on_under_its_new_name() {
    let world = World::new();
    world.backend.insert("d/a", vec![1; 20 * MIB]);
    let directory = ino(&world.files, "d").await;
    let inode = world.files.lookup(directory, b"a").await.expect("there").ino;
    let handle = world.files.open(inode, READ).await.expect("open").handle;
    let began = world.files.begin_read(handle, 9 << 20, 10).expect("begun under the old name");
    let root = FileSystem::ROOT;
    world.files.rename((root, b"d"), (root, b"e"), false).await.expect("rename");
    let ReadStart::Wait(wait) = began else { panic!("nothing was fetched before") };
    assert_eq!(world.files.finish_read(wait).await.expect("read"), vec![1; 10]);
    assert_eq!(world.files.read(handle, 15 << 20, 10).await.expect("read"), vec![1; 10]);
}

#[tokio::test]
async fn sequential_reads_come_from_a_few_large_requests_and_random_ones_fetch_no_more_than_asked() {
    let world = World::with(|config| config.memory_bytes = 256 << 20);
    let held = noise(64 * MIB);
    world.backend.insert("a", held.clone());
    let inode = ino(&world.files, "a").await;
    let handle = world.files.open(inode, READ).await.expect("open").handle;
    for at in (0..64 * MIB).step_by(128 * 1024) {
        let found = world.files.read(handle, at as u64, 128 * 1024).await.expect("read");
        assert!(found == held[at..at + 128 * 1024], "at {at}");
    }
    assert!(world.backend.reads.load(Ordering::Relaxed) <= 24, "{:?}", world.backend.reads);
    assert_eq!(world.backend.bytes_read.load(Ordering::Relaxed), 64 << 20, "every byte once");
    world.backend.insert("b", held.clone());
    let inode = ino(&world.files, "b").await;
    let handle = world.files.open(inode, READ).await.expect("open").handle;
    world.backend.bytes_read.store(0, Ordering::Relaxed);
    for at in [50usize, 3, 41, 22, 60, 11].map(|mib| mib * MIB + 12_345) {
        let found = world.files.read(handle, at as u64, 100_000).await.expect("read");
        assert!(found == held[at..at + 100_000], "at {at}");
    }
    assert_eq!(world.backend.bytes_read.load(Ordering::Relaxed), 600_000);
}

#[tokio::test]
async fn equal_jumps_are_fetched_ahead_and_nothing_between_them() {
    let world = World::new();
    let held = noise(64 * MIB);
    world.backend.insert("a", held.clone());
    let inode = ino(&world.files, "a").await;
    let handle = world.files.open(inode, READ).await.expect("open").handle;
    let (len, jumps) = (64 * 1024u32, 40);
    for jump in 1..=jumps {
        let at = jump * MIB + 5;
        if jump == 12 {
            // What comes next is on its way, or here.
            while world.backend.reads.load(Ordering::Relaxed) < 12 + 8 - 1 {
                tokio::task::yield_now().await;
            }
        }
        let found = world.files.read(handle, at as u64, len).await.expect("read");
        assert!(found == held[at..at + len as usize], "at {at}");
    }
    let ahead = world.backend.bytes_read.load(Ordering::Relaxed) / u64::from(len) - jumps as u64;
    assert!(ahead <= 8, "{ahead} jumps were fetched that nobody made");
}

#[tokio::test]
async fn a_directory_of_a_hundred_thousand_files_is_listed_in_pages() {
    let world = World::new();
    for index in 0..100_000 {
        world.backend.insert(&format!("wide/{index:06}"), "");
    }
    let wide = ino(&world.files, "wide").await;
    let calls = world.backend.calls();
    let handle = world.files.open_directory(wide).expect("opendir");
    let (mut count, mut at) = (0, 0);
    loop {
        let before = at;
        let mut room = 40;
        world
            .files
            .read_directory(handle, before, true, |entry| {
                if room == 0 {
                    return true;
                }
                room -= 1;
                count += 1;
                at = entry.next;
                false
            })
            .await
            .expect("readdir");
        if at == before {
            break;
        }
    }
    assert_eq!(count, 100_002);
    assert_eq!(world.backend.calls() - calls, 100, "one request a thousand files");
}

#[tokio::test]
async fn names_that_keys_cannot_spell_are_refused_and_such_keys_hidden() {
    let world = World::new();
    let root = FileSystem::ROOT;
    let long = vec![b'x'; 256];
    assert_eq!(
        world.files.create(root, &long, false).await.expect_err("too long").errno(),
        libc::ENAMETOOLONG
    );
    assert_eq!(world.files.create(root, b"\xff", false).await.expect_err("no text").errno(), libc::EILSEQ);
    for key in ["//", "a//b", "./x", "ok", "../y", "/z"] {
        world.backend.insert(key, "");
    }
    let handle = world.files.open_directory(root).expect("opendir");
    let mut names = Vec::new();
    let listed = world.files.read_directory(handle, 2, false, |entry| {
        names.push(entry.name.to_string());
        false
    });
    listed.await.expect("readdir");
    assert_eq!(names, ["a", "ok"]);
}

#[tokio::test]
async fn a_read_only_mount_refuses_every_change_with_erofs() {
    let world = World::with(|config| config.read_only = true);
    world.backend.insert("a", "x");
    let inode = ino(&world.files, "a").await;
    let (files, root) = (&world.files, FileSystem::ROOT);
    let refused = [
        files.open(inode, WRITE).await.err(),
        files.truncate(inode, 0).await.err(),
        files.create(root, b"b", false).await.err(),
        files.make_directory(root, b"d").await.err(),
        files.make_file(root, b"f").await.err(),
        files.unlink(root, b"a").await.err(),
        files.remove_directory(root, b"a").await.err(),
        files.rename((root, b"a"), (root, b"b"), false).await.err(),
    ];
    for error in refused {
        assert_eq!(error.expect("refused").errno(), libc::EROFS);
    }
    assert_eq!(world.backend.keys(), ["a"]);
}
