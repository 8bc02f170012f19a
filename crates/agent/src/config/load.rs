//! Reads the sources that the command line names, and builds the configuration. Called again for a reload.
//!
//! Not here: parsing and rules (the pure modules beside this one).

use super::flags::{Flags, Format};
use super::{Config, ConfigError, HostFacts, SourceFile, from_sources};
use quorate_rt::{Disk, Rt};
use std::io;
use std::path::Path;

/// A configuration file above this is no configuration file.
pub const FILE_LEN_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads all files and builds the configuration.
pub async fn load<R: Rt>(rt: &R, flags: &Flags) -> Result<Config, ConfigError> {
    let disk = rt.disk();
    let mut sources = Vec::new();
    let mut warnings = Vec::new();
    for path in &flags.config_paths {
        read_path(&disk, path, flags.config_format, &mut sources, &mut warnings).await?;
    }
    let facts = HostFacts {
        host_name: rt.host_name(),
        interfaces: rt.interface_addresses(),
    };
    let mut config = from_sources(&sources, flags, &facts)?;
    warnings.append(&mut config.warnings);
    config.warnings = warnings;
    Ok(config)
}

async fn read_path<D: Disk>(
    disk: &D,
    path: &str,
    format: Option<Format>,
    sources: &mut Vec<SourceFile>,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    // What can be listed is a directory; what cannot is read, and the read's error is the one that is told.
    match disk.list(Path::new(path)).await {
        Ok(entries) => {
            for entry in entries {
                let Some(format) = format.or_else(|| Format::of(&entry.name)).filter(|_| !entry.is_dir) else {
                    continue;
                };
                let file = Path::new(path).join(&entry.name).to_string_lossy().into_owned();
                sources.push(read_file(disk, file, format).await?);
            }
            Ok(())
        }
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => Err(open_failed(path, &err)),
        Err(_) => {
            if let Some(format) = format.or_else(|| Format::of(path)) {
                sources.push(read_file(disk, path.to_owned(), format).await?);
            } else {
                let open = disk.open(Path::new(path), quorate_rt::OpenMode::Read).await;
                open.map_err(|err| open_failed(path, &err))?;
                warnings.push(format!(
                    "skipping file {path}, extension must be .hcl or .json, or config format must be set"
                ));
            }
            Ok(())
        }
    }
}

async fn read_file<D: Disk>(disk: &D, path: String, format: Format) -> Result<SourceFile, ConfigError> {
    let bytes = disk
        .read(Path::new(&path), FILE_LEN_BYTES_MAX)
        .await
        .map_err(|err| match err.kind() {
            io::ErrorKind::InvalidData => ConfigError::Parse {
                file: path.clone(),
                reason: format!("the file is larger than {FILE_LEN_BYTES_MAX} bytes"),
            },
            _ => open_failed(&path, &err),
        })?;
    let text = String::from_utf8(bytes).map_err(|_| ConfigError::Parse {
        file: path.clone(),
        reason: "the file is not UTF-8 text".to_owned(),
    })?;
    Ok(SourceFile { path, text, format })
}

fn open_failed(path: &str, err: &io::Error) -> ConfigError {
    ConfigError::Open {
        path: path.to_owned(),
        reason: match err.kind() {
            io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            io::ErrorKind::IsADirectory => "is a directory".to_owned(),
            _ => err.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use quorate_rt::MemoryDisk;

    fn run<T>(work: impl Future<Output = T>) -> T {
        futures::executor::block_on(work)
    }

    async fn disk(files: &[(&str, &str)]) -> MemoryDisk {
        let disk = MemoryDisk::default();
        for (path, text) in files {
            disk.create_dir_all(Path::new(path).parent().unwrap()).await.unwrap();
            disk.replace(Path::new(path), Bytes::copy_from_slice(text.as_bytes()))
                .await
                .unwrap();
        }
        disk
    }

    async fn read(disk: &MemoryDisk, path: &str) -> Result<(Vec<String>, Vec<String>), ConfigError> {
        let (mut sources, mut warnings) = (Vec::new(), Vec::new());
        read_path(disk, path, None, &mut sources, &mut warnings).await?;
        Ok((sources.into_iter().map(|source| source.path).collect(), warnings))
    }

    #[test]
    fn a_directory_gives_its_files_in_order_and_none_of_its_folders() {
        run(async {
            let disk = disk(&[
                ("/c/b.json", "{}"),
                ("/c/a.hcl", ""),
                ("/c/readme.txt", "x"),
                ("/c/sub/z.json", "{}"),
            ])
            .await;
            let (files, warnings) = read(&disk, "/c").await.unwrap();
            assert_eq!(files, ["/c/a.hcl", "/c/b.json"]);
            assert_eq!(warnings, Vec::<String>::new());
        });
    }

    #[test]
    fn files_that_cannot_be_used_are_told() {
        run(async {
            let disk = disk(&[("/c/a.txt", "x"), ("/c/big.json", &" ".repeat(4 * 1024 * 1024 + 1))]).await;
            assert_eq!(
                read(&disk, "nope.json").await.unwrap_err().to_string(),
                "config: Open failed on nope.json. open nope.json: no such file or directory"
            );
            let (files, warnings) = read(&disk, "/c/a.txt").await.unwrap();
            assert!(files.is_empty());
            assert!(warnings[0].starts_with("skipping file /c/a.txt"));
            assert_eq!(
                read(&disk, "/c/big.json").await.unwrap_err().to_string(),
                "failed to parse /c/big.json: the file is larger than 4194304 bytes"
            );
        });
    }
}
