//! The key/value store: `kv get`, `put`, `delete`, `export`, `import`.

use super::Context;
use crate::report::Report;
use crate::table::{aligned, row};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorate_api_client::KvEntry;
use quorate_api_client::calls::KvPutOptions;
use quorate_rt::{Disk as _, Rt as _};
use quorate_types::limits::KV_VALUE_LEN_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::io::Read as _;
use std::path::Path;

/// Blanks between labels and values of `-detailed`.
const DETAIL_GAP: usize = 6;
/// `kv import` reads at most this much: more is no file of keys.
const IMPORT_LEN_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The value as it is to be shown.
fn shown(entry: &KvEntry, is_base64: bool) -> Vec<u8> {
    if is_base64 {
        STANDARD.encode(&entry.value).into_bytes()
    } else {
        entry.value.clone()
    }
}

fn detailed(entry: &KvEntry, is_base64: bool) -> Vec<u8> {
    let session = if entry.session.is_empty() { "-" } else { &entry.session };
    let rows = [
        row(["CreateIndex", &entry.create_index.to_string()]),
        row(["Flags", &entry.flags.to_string()]),
        row(["Key", &entry.key]),
        row(["LockIndex", &entry.lock_index.to_string()]),
        row(["ModifyIndex", &entry.modify_index.to_string()]),
        row(["Session", session]),
        row(["Value", &String::from_utf8_lossy(&shown(entry, is_base64))]),
    ];
    aligned(&rows, DETAIL_GAP).into_bytes()
}

/// One pair of an export.
#[derive(Serialize, Deserialize)]
struct Exported {
    key: String,
    #[serde(default)]
    flags: u64,
    #[serde(default)]
    value: String,
}

/// A single optional argument, without the slash that people put before keys.
fn key_argument(context: &Context) -> Result<&str, Report> {
    match context.arguments() {
        [] => Ok(""),
        [key] => Ok(key.strip_prefix('/').unwrap_or(key)),
        more => Err(Report::failure(format!(
            "Error! Too many arguments (expected 1, got {})",
            more.len()
        ))),
    }
}

pub async fn get(context: &Context) -> Result<Report, Report> {
    let flags = &context.flags;
    let key = key_argument(context)?;
    let (is_base64, is_detailed) = (flags.boolean("base64"), flags.boolean("detailed"));
    let is_many = flags.boolean("keys") || flags.boolean("recurse");
    if key.is_empty() && !is_many {
        return Err(Report::failure("Error! Missing KEY argument"));
    }
    let client = context.client().await?;
    let failed = |error| format!("Error querying agent: {error}");
    if flags.boolean("keys") {
        let separator = if flags.is_given("separator") {
            flags.text("separator")
        } else {
            "/"
        };
        let keys = client.kv_keys(key, separator).await.map_err(failed)?;
        return Ok(Report::text(
            keys.iter().map(|key| format!("{key}\n")).collect::<String>(),
        ));
    }
    if flags.boolean("recurse") {
        let entries = client.kv_list(key).await.map_err(failed)?;
        return Ok(Report {
            stdout: many(&entries, is_detailed, is_base64),
            ..Report::default()
        });
    }
    let Some(entry) = client.kv_get(key).await.map_err(failed)? else {
        return Err(Report::failure(format!("Error! No key exists at: {key}")));
    };
    if is_detailed {
        return Ok(Report {
            stdout: detailed(&entry, is_base64),
            ..Report::default()
        });
    }
    let mut stdout = shown(&entry, is_base64);
    stdout.push(b'\n');
    Ok(Report {
        stdout,
        ..Report::default()
    })
}

fn many(entries: &[KvEntry], is_detailed: bool, is_base64: bool) -> Vec<u8> {
    let mut out = Vec::new();
    for (position, entry) in entries.iter().enumerate() {
        if is_detailed {
            if position > 0 {
                out.push(b'\n');
            }
            out.extend(detailed(entry, is_base64));
        } else {
            out.extend_from_slice(entry.key.as_bytes());
            out.push(b':');
            out.extend(shown(entry, is_base64));
            out.push(b'\n');
        }
    }
    out
}

/// Text given as an argument, as `@FILE`, or as `-`.
async fn data(context: &Context, argument: &str, len_bytes_max: u64) -> Result<Vec<u8>, String> {
    if let Some(file) = argument.strip_prefix('@') {
        let read = context.rt.disk().read(Path::new(file), len_bytes_max).await;
        return read.map_err(|error| format!("Failed to read file: {error}"));
    }
    if argument == "-" {
        let mut input = Vec::new();
        let read = std::io::stdin().take(len_bytes_max + 1).read_to_end(&mut input);
        read.map_err(|error| format!("Failed to read stdin: {error}"))?;
        if input.len() as u64 > len_bytes_max {
            return Err(format!("Failed to read stdin: it has more than {len_bytes_max} bytes"));
        }
        return Ok(input);
    }
    Ok(argument.as_bytes().to_vec())
}

/// Go's words for text that is no base64: the position of the first byte that cannot be.
fn decode_base64(text: &[u8]) -> Result<Vec<u8>, String> {
    // Go skips line ends.
    let text: Vec<u8> = text
        .iter()
        .copied()
        .filter(|byte| !matches!(byte, b'\r' | b'\n'))
        .collect();
    STANDARD.decode(&text).map_err(|error| {
        let position = match error {
            base64::DecodeError::InvalidByte(position, _) | base64::DecodeError::InvalidLastSymbol(position, _) => {
                position
            }
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => text.len() / 4 * 4,
        };
        format!("illegal base64 data at input byte {position}")
    })
}

pub async fn put(context: &Context) -> Result<Report, Report> {
    let flags = &context.flags;
    let (key, value) = match context.arguments() {
        [] => return Err(Report::failure("Error! Missing KEY argument")),
        [key] => (key, ""),
        [key, value] => (key, value.as_str()),
        more => {
            return Err(Report::failure(format!(
                "Error! Too many arguments (expected 1 or 2, got {})",
                more.len()
            )));
        }
    };
    // A value in base64 is a third longer than what it stands for.
    let len_bytes_max = 2 * KV_VALUE_LEN_BYTES_MAX as u64;
    let mut body = data(context, value, len_bytes_max)
        .await
        .map_err(|error| format!("Error! {error}"))?;
    if flags.boolean("base64") {
        body = decode_base64(&body).map_err(|error| format!("Error! Cannot base 64 decode data: {error}"))?;
    }
    let session = flags.text("session");
    let (is_cas, is_acquire, is_release) = (flags.boolean("cas"), flags.boolean("acquire"), flags.boolean("release"));
    if (is_acquire || is_release) && session.is_empty() {
        return Err(Report::failure(
            "Error! Missing -session (required with -acquire and -release)",
        ));
    }
    // 0 is an index as good as any: the key must be absent.
    if is_cas && !flags.is_given("modify-index") {
        return Err(Report::failure("Must specify -modify-index with -cas!"));
    }
    let mut options = KvPutOptions {
        flags: flags.integer("flags"),
        ..KvPutOptions::default()
    };
    let (done, refused) = if is_cas {
        options.cas = Some(flags.integer("modify-index"));
        (
            format!("Success! Data written to: {key}"),
            format!("Error! Did not write to {key}: CAS failed"),
        )
    } else if is_acquire {
        options.acquire = Some(session.to_owned());
        (
            format!("Success! Lock acquired on: {key}"),
            "Error! Did not acquire lock".to_owned(),
        )
    } else if is_release {
        options.release = Some(session.to_owned());
        (
            format!("Success! Lock released on: {key}"),
            "Error! Did not release lock".to_owned(),
        )
    } else {
        (
            format!("Success! Data written to: {key}"),
            format!("Error! Did not write to {key}"),
        )
    };
    let prefix = if is_cas {
        format!("Error! Did not write to {key}")
    } else {
        "Error! Failed writing data".to_owned()
    };
    if key.starts_with('/') {
        return Err(Report::failure(format!(
            "{prefix}: Invalid key. Key must not begin with a '/': {key}"
        )));
    }
    let written = context.client().await?.kv_put(key, body, &options).await;
    match written.map_err(|error| format!("{prefix}: {error}"))? {
        true => Ok(Report::line(done)),
        false => Err(Report::failure(refused)),
    }
}

pub async fn delete(context: &Context) -> Result<Report, Report> {
    let flags = &context.flags;
    let key = key_argument(context)?;
    let (is_cas, is_recurse) = (flags.boolean("cas"), flags.boolean("recurse"));
    // `-recurse ''` deletes everything, and so it must have been written.
    if context.arguments().is_empty() || key.is_empty() && !is_recurse {
        return Err(Report::failure("Error! Missing KEY argument"));
    }
    if is_cas && is_recurse {
        return Err(Report::failure("Cannot specify both -cas and -recurse!"));
    }
    if is_cas != flags.is_given("modify-index") {
        let missing = if is_cas {
            "Must specify -modify-index with -cas!"
        } else {
            "Cannot specify -modify-index without -cas!"
        };
        return Err(Report::failure(missing));
    }
    let client = context.client().await?;
    if is_recurse {
        let deleted = client.kv_delete_tree(key).await;
        deleted.map_err(|error| format!("Error! Did not delete prefix {key}: {error}"))?;
        return Ok(Report::line(format!("Success! Deleted keys with prefix: {key}")));
    }
    let prefix = if is_cas {
        "Error! Did not delete key"
    } else {
        "Error deleting key"
    };
    let deleted = client
        .kv_delete(key, is_cas.then(|| flags.integer("modify-index")))
        .await;
    match deleted.map_err(|error| format!("{prefix} {key}: {error}"))? {
        true => Ok(Report::line(format!("Success! Deleted key: {key}"))),
        false => Err(Report::failure(format!("Error! Did not delete key {key}: CAS failed"))),
    }
}

pub async fn export(context: &Context) -> Result<Report, Report> {
    let key = key_argument(context)?;
    let entries = context.client().await?.kv_list(key).await;
    Ok(Report::line(exported(
        &entries.map_err(|error| format!("Error querying agent: {error}"))?,
    )))
}

fn exported(entries: &[KvEntry]) -> String {
    let pairs: Vec<Exported> = entries
        .iter()
        .map(|entry| Exported {
            key: entry.key.clone(),
            flags: entry.flags,
            value: STANDARD.encode(&entry.value),
        })
        .collect();
    let mut text = Vec::new();
    let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, tabs);
    pairs
        .serialize(&mut serializer)
        .expect("texts and numbers have a JSON form");
    String::from_utf8(text).expect("JSON is UTF-8")
}

pub async fn import(context: &Context) -> Result<Report, Report> {
    let argument = match context.arguments() {
        [] => return Err(Report::failure("Error! Missing DATA argument")),
        [argument] => argument,
        more => {
            return Err(Report::failure(format!(
                "Error! Too many arguments (expected 1, got {})",
                more.len()
            )));
        }
    };
    let text = data(context, argument, IMPORT_LEN_BYTES_MAX)
        .await
        .map_err(|error| format!("Error! {error}"))?;
    let pairs: Vec<Exported> =
        serde_json::from_slice(&text).map_err(|error| format!("Cannot unmarshal data: {error}"))?;
    let client = context.client().await?;
    let mut report = Report::default();
    for pair in pairs {
        let key = format!("{}{}", context.flags.text("prefix"), pair.key);
        let value = match decode_base64(pair.value.as_bytes()) {
            Ok(value) => value,
            Err(error) => {
                report.add_failure(format!("Error base 64 decoding value for key {key}: {error}"));
                return Err(report);
            }
        };
        let options = KvPutOptions {
            flags: pair.flags,
            ..KvPutOptions::default()
        };
        if let Err(error) = client.kv_put(&key, value, &options).await {
            report.add_failure(format!("Error! Failed writing data for key {key}: {error}"));
            return Err(report);
        }
        report.add_line(format!("Imported: {key}"));
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, flags: u64, index: u64, value: &str) -> KvEntry {
        KvEntry {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            flags,
            lock_index: 0,
            session: String::new(),
            create_index: index,
            modify_index: index,
        }
    }

    #[test]
    fn pairs_look_as_consul_shows_them() {
        // From `consul kv get -recurse -detailed cli/` of 1.8.7.
        let text = "\
CreateIndex      437
Flags            42
Key              cli/b
LockIndex        0
ModifyIndex      437
Session          -
Value            world

CreateIndex      438
Flags            0
Key              cli/c
LockIndex        0
ModifyIndex      438
Session          -
Value
";
        let entries = [entry("cli/b", 42, 437, "world"), entry("cli/c", 0, 438, "")];
        assert_eq!(String::from_utf8(many(&entries, true, false)).unwrap(), text);
        assert_eq!(many(&entries, false, false), b"cli/b:world\ncli/c:\n");
        assert_eq!(many(&entries, false, true), b"cli/b:d29ybGQ=\ncli/c:\n");
    }

    #[test]
    fn an_export_is_indented_by_tabs() {
        // From `consul kv export` of 1.8.7.
        let text = "[\n\t{\n\t\t\"key\": \"cli/b\",\n\t\t\"flags\": 42,\n\t\t\"value\": \"d29ybGQ=\"\n\t}\n]";
        assert_eq!(exported(&[entry("cli/b", 42, 1, "world")]), text);
        assert_eq!(exported(&[]), "[]");
    }

    #[test]
    fn a_locked_key_shows_its_session() {
        let locked = KvEntry {
            session: "s".to_owned(),
            ..entry("k", 0, 1, "")
        };
        assert!(
            String::from_utf8(detailed(&locked, false))
                .unwrap()
                .contains("Session          s\n")
        );
    }

    #[test]
    fn bad_base64_is_told_with_the_byte() {
        assert_eq!(
            decode_base64(b"***").unwrap_err(),
            "illegal base64 data at input byte 0"
        );
        assert_eq!(decode_base64(b"aGVsbG8=\n").unwrap(), b"hello");
        assert!(decode_base64(b"aGV").is_err());
    }
}
