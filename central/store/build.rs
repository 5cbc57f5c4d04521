//! Compiles the engine's launcher, so that the library can carry it inside itself.
//!
//! A test or a tier that starts the engine then needs no second file beside it, and the launcher can never be
//! of another version. Cargo has no stable way to depend on a binary, and the launcher is one file that uses
//! only the standard library, so the compiler is called on it directly.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

const SOURCE: &str = "src/bin/tapio-clickhouse-engine.rs";

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=build.rs");
    let compiler = std::env::var_os("RUSTC").context("cargo sets RUSTC for build scripts")?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    let target = std::env::var("TARGET").context("cargo sets TARGET")?;
    let host = std::env::var("HOST").context("cargo sets HOST")?;

    let mut command = Command::new(compiler);
    command
        .args(["--crate-name", "tapio_clickhouse_engine", "--crate-type", "bin"])
        .args(["--edition", "2024", "--cap-lints", "allow", SOURCE])
        .args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols"])
        // A statically linked program cannot load the engine, whatever the tier itself is built as.
        .args(["-C", "target-feature=-crt-static"])
        .arg("-o")
        .arg(out.join("tapio-clickhouse-engine"));
    if target != host {
        command.args(["--target", &target]);
    }
    if let Some(linker) = std::env::var_os("RUSTC_LINKER") {
        let mut flag = std::ffi::OsString::from("linker=");
        flag.push(linker);
        command.arg("-C").arg(flag);
    }
    let status = command.status().context("the compiler could not be started")?;
    ensure!(status.success(), "the engine's launcher did not compile");
    Ok(())
}
