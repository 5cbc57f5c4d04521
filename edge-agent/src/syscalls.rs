//! Names of system calls, by their number on this architecture.

macro_rules! names {
    ($($(#[$condition:meta])* $constant:ident $name:literal,)*) => {
        /// The name of a call; one that is not known here is named by what it is not.
        pub(crate) fn name(number: u16) -> &'static str {
            match i64::from(number) {
                $($(#[$condition])* number if number == i64::from(libc::$constant) => $name,)*
                _ => "unknown",
            }
        }
    };
}

names! {
    SYS_openat "openat", SYS_openat2 "openat2", SYS_execve "execve", SYS_execveat "execveat",
    SYS_mkdirat "mkdirat", SYS_unlinkat "unlinkat", SYS_renameat2 "renameat2", SYS_linkat "linkat",
    SYS_symlinkat "symlinkat", SYS_fchmodat "fchmodat", SYS_fchownat "fchownat", SYS_statx "statx",
    SYS_newfstatat "newfstatat", SYS_faccessat "faccessat", SYS_faccessat2 "faccessat2",
    SYS_readlinkat "readlinkat", SYS_chdir "chdir", SYS_truncate "truncate", SYS_statfs "statfs",
    SYS_mount "mount", SYS_connect "connect", SYS_bind "bind", SYS_listen "listen", SYS_accept "accept",
    SYS_accept4 "accept4", SYS_socket "socket", SYS_clone "clone", SYS_clone3 "clone3", SYS_write "write",
    SYS_writev "writev", SYS_pwrite64 "pwrite64", SYS_pwritev "pwritev", SYS_sendto "sendto",
    SYS_sendmsg "sendmsg", SYS_sendfile "sendfile", SYS_read "read", SYS_readv "readv", SYS_pread64 "pread64",
    SYS_recvfrom "recvfrom", SYS_recvmsg "recvmsg", SYS_fsync "fsync", SYS_fdatasync "fdatasync",
    SYS_fallocate "fallocate", SYS_ftruncate "ftruncate", SYS_mmap "mmap", SYS_mremap "mremap",
    SYS_mprotect "mprotect", SYS_pipe2 "pipe2", SYS_eventfd2 "eventfd2", SYS_epoll_create1 "epoll_create1",
    SYS_dup "dup", SYS_dup3 "dup3",
    #[cfg(target_arch = "x86_64")] SYS_open "open",
    #[cfg(target_arch = "x86_64")] SYS_creat "creat",
    #[cfg(target_arch = "x86_64")] SYS_mkdir "mkdir",
    #[cfg(target_arch = "x86_64")] SYS_rmdir "rmdir",
    #[cfg(target_arch = "x86_64")] SYS_unlink "unlink",
    #[cfg(target_arch = "x86_64")] SYS_rename "rename",
    #[cfg(target_arch = "x86_64")] SYS_renameat "renameat",
    #[cfg(target_arch = "x86_64")] SYS_link "link",
    #[cfg(target_arch = "x86_64")] SYS_symlink "symlink",
    #[cfg(target_arch = "x86_64")] SYS_chmod "chmod",
    #[cfg(target_arch = "x86_64")] SYS_chown "chown",
    #[cfg(target_arch = "x86_64")] SYS_stat "stat",
    #[cfg(target_arch = "x86_64")] SYS_lstat "lstat",
    #[cfg(target_arch = "x86_64")] SYS_access "access",
    #[cfg(target_arch = "x86_64")] SYS_readlink "readlink",
    #[cfg(target_arch = "x86_64")] SYS_fork "fork",
    #[cfg(target_arch = "x86_64")] SYS_vfork "vfork",
    #[cfg(target_arch = "x86_64")] SYS_pipe "pipe",
    #[cfg(target_arch = "x86_64")] SYS_dup2 "dup2",
}
