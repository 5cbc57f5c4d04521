//! Which failing system calls are worth a record, and which calls move bytes. Policy as data: the programs only look
//! numbers up, so that this table is the one place to read or change.
//!
//! Left out on purpose: what programs do all day to ask a question (`stat` or `access` of what is not there, reads
//! that would block, interrupted waits, a connect in progress). The kernel counts them as filtered.

use libc::{
    E2BIG, EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, EBUSY, ECONNABORTED, ECONNREFUSED,
    ECONNRESET, EDQUOT, EFBIG, EHOSTDOWN, EHOSTUNREACH, EIO, EISDIR, ELIBBAD, ELOOP, EMFILE, EMSGSIZE,
    ENAMETOOLONG, ENETDOWN, ENETRESET, ENETUNREACH, ENFILE, ENOBUFS, ENODEV, ENOENT, ENOEXEC, ENOMEM, ENOSPC,
    ENOTCONN, ENOTDIR, ENXIO, EPERM, EPIPE, EPROTO, EROFS, ESTALE, ETIMEDOUT, ETXTBSY,
};
use tapio_kernel_abi::{
    DIRECTION_READ, DIRECTION_WRITE, FORM_BUFFER, FORM_MESSAGE, FORM_VECTOR, OPENS_HOW, OPENS_SECOND,
    OPENS_THIRD, SHAPE_ADDRESS, SHAPE_DESCRIPTOR, SHAPE_NONE, SHAPE_PATH_FIRST, SHAPE_PATH_SECOND,
    SyscallRule,
};

/// Opening or starting a file: what is missing or forbidden decides whether a program works.
const OPEN: &[i32] = &[
    EPERM,
    ENOENT,
    EIO,
    ENXIO,
    E2BIG,
    ENOEXEC,
    ENOMEM,
    EACCES,
    EBUSY,
    ENODEV,
    ENOTDIR,
    EISDIR,
    ENFILE,
    EMFILE,
    ETXTBSY,
    EFBIG,
    ENOSPC,
    EROFS,
    ENAMETOOLONG,
    ELOOP,
    ELIBBAD,
    EDQUOT,
    ESTALE,
    ETIMEDOUT,
];
/// Looking at or changing names: absence is an answer there, the rest is trouble.
const NAME: &[i32] =
    &[EPERM, EIO, ENOMEM, EACCES, ENOSPC, EROFS, ENAMETOOLONG, ELOOP, EDQUOT, ESTALE, ETIMEDOUT];
/// Asking about access: refusal is an answer too.
const ASK: &[i32] = &[EIO, ENOMEM, ENAMETOOLONG, ELOOP, ESTALE, ETIMEDOUT];
const CONNECT: &[i32] = &[
    EPERM,
    ENOENT,
    ENOMEM,
    EACCES,
    EADDRINUSE,
    EADDRNOTAVAIL,
    EAFNOSUPPORT,
    ECONNABORTED,
    ECONNREFUSED,
    ECONNRESET,
    EHOSTDOWN,
    EHOSTUNREACH,
    ENETDOWN,
    ENETUNREACH,
    ENOBUFS,
    EPROTO,
    ETIMEDOUT,
];
const BIND: &[i32] =
    &[EPERM, ENOENT, ENOMEM, EACCES, EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EROFS, ENOBUFS];
/// Making processes, threads and sockets: limits show here, `EAGAIN` is one of them.
const MAKE: &[i32] = &[EPERM, EAGAIN, ENOMEM, ENOSPC];
const SOCKET: &[i32] = &[EPERM, ENOMEM, EACCES, ENFILE, EMFILE, EAFNOSUPPORT, ENOBUFS];
const ACCEPT: &[i32] = &[EPERM, ENOMEM, ENFILE, EMFILE, ENOBUFS];
const WRITE: &[i32] = &[
    EPERM,
    EIO,
    ENOMEM,
    EACCES,
    EFBIG,
    ENOSPC,
    EROFS,
    EPIPE,
    EMSGSIZE,
    ENETDOWN,
    ENETUNREACH,
    ENETRESET,
    ECONNABORTED,
    ECONNRESET,
    ENOBUFS,
    ENOTCONN,
    ETIMEDOUT,
    ECONNREFUSED,
    EHOSTDOWN,
    EHOSTUNREACH,
    EDQUOT,
    ESTALE,
];
const READ: &[i32] = &[
    EIO,
    ENOMEM,
    ENETDOWN,
    ENETUNREACH,
    ENETRESET,
    ECONNABORTED,
    ECONNRESET,
    ENOTCONN,
    ETIMEDOUT,
    ECONNREFUSED,
    EHOSTDOWN,
    EHOSTUNREACH,
    ESTALE,
];
const SYNC: &[i32] = &[EIO, ENOSPC, EDQUOT, EROFS, ESTALE, ETIMEDOUT];
const MEMORY: &[i32] = &[ENOMEM];
const DESCRIPTORS: &[i32] = &[ENFILE, EMFILE, ENOMEM];

/// Number, errors, shape.
type Failure = (i64, &'static [i32], u16);

const FAILURES: &[Failure] = &[
    (libc::SYS_openat, OPEN, SHAPE_PATH_SECOND),
    (libc::SYS_openat2, OPEN, SHAPE_PATH_SECOND),
    (libc::SYS_execve, OPEN, SHAPE_PATH_FIRST),
    (libc::SYS_execveat, OPEN, SHAPE_PATH_SECOND),
    (libc::SYS_chdir, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_truncate, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_statfs, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_mkdirat, NAME, SHAPE_PATH_SECOND),
    (libc::SYS_unlinkat, NAME, SHAPE_PATH_SECOND),
    (libc::SYS_renameat, NAME, SHAPE_PATH_SECOND),
    (libc::SYS_renameat2, NAME, SHAPE_PATH_SECOND),
    (libc::SYS_linkat, NAME, SHAPE_PATH_SECOND),
    (libc::SYS_fchmodat, NAME, SHAPE_PATH_SECOND),
    (libc::SYS_fchownat, NAME, SHAPE_PATH_SECOND),
    (libc::SYS_statx, NAME, SHAPE_PATH_SECOND),
    (libc::SYS_newfstatat, NAME, SHAPE_PATH_SECOND),
    (libc::SYS_faccessat, ASK, SHAPE_PATH_SECOND),
    (libc::SYS_faccessat2, ASK, SHAPE_PATH_SECOND),
    (libc::SYS_readlinkat, NAME, SHAPE_PATH_SECOND),
    (libc::SYS_connect, CONNECT, SHAPE_ADDRESS),
    (libc::SYS_bind, BIND, SHAPE_ADDRESS),
    (libc::SYS_listen, BIND, SHAPE_DESCRIPTOR),
    (libc::SYS_accept, ACCEPT, SHAPE_DESCRIPTOR),
    (libc::SYS_accept4, ACCEPT, SHAPE_DESCRIPTOR),
    (libc::SYS_socket, SOCKET, SHAPE_NONE),
    (libc::SYS_clone, MAKE, SHAPE_NONE),
    (libc::SYS_clone3, MAKE, SHAPE_NONE),
    (libc::SYS_write, WRITE, SHAPE_DESCRIPTOR),
    (libc::SYS_writev, WRITE, SHAPE_DESCRIPTOR),
    (libc::SYS_pwrite64, WRITE, SHAPE_DESCRIPTOR),
    (libc::SYS_pwritev, WRITE, SHAPE_DESCRIPTOR),
    (libc::SYS_sendto, WRITE, SHAPE_DESCRIPTOR),
    (libc::SYS_sendmsg, WRITE, SHAPE_DESCRIPTOR),
    (libc::SYS_sendfile, WRITE, SHAPE_DESCRIPTOR),
    (libc::SYS_read, READ, SHAPE_DESCRIPTOR),
    (libc::SYS_readv, READ, SHAPE_DESCRIPTOR),
    (libc::SYS_pread64, READ, SHAPE_DESCRIPTOR),
    (libc::SYS_recvfrom, READ, SHAPE_DESCRIPTOR),
    (libc::SYS_recvmsg, READ, SHAPE_DESCRIPTOR),
    (libc::SYS_fsync, SYNC, SHAPE_DESCRIPTOR),
    (libc::SYS_fdatasync, SYNC, SHAPE_DESCRIPTOR),
    (libc::SYS_fallocate, SYNC, SHAPE_DESCRIPTOR),
    (libc::SYS_ftruncate, SYNC, SHAPE_DESCRIPTOR),
    (libc::SYS_mmap, MEMORY, SHAPE_NONE),
    (libc::SYS_mremap, MEMORY, SHAPE_NONE),
    (libc::SYS_mprotect, MEMORY, SHAPE_NONE),
    (libc::SYS_pipe2, DESCRIPTORS, SHAPE_NONE),
    (libc::SYS_eventfd2, DESCRIPTORS, SHAPE_NONE),
    (libc::SYS_epoll_create1, DESCRIPTORS, SHAPE_NONE),
    (libc::SYS_dup, DESCRIPTORS, SHAPE_DESCRIPTOR),
];

/// Calls that only this architecture has beside their `at` forms.
#[cfg(target_arch = "x86_64")]
const OLD_FAILURES: &[Failure] = &[
    (libc::SYS_open, OPEN, SHAPE_PATH_FIRST),
    (libc::SYS_creat, OPEN, SHAPE_PATH_FIRST),
    (libc::SYS_mkdir, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_rmdir, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_unlink, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_rename, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_link, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_chmod, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_chown, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_stat, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_lstat, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_access, ASK, SHAPE_PATH_FIRST),
    (libc::SYS_readlink, NAME, SHAPE_PATH_FIRST),
    (libc::SYS_fork, MAKE, SHAPE_NONE),
    (libc::SYS_vfork, MAKE, SHAPE_NONE),
    (libc::SYS_pipe, DESCRIPTORS, SHAPE_NONE),
    (libc::SYS_dup2, DESCRIPTORS, SHAPE_DESCRIPTOR),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_FAILURES: &[Failure] = &[];

/// Calls that open a file, and where they say how.
const OPENS: &[(i64, u8)] = &[
    (libc::SYS_openat, OPENS_THIRD),
    (libc::SYS_openat2, OPENS_HOW),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_open, OPENS_SECOND),
];

const MOVES: &[(i64, u8, u8)] = &[
    (libc::SYS_read, DIRECTION_READ, FORM_BUFFER),
    (libc::SYS_recvfrom, DIRECTION_READ, FORM_BUFFER),
    (libc::SYS_recvmsg, DIRECTION_READ, FORM_MESSAGE),
    (libc::SYS_readv, DIRECTION_READ, FORM_VECTOR),
    (libc::SYS_write, DIRECTION_WRITE, FORM_BUFFER),
    (libc::SYS_sendto, DIRECTION_WRITE, FORM_BUFFER),
    (libc::SYS_sendmsg, DIRECTION_WRITE, FORM_MESSAGE),
    (libc::SYS_writev, DIRECTION_WRITE, FORM_VECTOR),
];

/// The rule of every system call that has one, by number.
pub(super) fn rules() -> impl Iterator<Item = (u32, SyscallRule)> {
    let numbers = FAILURES.iter().chain(OLD_FAILURES).map(|(number, _, _)| *number);
    numbers.filter_map(|number| Some((u32::try_from(number).ok()?, rule(number))))
}

fn rule(number: i64) -> SyscallRule {
    let mut rule = SyscallRule::default();
    for (_, errnos, shape) in FAILURES.iter().chain(OLD_FAILURES).filter(|(of, _, _)| *of == number) {
        rule.shape = *shape;
        for errno in *errnos {
            match errno {
                0..64 => rule.errnos_low |= 1 << errno,
                64..128 => rule.errnos_high |= 1 << (errno - 64),
                _ => {}
            }
        }
    }
    for (_, direction, form) in MOVES.iter().filter(|(of, _, _)| *of == number) {
        rule.direction = *direction;
        rule.form = *form;
    }
    for (_, opens) in OPENS.iter().filter(|(of, _)| *of == number) {
        rule.opens = *opens;
    }
    rule
}

#[cfg(test)]
mod tests {
    use tapio_kernel_abi::SYSCALL_COUNT;

    use super::*;

    fn allows(number: i64, errno: i32) -> bool {
        let rule = rule(number);
        (u128::from(rule.errnos_high) << 64 | u128::from(rule.errnos_low)) >> errno & 1 == 1
    }

    /// Scenario: the whole table.
    /// Guarantees: every number has its place in the kernel's map and occurs once, every errno is one that the
    /// programs can look up, and every call that moves bytes also has a rule.
    #[test]
    fn the_table_fits_the_map() {
        let mut numbers: Vec<_> = rules().map(|(number, _)| number).collect();
        assert!(numbers.iter().all(|number| *number < SYSCALL_COUNT));
        let count = numbers.len();
        assert_eq!(count, FAILURES.len() + OLD_FAILURES.len());
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
        assert!(FAILURES.iter().flat_map(|(_, errnos, _)| *errnos).all(|errno| (1..128).contains(errno)));
        for (number, direction, form) in MOVES {
            let rule = rule(*number);
            assert_eq!((rule.direction, rule.form), (*direction, *form));
            assert!(rules().any(|(of, _)| i64::from(of) == *number));
        }
    }

    /// Scenario: failures that matter and answers that do not.
    /// Guarantees: the policy is what the module's text says.
    #[test]
    fn questions_are_not_failures() {
        assert!(allows(libc::SYS_openat, ENOENT));
        assert!(!allows(libc::SYS_newfstatat, ENOENT));
        assert!(allows(libc::SYS_newfstatat, EACCES));
        assert!(!allows(libc::SYS_faccessat, EACCES));
        assert!(allows(libc::SYS_connect, ECONNREFUSED));
        assert!(!allows(libc::SYS_connect, libc::EINPROGRESS));
        assert!(allows(libc::SYS_write, ENOSPC));
        assert!(!allows(libc::SYS_read, EAGAIN));
        assert!(allows(libc::SYS_clone, EAGAIN));
        assert!(allows(libc::SYS_openat, EDQUOT));
    }
}
