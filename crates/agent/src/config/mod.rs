//! Configuration: files and flags into one validated, typed value.
//!
//! Sources in order, later wins: defaults (and `-dev`'s) → `-config-file` and `-config-dir` → `-hcl` → other flags.
//! A file is read into a tree (`json`, `hcl`), checked against the table of keys (`schema`, `decode`), and merged
//! (`value`); the merged tree is then built into a [`Config`] (`build`), which applies defaults and rules.
//! All of this is pure; only `load` touches the disk. Error and warning texts are those of Consul 1.8.7.
//! Not here: acting on a change of configuration (the agent's reload), the rules of one definition (`definition`).

pub mod address;
mod build;
mod decode;
pub mod definition;
pub mod duration;
mod file_definition;
mod flags;
mod hcl;
mod json;
mod load;
mod origin;
mod schema;
mod value;

pub use address::{HostPort, ListenAddress};
pub use build::{
    Acl, AclPolicy, AclTokens, Autopilot, Config, Dns, Gossip, Http, Join, Limits, LogLevel, Logging, Performance,
    Ports, Raft, RecursorStrategy, RequestLimitMode, RequestLimits, Soa, Telemetry, Ui,
};
pub use flags::{FlagError, Flags, Format, parse_agent_flags};
pub use load::{FILE_LEN_BYTES_MAX, load};

use build::Mistake;
use origin::Origins;
use quorate_rt::InterfaceAddress;
use thiserror::Error;
use value::Value;

/// One configuration file's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    pub path: String,
    pub text: String,
    pub format: Format,
}

/// What the configuration takes from the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    pub host_name: String,
    pub interfaces: Vec<InterfaceAddress>,
}

/// Why there is no configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    #[error("config: Open failed on {path}. open {path}: {reason}")]
    Open { path: String, reason: String },
    #[error("failed to parse {file}: {reason}")]
    Parse { file: String, reason: String },
    /// The files read well, and together break a rule.
    #[error("{0}")]
    Invalid(String),
}

/// Parses, merges and validates. Pure: the same sources, flags and facts give the same configuration.
pub fn from_sources(sources: &[SourceFile], flags: &Flags, facts: &HostFacts) -> Result<Config, ConfigError> {
    let mut tree = Value::default();
    let mut origins = Origins::default();
    let mut warnings = Vec::new();
    let fragments = flags.fragments.iter().enumerate().map(|(position, text)| SourceFile {
        path: format!("flags-{position}.hcl"),
        text: text.clone(),
        // HCL 1 includes JSON.
        format: if text.trim_start().starts_with('{') {
            Format::Json
        } else {
            Format::Hcl
        },
    });
    if flags.dev {
        tree.merge(build::dev_defaults());
    }
    for source in sources.iter().cloned().chain(fragments) {
        let failed = |reason| ConfigError::Parse {
            file: source.path.clone(),
            reason,
        };
        let is_json = source.format == Format::Json;
        let parsed = if is_json {
            json::parse(&source.text)
        } else {
            hcl::parse(&source.text)
        };
        let decoded = decode::decode(&source.path, is_json, parsed.map_err(failed)?).map_err(failed)?;
        for warning in decoded.warnings {
            if !warnings.contains(&warning) {
                warnings.push(warning);
            }
        }
        origins.add(&source.path, &decoded.tree);
        tree.merge(decoded.tree);
    }
    origins.add("the command line", &flags.overrides);
    tree.merge(flags.overrides.clone());
    let mut config = build::build(&tree, flags.dev, facts).map_err(|mistake| {
        ConfigError::Invalid(match mistake {
            Mistake::Values(errors) => {
                let errors: Vec<String> = errors.iter().map(|error| origins.name(error)).collect();
                decode::errors_occurred(&errors)
            }
            Mistake::Rule(reason) => origins.name(&reason),
        })
    })?;
    warnings.append(&mut config.warnings);
    config.warnings = warnings;
    Ok(config)
}

#[cfg(test)]
mod tests;
