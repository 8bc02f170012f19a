//! Child processes of tasks, and the folder they run in.

use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The repository's root, whatever the current directory is.
pub fn root() -> PathBuf {
    // Cargo tells whom it runs where the package is now; what was compiled in is where it was built.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
    let root = Path::new(&here).ancestors().nth(2);
    root.expect("bins/xtask lies two folders below the root").to_owned()
}

/// Cargo as the one that built this task, in the root, with the project's own tools in `PATH`.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(root()).env("PATH", path_with_tools());
    // Cargo tells `cargo run`'s child about the package it runs; a cargo started from it must not see that.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "CARGO_BIN_NAME" {
            command.env_remove(&name);
        }
    }
    command
}

/// Where `packages` installs tools that are not the system's.
pub fn tools_dir() -> PathBuf {
    root().join("target/tools")
}

fn path_with_tools() -> OsString {
    let mut path = OsString::from(tools_dir().join("bin"));
    if let Some(inherited) = std::env::var_os("PATH") {
        path.push(":");
        path.push(inherited);
    }
    path
}

/// The command as a line that can be pasted, without the noise of an absolute cargo path.
pub fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str());
    let mut line = program.to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// Runs to the end with our own output, and fails when it does.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("+ {line}");
    let status = command.status().with_context(|| format!("start {line}"))?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// Whether a program of this name is in `PATH`.
pub fn is_installed(program: &str) -> bool {
    std::env::split_paths(&path_with_tools()).any(|folder| folder.join(program).is_file())
}

/// All files below `folder` whose name ends in `.extension`, sorted. `target` folders are left out.
pub fn files_below(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut waiting = vec![folder.to_owned()];
    while let Some(folder) = waiting.pop() {
        if !folder.exists() {
            continue;
        }
        for entry in std::fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry.with_context(|| format!("list {}", folder.display()))?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|name| name != "target") {
                    waiting.push(path);
                }
            } else if extension.is_empty() || path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
