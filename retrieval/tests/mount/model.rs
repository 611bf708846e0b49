//! Random operations on the file system, held against a model that is a map of paths; what is durable is held against
//! the bucket.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_retrieval::mount::{FileSystem, FsError, Kind, OpenMode};
use proptest::prelude::*;

use crate::world::World;

#[derive(Clone, Debug)]
enum Step {
    /// Create or overwrite, close.
    Put(String, usize),
    /// Write at an offset of a file that may exist, close.
    WriteAt(String, u64, usize),
    Append(String, usize),
    Truncate(String, u64),
    Unlink(String),
    Mkdir(String),
    Rmdir(String),
    Rename(String, String),
    /// Another machine writes.
    Elsewhere(String, usize),
    /// Another machine deletes.
    GoneElsewhere(String),
    Read(String, u64, u32),
    List(String),
}

/// What should be there. Directories that hold nothing exist only if they were made, or emptied here.
#[derive(Default, Debug)]
struct Model {
    files: BTreeMap<String, Vec<u8>>,
    directories: BTreeSet<String>,
}

impl Model {
    fn is_directory(&self, path: &str) -> bool {
        let below = format!("{path}/");
        path.is_empty()
            || self.directories.contains(path)
            || self.files.keys().any(|key| key.starts_with(&below))
            || self.directories.iter().any(|key| key.starts_with(&below))
    }

    fn has_parent(&self, path: &str) -> bool {
        self.is_directory(parent(path)) && !self.files.contains_key(parent(path))
    }

    fn keep_parent(&mut self, path: &str) {
        let above = parent(path);
        if !above.is_empty() {
            self.directories.insert(above.to_owned());
        }
    }

    fn children(&self, path: &str) -> BTreeMap<String, Kind> {
        let below = if path.is_empty() { String::new() } else { format!("{path}/") };
        let mut children = BTreeMap::new();
        for key in self.files.keys().chain(&self.directories) {
            let Some(rest) = key.strip_prefix(&below) else { continue };
            let (name, is_deep) = rest.split_once('/').map_or((rest, false), |(name, _)| (name, true));
            if !name.is_empty() {
                let is_directory = is_deep || self.directories.contains(key);
                children.insert(name.to_owned(), if is_directory { Kind::Directory } else { Kind::File });
            }
        }
        children
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(above, _)| above)
}

fn name(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn bytes(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|at| u8::try_from((at.wrapping_mul(31) ^ seed.wrapping_mul(7)) % 251).expect("small"))
        .collect()
}

fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    (prop::option::of(prop::sample::select(vec!["d", "e", "d/f"])), name)
        .prop_map(|(above, name)| above.map_or(name.to_owned(), |above| format!("{above}/{name}")))
}

fn directory() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["d", "e", "d/f"]).prop_map(str::to_owned)
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop::sample::select(vec![0usize, 1, 10, 5000, 300_000]);
    let offset = prop::sample::select(vec![0u64, 3, 4096, 200_000]);
    prop_oneof![
        3 => (path(), len.clone()).prop_map(|(path, len)| Step::Put(path, len)),
        3 => (path(), offset.clone(), len.clone()).prop_map(|(path, at, len)| Step::WriteAt(path, at, len)),
        2 => (path(), len.clone()).prop_map(|(path, len)| Step::Append(path, len)),
        2 => (path(), offset.clone()).prop_map(|(path, at)| Step::Truncate(path, at)),
        2 => path().prop_map(Step::Unlink),
        2 => directory().prop_map(Step::Mkdir),
        2 => directory().prop_map(Step::Rmdir),
        3 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (directory(), directory()).prop_map(|(from, to)| Step::Rename(from, to)),
        2 => (path(), len).prop_map(|(path, len)| Step::Elsewhere(path, len)),
        1 => path().prop_map(Step::GoneElsewhere),
        4 => (path(), offset, 0u32..400_000).prop_map(|(path, at, len)| Step::Read(path, at, len)),
        2 => directory().prop_map(Step::List),
    ]
}

/// As the kernel does it: look up every part of the path.
async fn walk(files: &FileSystem, path: &str) -> Result<u64, FsError> {
    let mut ino = FileSystem::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let attr = files.lookup(ino, name.as_bytes()).await?;
        files.forget(attr.ino, 0);
        ino = attr.ino;
    }
    Ok(ino)
}

/// Opens as the kernel does: once more with a fresh look-up after ESTALE.
async fn open(files: &FileSystem, path: &str, write: bool, create: bool) -> Result<u64, FsError> {
    for _ in 0..2 {
        let ino = match walk(files, path).await {
            Ok(ino) => ino,
            Err(FsError::NotFound) if create => {
                let above = walk(files, parent(path)).await?;
                return Ok(files.create(above, name(path).as_bytes(), false).await?.1.handle);
            }
            Err(error) => return Err(error),
        };
        match files.open(ino, OpenMode { write, truncate: false }).await {
            Err(FsError::Stale) => {}
            done => return Ok(done?.handle),
        }
    }
    Err(FsError::Stale)
}

async fn read_all(files: &FileSystem, path: &str) -> Result<Vec<u8>, FsError> {
    let handle = open(files, path, false, false).await?;
    let mut whole = Vec::new();
    loop {
        let piece = files.read(handle, whole.len() as u64, 100_000).await?;
        if piece.is_empty() {
            break;
        }
        whole.extend_from_slice(&piece);
    }
    files.release(handle).await;
    Ok(whole)
}

/// A step that must fail where the model says that it cannot be done, and do the same where it can.
#[expect(clippy::too_many_lines, reason = "one arm a step")]
async fn apply(world: &World, model: &mut Model, step: &Step, seed: u64) -> Result<(), TestCaseError> {
    let files = &world.files;
    match step {
        Step::Put(path, len) | Step::WriteAt(path, _, len) | Step::Append(path, len) => {
            if !model.has_parent(path) || model.is_directory(path) {
                return Ok(());
            }
            let data = bytes(seed, *len);
            let handle = open(files, path, true, true).await.expect("open for writing");
            let held = model.files.entry(path.clone()).or_default();
            let offset = match step {
                Step::WriteAt(_, offset, _) => *offset,
                Step::Append(..) => held.len() as u64,
                _ => {
                    let ino = walk(files, path).await.expect("there");
                    files.truncate(ino, 0).await.expect("truncate");
                    held.clear();
                    0
                }
            };
            if !data.is_empty() {
                files.write(handle, offset, &data).await.expect("write");
                let at = usize::try_from(offset).expect("small");
                held.resize(held.len().max(at + data.len()), 0);
                held[at..at + data.len()].copy_from_slice(&data);
            }
            let ino = walk(files, path).await.expect("there");
            files.upload(ino).await.expect("close");
            files.release(handle).await;
        }
        Step::Truncate(path, size) => {
            if let Some(held) = model.files.get_mut(path) {
                let ino = walk(files, path).await.expect("there");
                files.truncate(ino, *size).await.expect("truncate");
                held.resize(usize::try_from(*size).expect("small"), 0);
            }
        }
        Step::Unlink(path) => {
            if model.files.remove(path).is_some() {
                let above = walk(files, parent(path)).await.expect("there");
                files.unlink(above, name(path).as_bytes()).await.expect("unlink");
                model.keep_parent(path);
            } else if model.has_parent(path) && !model.is_directory(path) {
                prop_assert!(matches!(walk(files, path).await, Err(FsError::NotFound)));
            }
        }
        Step::Mkdir(path) => {
            if model.has_parent(path) && !model.is_directory(path) && !model.files.contains_key(path) {
                let above = walk(files, parent(path)).await.expect("there");
                files.make_directory(above, name(path).as_bytes()).await.expect("mkdir");
                model.directories.insert(path.clone());
            }
        }
        Step::Rmdir(path) => {
            if model.is_directory(path) {
                let above = walk(files, parent(path)).await.expect("there");
                walk(files, path).await.expect("there");
                let done = files.remove_directory(above, name(path).as_bytes()).await;
                if model.children(path).is_empty() {
                    done.expect("rmdir");
                    model.directories.remove(path);
                    model.keep_parent(path);
                } else {
                    prop_assert!(matches!(done, Err(FsError::NotEmpty)), "{:?}", done);
                }
            }
        }
        Step::Rename(from, to) => rename(world, model, from, to).await?,
        Step::Elsewhere(path, len) => {
            if model.has_parent(path) && !model.is_directory(path) {
                let data = bytes(seed + 1, *len);
                world.backend.insert(path, data.clone());
                model.files.insert(path.clone(), data);
            }
        }
        Step::GoneElsewhere(path) => {
            // The last file of a directory would take it along, unless it was kept here: as on any object store.
            if model.files.contains_key(path)
                && (parent(path).is_empty() || model.directories.contains(parent(path)))
            {
                model.files.remove(path);
                world.backend.remove(path);
            }
        }
        Step::Read(path, offset, len) => {
            if let Some(held) = model.files.get(path) {
                let handle = open(files, path, false, false).await.expect("open");
                let found = files.read(handle, *offset, *len).await.expect("read");
                files.release(handle).await;
                let from = usize::try_from(*offset).expect("small").min(held.len());
                let to = (from + usize::try_from(*len).expect("small")).min(held.len());
                prop_assert!(found == held[from..to], "{}: {} bytes at {}", path, found.len(), offset);
            }
        }
        Step::List(path) => {
            if model.is_directory(path) {
                prop_assert_eq!(list(files, path).await, model.children(path), "{}", path);
            }
        }
    }
    Ok(())
}

async fn rename(world: &World, model: &mut Model, from: &str, to: &str) -> Result<(), TestCaseError> {
    let files = &world.files;
    let is_below = to.starts_with(&format!("{from}/"));
    if from == to || is_below || !model.has_parent(to) {
        return Ok(());
    }
    let is_file = model.files.contains_key(from);
    // What the kernel refuses itself never reaches us.
    let fits = if is_file {
        !model.is_directory(to)
    } else {
        model.is_directory(from) && !model.files.contains_key(to)
    };
    if !fits || from.starts_with(&format!("{to}/")) {
        return Ok(());
    }
    let (above, target) = (walk(files, parent(from)).await, walk(files, parent(to)).await);
    walk(files, from).await.expect("there");
    let _ = walk(files, to).await;
    let (above, target) = (above.expect("there"), target.expect("there"));
    let names = (name(from).as_bytes(), name(to).as_bytes());
    let done = files.rename((above, names.0), (target, names.1), false).await;
    if is_file {
        done.expect("rename a file");
        let held = model.files.remove(from).expect("there");
        model.files.insert(to.to_owned(), held);
    } else if !model.children(to).is_empty() {
        prop_assert!(matches!(done, Err(FsError::NotEmpty)), "{:?}", done);
        return Ok(());
    } else {
        done.expect("rename a directory");
        let moved = |path: &str| match path.strip_prefix(from) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{to}{rest}"),
            _ => path.to_owned(),
        };
        model.directories.insert(from.to_owned());
        model.files =
            std::mem::take(&mut model.files).into_iter().map(|(key, held)| (moved(&key), held)).collect();
        model.directories = model.directories.iter().map(|key| moved(key)).collect();
    }
    model.keep_parent(from);
    Ok(())
}

async fn list(files: &FileSystem, path: &str) -> BTreeMap<String, Kind> {
    let ino = walk(files, path).await.expect("there");
    let handle = files.open_directory(ino).expect("opendir");
    let mut found = BTreeMap::new();
    // In batches of three, as a small buffer would have it.
    let mut at = 0;
    loop {
        let mut taken = 0;
        let mut next = at;
        files
            .read_directory(handle, at, true, |entry| {
                if taken == 3 {
                    return true;
                }
                taken += 1;
                next = entry.next;
                let twice = found.insert(entry.name.to_string(), entry.kind);
                assert!(twice.is_none(), "{} was listed twice", entry.name);
                false
            })
            .await
            .expect("readdir");
        if next == at {
            break;
        }
        at = next;
    }
    files.release_directory(handle);
    assert!(found.remove(".").is_some() && found.remove("..").is_some());
    found
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let world = World::new();
    let mut model = Model::default();
    for (seed, step) in (1..).zip(&steps) {
        apply(&world, &mut model, step, seed).await?;
    }
    for (path, held) in &model.files {
        let durable = world.backend.get(path);
        prop_assert!(
            durable.as_deref() == Some(held.as_slice()),
            "{} is not in the bucket as it should be",
            path
        );
        prop_assert!(read_all(&world.files, path).await.expect("read") == *held, "{}", path);
    }
    let keys: Vec<_> = world.backend.keys().into_iter().filter(|key| !key.ends_with('/')).collect();
    prop_assert_eq!(keys, model.files.keys().cloned().collect::<Vec<_>>());
    prop_assert_eq!(world.files.counts().0, 0, "handles are left open");
    let staged = std::fs::read_dir(world.staging.path()).expect("staging").count();
    prop_assert_eq!(staged, 0, "staged files are left behind");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_does_what_a_map_of_paths_does(
        steps in proptest::collection::vec(step(), 1..40)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(run(steps))?;
    }
}
