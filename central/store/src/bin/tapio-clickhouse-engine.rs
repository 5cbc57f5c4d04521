//! The embedded engine's launcher: loads `libchdb.so` into a process of its own and runs its command line.
//!
//! A crash of the engine must not take a tier along, so the library is never loaded into one. The supervisor
//! (`tapio_store::engine`) is the only caller; it carries this program inside itself (`build.rs` compiles this
//! one file with nothing but the standard library) so that there is no second file to install or to be stale.
//!
//! The process ends when its standard input closes, and the kernel kills it when the supervisor dies. It must
//! never outlive the supervisor, regain the privileges that it gave up, or write outside the state directory.
#![allow(unsafe_code, reason = "loading the engine and giving up privileges are calls into C")]
#![allow(clippy::print_stderr, reason = "the supervisor reads this program's standard error and reports it")]

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_ulong, c_void};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

const RTLD_NOW: c_int = 2;
const PR_SET_PDEATHSIG: c_int = 1;
const PR_SET_NO_NEW_PRIVS: c_int = 38;
const SIGKILL: c_ulong = 9;
const RLIMIT_CORE: c_int = 4;
const RLIMIT_NOFILE: c_int = 7;

#[repr(C)]
struct Limit {
    soft: u64,
    hard: u64,
}

unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, symbol: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
    fn prctl(option: c_int, a: c_ulong, b: c_ulong, c: c_ulong, d: c_ulong) -> c_int;
    fn setgroups(count: usize, groups: *const u32) -> c_int;
    fn setresgid(real: u32, effective: u32, saved: u32) -> c_int;
    fn setresuid(real: u32, effective: u32, saved: u32) -> c_int;
    fn getrlimit(resource: c_int, limit: *mut Limit) -> c_int;
    fn setrlimit(resource: c_int, limit: *const Limit) -> c_int;
}

/// `chdb_result * chdb_query_cmdline(int argc, char ** argv)` and `const char * chdb_result_error(chdb_result *)`.
type QueryCommandLine = unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut c_void;
type ResultError = unsafe extern "C" fn(*mut c_void) -> *const c_char;

fn main() -> ExitCode {
    let outcome = Arguments::parse(std::env::args_os().skip(1)).and_then(run);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    library: CString,
    parent: u32,
    identity: Option<(u32, u32)>,
    engine: Vec<CString>,
}

impl Arguments {
    /// `--lib FILE --parent PID [--uid N --gid N] -- ENGINE-ARGUMENTS...`
    fn parse(mut raw: impl Iterator<Item = OsString>) -> Result<Self, String> {
        let (mut library, mut parent, mut uid, mut gid) = (None, None, None, None);
        while let Some(flag) = raw.next() {
            if flag == "--" {
                break;
            }
            let value = raw.next().ok_or_else(|| format!("launcher: {} needs a value", flag.display()))?;
            match flag.to_str() {
                Some("--lib") => library = Some(c_string(value)?),
                Some("--parent") => parent = Some(number(&value)?),
                Some("--uid") => uid = Some(number(&value)?),
                Some("--gid") => gid = Some(number(&value)?),
                _ => return Err(format!("launcher: unknown argument {}", flag.display())),
            }
        }
        let mut engine = vec![c_string("clickhouse".into())?];
        for argument in raw {
            engine.push(c_string(argument)?);
        }
        Ok(Self {
            library: library.ok_or("launcher: --lib is missing; this program is started by Tapio")?,
            parent: parent.ok_or("launcher: --parent is missing; this program is started by Tapio")?,
            identity: uid.zip(gid),
            engine,
        })
    }
}

fn c_string(value: OsString) -> Result<CString, String> {
    CString::new(value.into_vec()).map_err(|_nul| "launcher: an argument holds a zero byte".to_owned())
}

fn number(value: &OsString) -> Result<u32, String> {
    value
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("launcher: {} is not a number", value.display()))
}

fn run(arguments: Arguments) -> Result<(), String> {
    die_with(arguments.parent)?;
    // Loaded before privileges go: the library may lie where only the starting user can read it.
    let engine = Engine::load(&arguments.library)?;
    bound_resources();
    if let Some((uid, gid)) = arguments.identity {
        become_user(uid, gid)?;
        // A change of user clears the death signal.
        die_with(arguments.parent)?;
    }
    // SAFETY: takes integers only; it makes later set-user-id programs harmless and cannot be undone.
    unsafe { prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    engine.run(&arguments.engine)
}

fn die_with(parent: u32) -> Result<(), String> {
    // SAFETY: takes integers only.
    if unsafe { prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) } != 0 {
        return Err(last_error("the engine could not be tied to its supervisor's life"));
    }
    // The supervisor may have died before the call; then no signal will ever come.
    if std::os::unix::process::parent_id() != parent {
        return Err("the supervisor is gone, so the engine does not start".to_owned());
    }
    Ok(())
}

fn become_user(uid: u32, gid: u32) -> Result<(), String> {
    // SAFETY: zero groups are read from the null pointer.
    if unsafe { setgroups(0, std::ptr::null()) } != 0 {
        return Err(last_error("supplementary groups could not be given up"));
    }
    // SAFETY: takes integers only.
    if unsafe { setresgid(gid, gid, gid) } != 0 {
        return Err(last_error("the group could not be changed"));
    }
    // SAFETY: takes integers only.
    if unsafe { setresuid(uid, uid, uid) } != 0 {
        return Err(last_error("the user could not be changed"));
    }
    Ok(())
}

/// No core files (the engine's memory is large and may hold rows), as many files as the hard limit allows.
fn bound_resources() {
    let none = Limit { soft: 0, hard: 0 };
    // SAFETY: the pointer is to a live struct of the layout that Linux uses on 64 bit.
    unsafe { setrlimit(RLIMIT_CORE, &raw const none) };
    let mut files = Limit { soft: 0, hard: 0 };
    // SAFETY: as above; the struct is written to.
    if unsafe { getrlimit(RLIMIT_NOFILE, &raw mut files) } == 0 {
        files.soft = files.hard;
        // SAFETY: as above.
        unsafe { setrlimit(RLIMIT_NOFILE, &raw const files) };
    }
}

struct Engine {
    query_command_line: QueryCommandLine,
    result_error: ResultError,
}

impl Engine {
    fn load(path: &CStr) -> Result<Self, String> {
        // SAFETY: the path is a C string; running the library's initialisers is what is wanted.
        let library = unsafe { dlopen(path.as_ptr(), RTLD_NOW) };
        if library.is_null() {
            return Err(format!("the engine's library could not be loaded: {}", loader_error()));
        }
        let command_line = symbol(library, c"chdb_query_cmdline")?;
        let result_error = symbol(library, c"chdb_result_error")?;
        Ok(Self {
            // SAFETY: chdb.h declares this symbol with exactly this signature.
            query_command_line: unsafe { std::mem::transmute::<*mut c_void, QueryCommandLine>(command_line) },
            // SAFETY: chdb.h declares this symbol with exactly this signature.
            result_error: unsafe { std::mem::transmute::<*mut c_void, ResultError>(result_error) },
        })
    }

    fn run(&self, arguments: &[CString]) -> Result<(), String> {
        let mut pointers: Vec<*mut c_char> = arguments.iter().map(|a| a.as_ptr().cast_mut()).collect();
        let count =
            c_int::try_from(pointers.len()).map_err(|_over| "launcher: too many arguments".to_owned())?;
        pointers.push(std::ptr::null_mut());
        // SAFETY: `pointers` is a null-terminated array of C strings which outlive the call; the engine does
        // not write through them.
        let result = unsafe { (self.query_command_line)(count, pointers.as_mut_ptr()) };
        if result.is_null() {
            return Err("the engine ended without a result".to_owned());
        }
        // SAFETY: `result` came from the engine and was not freed.
        let message = unsafe { (self.result_error)(result) };
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: the engine returns a C string owned by `result`, which is still alive.
        let message = unsafe { CStr::from_ptr(message) };
        if message.is_empty() { Ok(()) } else { Err(message.to_string_lossy().into_owned()) }
    }
}

fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: `library` is a live handle and `name` a C string.
    let address = unsafe { dlsym(library, name.as_ptr()) };
    if address.is_null() {
        return Err(format!("the library loaded but is not the engine that is expected: {}", loader_error()));
    }
    Ok(address)
}

fn loader_error() -> String {
    // SAFETY: takes nothing, returns null or a C string that stays valid until the next loader call.
    let message = unsafe { dlerror() };
    if message.is_null() {
        return "the loader gave no reason".to_owned();
    }
    // SAFETY: not null, and no loader call happened since.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

fn last_error(what: &str) -> String {
    format!("{what}: {}", std::io::Error::last_os_error())
}
