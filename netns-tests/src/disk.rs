//! A disk under SQLite that records what is written and what is forced, and that fails on demand: as a VFS which hands
//! everything on to the usual one. With the record, a power cut at any moment can be played.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, OnceLock, PoisonError};

use rusqlite::ffi;

/// What a power cut may tear apart: a sector is written whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What happened to the files below the recorded directory, in order.
#[derive(Debug, Clone)]
pub enum Event {
    /// Made, unless it was there.
    Open {
        file: PathBuf,
    },
    Write {
        file: PathBuf,
        offset: usize,
        bytes: Vec<u8>,
    },
    Truncate {
        file: PathBuf,
        size: usize,
    },
    Sync {
        file: PathBuf,
    },
    Delete {
        file: PathBuf,
        forced: bool,
    },
    /// Something that whoever records wants to find again.
    Mark(u64),
}

/// How the disk fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// ENOSPC at each write.
    Full,
    /// EIO at each write.
    Write,
    /// EIO at each sync.
    Sync,
}

impl Failure {
    const fn of_write(self) -> c_int {
        match self {
            Failure::Full => ffi::SQLITE_FULL,
            Failure::Write => ffi::SQLITE_IOERR_WRITE,
            Failure::Sync => ffi::SQLITE_OK,
        }
    }
    const fn of_sync(self) -> c_int {
        match self {
            Failure::Sync => ffi::SQLITE_IOERR_FSYNC,
            Failure::Full | Failure::Write => ffi::SQLITE_OK,
        }
    }
}

#[derive(Default)]
struct State {
    directory: Option<PathBuf>,
    events: Vec<Event>,
    failure: Option<Failure>,
}

static STATE: OnceLock<Mutex<State>> = OnceLock::new();

fn state() -> MutexGuard<'static, State> {
    STATE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Watches one directory; databases of this process are opened through it from the first use on. One at a time.
pub struct Disk {
    _one: MutexGuard<'static, ()>,
}

impl Disk {
    pub fn watch(directory: &Path) -> Disk {
        static ONE: Mutex<()> = Mutex::new(());
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        register();
        *state() = State { directory: Some(directory.to_owned()), ..State::default() };
        Disk { _one: one }
    }

    pub fn mark(&self, number: u64) {
        mark(number);
    }

    /// What happened since the begin.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut state().events)
    }

    pub fn fail(&self, failure: Option<Failure>) {
        state().failure = failure;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        *state() = State::default();
    }
}

/// Of the disk that is watched now.
pub fn mark(number: u64) {
    state().events.push(Event::Mark(number));
}

fn watched(file: &Path) -> bool {
    state().directory.as_ref().is_some_and(|directory| file.starts_with(directory))
}

/// The files as a disk holds them: what was forced, and what was written since and may be lost.
#[derive(Debug, Clone, Default)]
pub struct Platter {
    files: BTreeMap<PathBuf, Stored>,
}

#[derive(Debug, Clone, Default)]
struct Stored {
    forced: Vec<u8>,
    /// Its name is in the directory for good.
    named: bool,
    /// Deleted, which is not in the directory for good.
    gone: bool,
    /// The next sync of it also forces the directory: SQLite does so once for each journal or log that it opens.
    forces_names: bool,
    loose: Vec<Event>,
}

impl Platter {
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Open { file } => {
                let stored = self.files.entry(file.clone()).or_default();
                if stored.gone {
                    *stored = Stored::default();
                }
                stored.forces_names = ["-journal", "-wal"].iter().any(|end| file.to_string_lossy().ends_with(end));
            }
            Event::Write { file, .. } | Event::Truncate { file, .. } => {
                self.files.entry(file.clone()).or_default().loose.push(event.clone());
            }
            Event::Sync { file } => {
                let stored = self.files.entry(file.clone()).or_default();
                for event in std::mem::take(&mut stored.loose) {
                    write(&mut stored.forced, &event, |_| true);
                }
                if std::mem::take(&mut stored.forces_names) {
                    self.files.retain(|_, stored| !stored.gone);
                    self.files.values_mut().for_each(|stored| stored.named = true);
                }
            }
            Event::Delete { file, forced: true } => drop(self.files.remove(file)),
            Event::Delete { file, forced: false } => {
                if let Some(stored) = self.files.get_mut(file) {
                    stored.gone = true;
                }
            }
            Event::Mark(_) => {}
        }
    }

    /// What is there after the power comes back: each loose write happened, or did not, or sector by sector.
    pub fn after_cut(&self, mut coin: impl FnMut(u64) -> u64) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        for (path, stored) in &self.files {
            if (!stored.named || stored.gone) && coin(2) == 0 {
                continue;
            }
            let mut bytes = stored.forced.clone();
            for event in &stored.loose {
                match coin(3) {
                    0 => {}
                    1 => write(&mut bytes, event, |_| true),
                    _ => write(&mut bytes, event, |_| coin(2) == 0),
                }
            }
            found.insert(path.clone(), bytes);
        }
        found
    }
}

/// The sectors that `stays` chooses, by their place in the write.
fn write(content: &mut Vec<u8>, event: &Event, mut stays: impl FnMut(usize) -> bool) {
    match event {
        Event::Write { offset, bytes, .. } => {
            for (n, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                if stays(n) {
                    let from = offset + n * SECTOR_BYTES;
                    content.resize(content.len().max(from + sector.len()), 0);
                    content[from..from + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Event::Truncate { size, .. } if stays(0) => content.resize(*size, 0),
        _ => {}
    }
}

/// An open file of ours; the usual VFS's file follows in the same allocation, which SQLite makes.
#[repr(C)]
struct Shim {
    base: ffi::sqlite3_file,
    path: *mut PathBuf,
}

struct Usual(*mut ffi::sqlite3_vfs);
// SAFETY: SQLite's VFS objects live for ever and may be called from every thread.
unsafe impl Send for Usual {}
// SAFETY: as above; the pointer itself never changes.
unsafe impl Sync for Usual {}
static USUAL: OnceLock<Usual> = OnceLock::new();

fn usual() -> *mut ffi::sqlite3_vfs {
    USUAL.get().expect("registered before the first file is opened").0
}

fn register() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the default VFS exists; our copy of it lives for ever, and differs only in what is set here.
        unsafe {
            let real = ffi::sqlite3_vfs_find(std::ptr::null());
            assert!(!real.is_null(), "SQLite has a default VFS");
            drop(USUAL.set(Usual(real)));
            let ours = Box::leak(Box::new(*real));
            ours.zName = c"recorded".as_ptr();
            ours.szOsFile += size_of::<Shim>() as c_int;
            ours.pNext = std::ptr::null_mut();
            ours.xOpen = Some(open);
            ours.xDelete = Some(delete);
            assert_eq!(ffi::sqlite3_vfs_register(ours, 1), ffi::SQLITE_OK);
        }
    });
}

/// The usual VFS's part of an open file.
fn inner(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
    file.cast::<u8>().wrapping_add(size_of::<Shim>()).cast()
}

/// # Safety
/// `file` is one that `open` has filled.
unsafe fn path_of<'a>(file: *mut ffi::sqlite3_file) -> &'a Path {
    // SAFETY: `open` has put a leaked path there, which lives until `close`.
    unsafe { &*(*file.cast::<Shim>()).path }
}

unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives `szOsFile` bytes at `file`, enough for both parts, and a name that lasts; or none.
    unsafe {
        (*file).pMethods = std::ptr::null();
        let real = usual();
        let opened = (*real).xOpen.expect("a VFS opens files")(real, name, inner(file), flags, out_flags);
        if !(*inner(file)).pMethods.is_null() {
            let path = if name.is_null() {
                PathBuf::new()
            } else {
                PathBuf::from(CStr::from_ptr(name).to_string_lossy().into_owned())
            };
            record(&path, |file| Event::Open { file });
            (*file.cast::<Shim>()).path = Box::into_raw(Box::new(path));
            (*file).pMethods = &raw const METHODS;
        }
        opened
    }
}

unsafe extern "C" fn delete(_vfs: *mut ffi::sqlite3_vfs, name: *const c_char, force: c_int) -> c_int {
    // SAFETY: a valid name from SQLite, handed on.
    let (file, outcome) = unsafe {
        let real = usual();
        let file = PathBuf::from(CStr::from_ptr(name).to_string_lossy().into_owned());
        (file, (*real).xDelete.expect("a VFS deletes files")(real, name, force))
    };
    if outcome == ffi::SQLITE_OK && watched(&file) {
        state().events.push(Event::Delete { file, forced: force != 0 });
    }
    outcome
}

/// Methods that hand on to the usual VFS and do nothing else.
macro_rules! hand_on {
    ($($name:ident = $method:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?;)*) => {
        $(unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file, $($arg: $type),*) $(-> $out)? {
            // SAFETY: the arguments are SQLite's; the inner file was opened by the VFS whose method this is.
            unsafe { (*(*inner(file)).pMethods).$method.expect("a method of the usual VFS")(inner(file), $($arg),*) }
        })*
    };
}

hand_on! {
    read = xRead(to: *mut c_void, bytes: c_int, offset: ffi::sqlite3_int64) -> c_int;
    real_write = xWrite(from: *const c_void, bytes: c_int, offset: ffi::sqlite3_int64) -> c_int;
    real_truncate = xTruncate(size: ffi::sqlite3_int64) -> c_int;
    real_sync = xSync(flags: c_int) -> c_int;
    real_close = xClose() -> c_int;
    file_size = xFileSize(size: *mut ffi::sqlite3_int64) -> c_int;
    lock = xLock(level: c_int) -> c_int;
    unlock = xUnlock(level: c_int) -> c_int;
    check_reserved_lock = xCheckReservedLock(out: *mut c_int) -> c_int;
    file_control = xFileControl(op: c_int, arg: *mut c_void) -> c_int;
    sector_size = xSectorSize() -> c_int;
    device_characteristics = xDeviceCharacteristics() -> c_int;
    shm_map = xShmMap(page: c_int, size: c_int, extend: c_int, out: *mut *mut c_void) -> c_int;
    shm_lock = xShmLock(offset: c_int, n: c_int, flags: c_int) -> c_int;
    shm_barrier = xShmBarrier();
    shm_unmap = xShmUnmap(delete: c_int) -> c_int;
}

/// Version 2: with shared memory for the log's index, without mapped reads.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(record_write),
    xTruncate: Some(record_truncate),
    xSync: Some(record_sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: `open` has made the path, and nobody uses the file after this.
    unsafe {
        drop(Box::from_raw((*file.cast::<Shim>()).path));
        real_close(file)
    }
}

unsafe extern "C" fn record_write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    bytes: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite gives so many readable bytes.
    let (path, content) =
        unsafe { (path_of(file), std::slice::from_raw_parts(from.cast::<u8>(), bytes as usize).to_vec()) };
    if let Some(failed) = failure_of(path).map(Failure::of_write).filter(|code| *code != ffi::SQLITE_OK) {
        return failed;
    }
    record(path, |file| Event::Write { file, offset: offset as usize, bytes: content });
    // SAFETY: as it was given.
    unsafe { real_write(file, from, bytes, offset) }
}

unsafe extern "C" fn record_truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    // SAFETY: an open file of ours.
    record(unsafe { path_of(file) }, |file| Event::Truncate { file, size: size as usize });
    // SAFETY: as it was given.
    unsafe { real_truncate(file, size) }
}

unsafe extern "C" fn record_sync(file: *mut ffi::sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: an open file of ours.
    let path = unsafe { path_of(file) };
    if let Some(failed) = failure_of(path).map(Failure::of_sync).filter(|code| *code != ffi::SQLITE_OK) {
        return failed;
    }
    // SAFETY: as it was given.
    let outcome = unsafe { real_sync(file, flags) };
    if outcome == ffi::SQLITE_OK {
        record(path, |file| Event::Sync { file });
    }
    outcome
}

fn failure_of(file: &Path) -> Option<Failure> {
    let state = state();
    state.failure.filter(|_| state.directory.as_ref().is_some_and(|directory| file.starts_with(directory)))
}

fn record(path: &Path, event: impl FnOnce(PathBuf) -> Event) {
    if watched(path) {
        state().events.push(event(path.to_owned()));
    }
}
