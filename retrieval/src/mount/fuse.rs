//! Between the kernel and [`FileSystem`]: requests in, replies out, each on its own task unless it can be answered at
//! once. No request waits in a dispatch thread, so that a slow one holds up nobody else; and none is waited for by a
//! process that is being killed ([`caller`]).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, SessionACL, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use super::error::FsError;
use super::files::{Attr, FileSystem, Kind, OpenMode, ReadStart};

mod caller;

/// The most that the kernel reads or writes at once; its own limit unless an administrator raised it.
const REQUEST_LEN: u32 = 1024 * 1024;
/// Requests that the kernel may have waiting in the background: read-ahead, mostly.
const BACKGROUND_MAX: u16 = 128;
/// How far the kernel reads ahead of a program, page faults of mmap included.
const READ_AHEAD_KIB: u32 = 8 * 1024;
/// Threads that take requests from the kernel. They never wait, so few do.
const DISPATCHERS: usize = 3;
/// What never changes may be believed for a day.
const TTL_IMMUTABLE: Duration = Duration::from_secs(24 * 3600);
/// What `statfs` shows: objects have no such bounds.
const SHOWN_BLOCKS: u64 = 1 << 38;
const BLOCK_LEN: u32 = 4096;

/// How the mount looks to this machine.
#[derive(Clone, Debug)]
pub struct FuseOptions {
    /// What `mount` shows as the source.
    pub source: String,
    /// Users other than the one who mounts may use it.
    pub allow_other: bool,
    /// Owner of everything.
    pub uid: u32,
    /// Group of everything.
    pub gid: u32,
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    session: BackgroundSession,
    dir: PathBuf,
}

impl Mounted {
    /// Mounts at `dir`. Must be called within a tokio runtime: requests are served there.
    pub fn new(files: Arc<FileSystem>, dir: &Path, options: &FuseOptions) -> io::Result<Self> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(options.source.clone()),
            MountOption::Subtype("holdfast".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoAtime,
        ];
        if files.config().read_only {
            config.mount_options.push(MountOption::RO);
        }
        config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(DISPATCHERS);
        config.clone_fd = true;
        let ttl = if files.config().immutable { TTL_IMMUTABLE } else { files.config().ttl };
        let bridge = Bridge { files, runtime: Handle::current(), owner: (options.uid, options.gid), ttl };
        let session = fuser::spawn_mount(bridge, dir, &config)?;
        Ok(Self { session, dir: dir.to_owned() })
    }

    /// Lets the kernel read far ahead; says whether it does. Takes root, as the file under /sys does.
    pub fn raise_read_ahead(&self) -> io::Result<()> {
        let device = std::fs::metadata(&self.dir)?.dev();
        let path = format!("/sys/class/bdi/{}:{}/read_ahead_kb", libc::major(device), libc::minor(device));
        std::fs::write(path, READ_AHEAD_KIB.to_string())
    }

    /// Whether somebody unmounted it.
    pub fn is_over(&self) -> bool {
        self.session.guard.is_finished()
    }

    /// Unmounts and waits until the last request is answered. EBUSY while a file is open.
    pub fn unmount(self) -> io::Result<()> {
        self.session.umount_and_join()
    }

    /// Waits for the end of a mount that somebody else unmounted.
    pub fn join(self) -> io::Result<()> {
        self.session.join()
    }
}

/// What fuser calls.
struct Bridge {
    files: Arc<FileSystem>,
    runtime: Handle,
    owner: (u32, u32),
    ttl: Duration,
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge").finish_non_exhaustive()
    }
}

/// What replies need, apart from the file system.
#[derive(Clone, Copy)]
struct Look {
    owner: (u32, u32),
    ttl: Duration,
    read_only: bool,
}

impl Look {
    fn mode(self, kind: Kind) -> u16 {
        match (kind, self.read_only) {
            (Kind::Directory, false) => 0o755,
            (Kind::Directory, true) => 0o555,
            (Kind::File, false) => 0o644,
            (Kind::File, true) => 0o444,
        }
    }

    fn attr(self, attr: &Attr) -> FileAttr {
        let time = UNIX_EPOCH + Duration::from_millis(attr.modified_ms);
        FileAttr {
            ino: INodeNo(attr.ino),
            size: attr.size,
            blocks: attr.size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: file_type(attr.kind),
            perm: self.mode(attr.kind),
            nlink: u32::from(attr.linked),
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: REQUEST_LEN,
            flags: 0,
        }
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
    }
}

fn errno(error: &FsError) -> Errno {
    let errno = Errno::from_i32(error.errno());
    // Programs see only the number: what stands behind it is for the log.
    if errno.code() == libc::EIO {
        tracing::warn!(%error, "a file operation failed with EIO");
    }
    errno
}

/// Generations tell reused inode numbers apart; ours are never reused.
const GENERATION: Generation = Generation(0);

impl Bridge {
    fn look(&self) -> Look {
        Look { owner: self.owner, ttl: self.ttl, read_only: self.files.config().read_only }
    }

    fn spawn<F>(&self, work: impl FnOnce(Arc<FileSystem>, Look) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (files, look) = (Arc::clone(&self.files), self.look());
        self.runtime.spawn(work(files, look));
    }

    /// Answers with what `work` comes to, or with EINTR as soon as the caller is being killed. `work` then goes on
    /// without him, so that nothing is left half done; what it comes to is for `late`.
    fn answer<T, F>(
        &self,
        request: &Request,
        work: impl FnOnce(Arc<FileSystem>) -> F,
        reply: impl FnOnce(Look, Result<T, FsError>) + Send + 'static,
        late: impl FnOnce(Arc<FileSystem>, T) + Send + 'static,
    ) where
        T: Send,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        let (tid, look, files) = (request.pid(), self.look(), Arc::clone(&self.files));
        let work = work(Arc::clone(&self.files));
        self.runtime.spawn(async move {
            tokio::pin!(work);
            tokio::select! {
                biased;
                done = &mut work => return reply(look, done),
                () = caller::killed(tid) => {}
            }
            reply(look, Err(FsError::Interrupted));
            if let Ok(done) = work.await {
                late(files, done);
            }
        });
    }

    /// Answers with an entry.
    fn entry<F>(&self, request: &Request, reply: ReplyEntry, work: impl FnOnce(Arc<FileSystem>) -> F)
    where
        F: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        let answer = |look: Look, found: Result<Attr, FsError>| match found {
            Ok(attr) => reply.entry(&look.ttl, &look.attr(&attr), GENERATION),
            Err(error) => reply.error(errno(&error)),
        };
        self.answer(request, work, answer, |files, attr| files.forget(attr.ino, 1));
    }

    /// Answers with success or an error.
    fn done<F>(&self, request: &Request, reply: ReplyEmpty, work: impl FnOnce(Arc<FileSystem>) -> F)
    where
        F: Future<Output = Result<(), FsError>> + Send + 'static,
    {
        let answer = |_, done: Result<(), FsError>| match done {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(errno(&error)),
        };
        self.answer(request, work, answer, |_, ()| {});
    }

    /// Answers with attributes.
    fn attributes<F>(&self, request: &Request, reply: ReplyAttr, work: impl FnOnce(Arc<FileSystem>) -> F)
    where
        F: Future<Output = Result<Attr, FsError>> + Send + 'static,
    {
        let answer = |look: Look, found: Result<Attr, FsError>| match found {
            Ok(attr) => reply.attr(&look.ttl, &look.attr(&attr)),
            Err(error) => reply.error(errno(&error)),
        };
        self.answer(request, work, answer, |_, _| {});
    }

    /// Owner and mode are not kept: setting them to what they are is fine, to anything else EPERM.
    fn may_set(&self, attr: &Attr, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>) -> bool {
        let same = |wanted: Option<u32>, is: u32| wanted.is_none_or(|wanted| wanted == is);
        same(mode.map(|mode| mode & 0o7777), u32::from(self.look().mode(attr.kind)))
            && same(uid, self.owner.0)
            && same(gid, self.owner.1)
    }
}

impl Filesystem for Bridge {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(REQUEST_LEN);
        if let Err(most) = config.set_max_readahead(READ_AHEAD_KIB * 1024) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_congestion_threshold(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.entry(request, reply, |files| async move { files.lookup(parent.0, &name).await });
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.files.forget(ino.0, lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.attributes(request, reply, |files| async move { files.getattr(ino.0).await });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let may_set = {
            let attr = self.files.known_attr(ino.0);
            attr.is_ok_and(|attr| self.may_set(&attr, mode, uid, gid))
        };
        self.attributes(request, reply, |files| async move {
            files.writable()?;
            if !may_set {
                return Err(FsError::NotPermitted);
            }
            if let Some(size) = size {
                files.truncate(ino.0, size).await?;
            }
            // Times are the object's own: taken, and not kept.
            files.known_attr(ino.0)
        });
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        if mode & libc::S_IFMT != libc::S_IFREG {
            return reply.error(Errno::EPERM);
        }
        let name = name.as_bytes().to_vec();
        self.entry(request, reply, |files| async move { files.make_file(parent.0, &name).await });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.entry(request, reply, |files| async move { files.make_directory(parent.0, &name).await });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.done(request, reply, |files| async move { files.unlink(parent.0, &name).await });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.done(request, reply, |files| async move { files.remove_directory(parent.0, &name).await });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if flags.intersects(!RenameFlags::RENAME_NOREPLACE) {
            return reply.error(Errno::EINVAL);
        }
        let (name, newname) = (name.as_bytes().to_vec(), newname.as_bytes().to_vec());
        let no_replace = flags.contains(RenameFlags::RENAME_NOREPLACE);
        self.done(request, reply, |files| async move {
            files.rename((parent.0, &name), (newparent.0, &newname), no_replace).await
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mode = OpenMode {
            write: flags.acc_mode() != OpenAccMode::O_RDONLY,
            truncate: flags.0 & libc::O_TRUNC != 0,
        };
        self.answer(
            request,
            |files| async move { files.open(ino.0, mode).await },
            |_, opened| match opened {
                Ok(opened) => reply.opened(FileHandle(opened.handle), open_flags(opened.keep_pages)),
                Err(error) => reply.error(errno(&error)),
            },
            |files, opened| close(files, opened.handle),
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name.as_bytes().to_vec();
        let exclusive = flags & libc::O_EXCL != 0;
        self.answer(
            request,
            |files| async move { files.create(parent.0, &name, exclusive).await },
            |look, created| match created {
                Ok((attr, opened)) => {
                    let (attr, handle) = (look.attr(&attr), FileHandle(opened.handle));
                    reply.created(&look.ttl, &attr, GENERATION, handle, open_flags(true));
                }
                Err(error) => reply.error(errno(&error)),
            },
            |files, (attr, opened)| {
                files.forget(attr.ino, 1);
                close(files, opened.handle);
            },
        );
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // `begin_read` spawns what it fetches ahead; the handle of the runtime is its own.
        match self.files.begin_read(fh.0, offset, size) {
            Ok(ReadStart::Ready(bytes)) => reply.data(&bytes),
            Err(error) => reply.error(errno(&error)),
            Ok(ReadStart::Wait(wait)) => self.answer(
                request,
                |files| async move { files.finish_read(wait).await },
                |_, read| match read {
                    Ok(bytes) => reply.data(&bytes),
                    Err(error) => reply.error(errno(&error)),
                },
                |_, _| {},
            ),
        }
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        // A request has at most REQUEST_LEN bytes.
        let written = u32::try_from(data.len()).unwrap_or(u32::MAX);
        match self.files.try_write(fh.0, offset, data) {
            Some(Ok(())) => reply.written(written),
            Some(Err(error)) => reply.error(errno(&error)),
            None => {
                let data = data.to_vec();
                self.answer(
                    request,
                    |files| async move { files.write(fh.0, offset, &data).await },
                    move |_, done| match done {
                        Ok(()) => reply.written(written),
                        Err(error) => reply.error(errno(&error)),
                    },
                    |_, ()| {},
                );
            }
        }
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        if !self.files.may_write(fh.0) {
            return reply.ok();
        }
        self.done(request, reply, |files| async move { files.upload(ino.0).await });
    }

    fn fsync(&self, request: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.done(request, reply, |files| async move { files.upload(ino.0).await });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        close(Arc::clone(&self.files), fh.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.files.open_directory(ino.0) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readdir(&self, request: &Request, _: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let tid = request.pid();
        self.spawn(|files, _| async move {
            let read = files.read_directory(fh.0, offset, false, |entry| {
                let ino = INodeNo(entry.ino.unwrap_or(UNKNOWN_INO));
                reply.add(ino, entry.next, file_type(entry.kind), OsStr::new(&*entry.name))
            });
            match unless_killed(tid, read).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let tid = request.pid();
        self.spawn(|files, look| async move {
            let read = files.read_directory(fh.0, offset, true, |entry| {
                let Some(attr) = entry.attr else { return false };
                let attr = look.attr(&attr);
                reply.add(attr.ino, entry.next, OsStr::new(&*entry.name), &look.ttl, &attr, GENERATION)
            });
            match unless_killed(tid, read).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.files.release_directory(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // Names are durable when the call that made them returns.
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let free = if self.files.config().read_only { 0 } else { SHOWN_BLOCKS };
        reply.statfs(SHOWN_BLOCKS, free, free, 0, 0, BLOCK_LEN, 255, BLOCK_LEN);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if !name.as_bytes().starts_with(b"user.holdfast.") {
            // ACLs and capabilities, asked for before every write: answered without a task.
            return reply.error(Errno::NO_XATTR);
        }
        let name = name.as_bytes().to_vec();
        self.answer(
            request,
            |files| async move { files.attribute(ino.0, &name).await },
            move |_, found| match found {
                Ok(value) => answer_attribute(value.as_bytes(), size, reply),
                Err(error) => reply.error(errno(&error)),
            },
            |_, _| {},
        );
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.files.attribute_names(ino.0) {
            Ok(names) => {
                let list: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), &[0]].concat()).collect();
                answer_attribute(&list, size, reply);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.done(request, reply, |files| async move {
            let end = offset.checked_add(length).ok_or(FsError::Invalid)?;
            if end > files.known_attr(ino.0)?.size { files.truncate(ino.0, end).await } else { Ok(()) }
        });
    }
}

/// Closes a file; what it left is uploaded behind the answer.
fn close(files: Arc<FileSystem>, handle: u64) {
    if let Some(ino) = files.close(handle) {
        let runtime = files.runtime().clone();
        runtime.spawn(async move { files.settle_closed(ino).await });
    }
}

/// For what may be dropped at any point.
async fn unless_killed<T>(tid: u32, work: impl Future<Output = Result<T, FsError>>) -> Result<T, FsError> {
    tokio::select! {
        biased;
        done = work => done,
        () = caller::killed(tid) => Err(FsError::Interrupted),
    }
}

/// An entry that has no inode yet.
const UNKNOWN_INO: u64 = 0xffff_ffff;

fn open_flags(keep_pages: bool) -> FopenFlags {
    if keep_pages { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}

/// A value, or its length when `size` is 0.
fn answer_attribute(value: &[u8], size: u32, reply: ReplyXattr) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.size(len);
    } else if len > size {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}
