//! Through the kernel: what programs do, on a real mount.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use crate::world::{Mount, World};

const MIB: usize = 1 << 20;

fn errno(result: std::io::Result<impl Sized>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_write_read_rename_and_list() {
    let Some(mut mount) = Mount::new(World::new()) else { return };
    let backend = Arc::clone(&mount.world.backend);
    backend.insert("seen/elsewhere", "from another machine");
    mount
        .program(|dir| {
            assert_eq!(fs::read_to_string(dir.join("seen/elsewhere")).expect("read"), "from another machine");
            fs::create_dir(dir.join("d")).expect("mkdir");
            fs::write(dir.join("d/tmp"), vec![7; 3 * MIB]).expect("write");
            fs::write(dir.join("d/final"), b"old").expect("write");
            fs::rename(dir.join("d/tmp"), dir.join("d/final")).expect("rename over");
            assert_eq!(fs::read(dir.join("d/final")).expect("read"), vec![7; 3 * MIB]);
            let mut log = OpenOptions::new().append(true).create(true).open(dir.join("log")).expect("open");
            log.write_all(b"one\n").expect("append");
            log.write_all(b"two\n").expect("append");
            log.sync_all().expect("fsync");
            drop(log);
            let mut log = OpenOptions::new().append(true).open(dir.join("log")).expect("open");
            log.write_all(b"three\n").expect("append");
            drop(log);
            assert_eq!(fs::read_to_string(dir.join("log")).expect("read"), "one\ntwo\nthree\n");
            let file = OpenOptions::new().write(true).open(dir.join("log")).expect("open");
            file.set_len(4).expect("truncate");
            file.write_all_at(b"!", 6).expect("write behind the end");
            drop(file);
            assert_eq!(fs::read(dir.join("log")).expect("read"), b"one\n\0\0!");
            let mut names: Vec<_> =
                fs::read_dir(&dir).expect("readdir").map(|entry| entry.expect("entry").file_name()).collect();
            names.sort();
            assert_eq!(names, ["d", "log", "seen"]);
            fs::remove_file(dir.join("d/final")).expect("unlink");
            fs::remove_dir(dir.join("d")).expect("an emptied directory is still there to be removed");
        })
        .await;
    assert_eq!(backend.get("log").as_deref(), Some(&b"one\n\0\0!"[..]));
    assert_eq!(backend.keys(), ["log", "seen/elsewhere"]);
    mount.unmount().await.expect("unmount");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failures_have_the_errno_that_programs_expect() {
    let Some(mount) = Mount::new(World::new()) else { return };
    mount.world.backend.insert("f", "x");
    mount.world.backend.insert("d/g", "y");
    mount
        .program(|dir| {
            let at = |name: &str| dir.join(name);
            assert_eq!(errno(File::open(at("none"))), Some(libc::ENOENT));
            assert_eq!(errno(fs::read_dir(at("f"))), Some(libc::ENOTDIR));
            assert_eq!(errno(File::open(at("f/x"))), Some(libc::ENOTDIR));
            assert_eq!(errno(OpenOptions::new().write(true).open(at("d"))), Some(libc::EISDIR));
            assert_eq!(errno(fs::create_dir(at("d"))), Some(libc::EEXIST));
            assert_eq!(errno(File::create_new(at("f"))), Some(libc::EEXIST));
            assert_eq!(errno(fs::remove_dir(at("d"))), Some(libc::ENOTEMPTY));
            assert_eq!(errno(fs::rename(at("f"), at("d"))), Some(libc::EISDIR));
            assert_eq!(errno(fs::rename(at("d"), at("d/e"))), Some(libc::EINVAL));
            assert_eq!(errno(fs::hard_link(at("f"), at("g"))), Some(libc::EPERM));
            assert_eq!(errno(std::os::unix::fs::symlink("f", at("s"))), Some(libc::EPERM));
            assert_eq!(errno(fs::write(at(&"n".repeat(256)), b"")), Some(libc::ENAMETOOLONG));
            let deep = vec!["p".repeat(200); 6].join("/");
            assert!(errno(fs::create_dir_all(at(&deep))).is_some(), "a key has 1,024 bytes");
            let mode = |mode| -> fs::Permissions { std::os::unix::fs::PermissionsExt::from_mode(mode) };
            assert_eq!(errno(fs::set_permissions(at("f"), mode(0o600))), Some(libc::EPERM));
            assert_eq!(errno(fs::set_permissions(at("f"), mode(0o644))), None);
            assert_eq!(errno(std::os::unix::fs::chown(at("f"), Some(12345), None)), Some(libc::EPERM));
            let file = OpenOptions::new().write(true).open(at("f")).expect("open");
            assert_eq!(errno(file.set_len(6 << 40)), Some(libc::EFBIG));
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_machine_closed_is_what_the_next_open_reads() {
    let one = World::new();
    let other = World::over(Arc::clone(&one.backend), |_| {});
    let (Some(one), Some(other)) = (Mount::new(one), Mount::new(other)) else { return };
    let (here, there) = (one.path(), other.path());
    one.program(move |_| {
        for round in 0..20 {
            let text = format!("round {round} {}", "x".repeat(round * 1000));
            fs::write(here.join("f"), &text).expect("write");
            assert_eq!(fs::read_to_string(there.join("f")).expect("read"), text);
            let mut held = File::open(there.join("f")).expect("open");
            fs::write(there.join("back"), &text).expect("write");
            assert_eq!(fs::read_to_string(here.join("back")).expect("read"), text);
            let mut still = String::new();
            held.read_to_string(&mut still).expect("read");
            assert_eq!(still, text);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flock_holds_on_this_machine() {
    let Some(mount) = Mount::new(World::new()) else { return };
    mount
        .program(|dir| {
            let one = File::create(dir.join("lock")).expect("create");
            let other = File::open(dir.join("lock")).expect("open");
            one.lock().expect("lock");
            assert!(matches!(other.try_lock(), Err(fs::TryLockError::WouldBlock)));
            one.unlock().expect("unlock");
            other.try_lock().expect("free again");
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_thousand_files_are_open_at_once() {
    let room = raise_file_limit();
    let files_max = usize::try_from(room.saturating_sub(1000)).expect("fits");
    // The system may allow fewer: then fewer, and it is said.
    let count = files_max.min(20_000);
    assert!(count >= 3_000, "only {room} open files are allowed here: see ulimit -Hn");
    if count < 20_000 {
        eprintln!("NOTE: {count} files instead of 20,000: no more than {room} may be open here");
    }
    let Some(mut mount) = Mount::new(World::new()) else { return };
    for index in 0..count {
        mount.world.backend.insert(&format!("many/{index:05}"), format!("{index}"));
    }
    let files = Arc::clone(&mount.world.files);
    mount
        .program(move |dir| {
            let open: Vec<_> = fs::read_dir(dir.join("many"))
                .expect("readdir")
                .map(|entry| File::open(entry.expect("entry").path()).expect("open"))
                .collect();
            assert_eq!(open.len(), count);
            // The kernel closes the directory behind the program's back.
            assert!((count..=count + 1).contains(&files.counts().0));
            let mut sum = 0usize;
            for mut file in open.into_iter().step_by(97) {
                let mut text = String::new();
                file.read_to_string(&mut text).expect("read");
                sum += text.parse::<usize>().expect("a number") % 2;
            }
            assert!(sum > 0);
        })
        .await;
    mount.unmount().await.expect("unmount");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_was_closed_has_its_root_cid_at_once() {
    let Some(mut mount) = Mount::new(World::new()) else { return };
    mount
        .program(|dir| {
            // The kernel lets go of a closed file in its own time: many rounds, to meet it early and late.
            for round in 0..300 {
                let path = dir.join("f");
                fs::write(&path, format!("round {round}")).expect("write and close");
                let mut value = [0; 64];
                let len = rustix::fs::getxattr(&path, "user.holdfast.cid", &mut value[..])
                    .unwrap_or_else(|error| panic!("round {round}: {error}"));
                assert!(value[..len].starts_with(b"cid-of-"), "round {round}");
            }
            let mut file = File::create(dir.join("g")).expect("create");
            file.write_all(b"not closed").expect("write");
            let mut value = [0; 64];
            let none = rustix::fs::getxattr(dir.join("g"), "user.holdfast.cid", &mut value[..]);
            assert_eq!(none, Err(rustix::io::Errno::NODATA), "what was not uploaded has none");
        })
        .await;
    mount.unmount().await.expect("unmount");
}

/// Takes all the open files that the system allows; returns how many.
fn raise_file_limit() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).expect("up to the hard limit");
    limit.maximum.unwrap_or(u64::MAX)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_files_go_both_ways_at_any_offset() {
    let Some(mount) = Mount::new(World::new()) else { return };
    let backend = Arc::clone(&mount.world.backend);
    let held = mount
        .program(|dir| {
            let held: Vec<u8> = (0..50 * MIB).map(|at| u8::try_from(at % 249).expect("a byte")).collect();
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(dir.join("big"))
                .expect("open");
            file.write_all(&held).expect("write");
            file.seek(SeekFrom::Start(0)).expect("seek");
            file.sync_all().expect("fsync");
            drop(file);
            let file = File::open(dir.join("big")).expect("open");
            assert_eq!(file.metadata().expect("stat").size(), held.len() as u64);
            let mut piece = vec![0; 70_001];
            for at in [0, 1, 33 * MIB + 5, 17 * MIB, 49 * MIB] {
                file.read_exact_at(&mut piece, at as u64).expect("read");
                assert!(piece == held[at..at + piece.len()], "at {at}");
            }
            held
        })
        .await;
    assert!(backend.get("big").expect("there") == held);
}
