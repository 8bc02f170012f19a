//! The agent that flags and environment name. Flags win, then `QUORATE_*`, then `CONSUL_*`.

use crate::flags::{Flags, parse_boolean};
use quorate_api_client::{Client, ClientConfig};
use quorate_rt::production::TokioRt;
use quorate_rt::{Disk as _, Rt as _};
use std::path::Path;

/// A token file above this holds no token.
const TOKEN_FILE_LEN_BYTES_MAX: u64 = 64 * 1024;

/// A client of the agent that is meant.
pub async fn connect(rt: &TokioRt, flags: &Flags) -> Result<Client<TokioRt>, String> {
    let (mut config, token_file) = configure(flags, |name| rt.environment(name))?;
    if let Some(file) = token_file {
        let content = rt.disk().read(Path::new(&file), TOKEN_FILE_LEN_BYTES_MAX).await;
        let content = content.map_err(|error| format!("Error loading token file: {file}: {error}"))?;
        config.token = String::from_utf8_lossy(&content).trim().to_owned();
    }
    Client::new(rt.clone(), config).map_err(|error| format!("Error connecting to agent: {error}"))
}

/// The client's configuration, and the file that holds its token if one does.
fn configure(
    flags: &Flags,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<(ClientConfig, Option<String>), String> {
    let variable = |name: &str| {
        let given = ["QUORATE", "CONSUL"]
            .iter()
            .find_map(|prefix| environment(&format!("{prefix}_{name}")));
        given.filter(|value| !value.is_empty())
    };
    let chosen = |flag: &str, name: &str| {
        let given = Some(flags.text(flag))
            .filter(|text| !text.is_empty())
            .map(str::to_owned);
        given.or_else(|| variable(name))
    };
    let mut config = ClientConfig {
        address: chosen("http-addr", "HTTP_ADDR").unwrap_or_default(),
        basic_auth: variable("HTTP_AUTH").unwrap_or_default(),
        datacenter: flags.text("datacenter").to_owned(),
        stale: flags.boolean("stale"),
        ..ClientConfig::default()
    };
    if let Some(text) = variable("HTTP_SSL") {
        let is_on = parse_boolean(&text).ok_or_else(|| format!("could not parse HTTP_SSL: {text:?} is no boolean"))?;
        if is_on {
            return Err("Error connecting to agent: https is not supported, but HTTP_SSL asks for it".to_owned());
        }
    }
    // A flag of either kind wins over a variable of either kind.
    let token_flags = (flags.text("token"), flags.text("token-file"));
    let token_file = match token_flags {
        ("", "") => match variable("HTTP_TOKEN") {
            Some(token) => {
                config.token = token;
                None
            }
            None => variable("HTTP_TOKEN_FILE"),
        },
        ("", file) => Some(file.to_owned()),
        (token, _) => {
            config.token = token.to_owned();
            None
        }
    };
    Ok((config, token_file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{Kind, flag, parse};

    fn configured(line: &str, environment: &[(&str, &str)]) -> Result<(ClientConfig, Option<String>), String> {
        let declared = [
            flag("http-addr", Kind::Text, ""),
            flag("token", Kind::Text, ""),
            flag("token-file", Kind::Text, ""),
            flag("datacenter", Kind::Text, ""),
            flag("stale", Kind::Boolean, ""),
        ];
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let flags = parse(declared.iter(), &arguments).unwrap();
        configure(&flags, |name| {
            environment
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn flags_win_over_our_variables_and_those_over_consuls() {
        let environment = [
            ("CONSUL_HTTP_ADDR", "c:1"),
            ("QUORATE_HTTP_ADDR", "q:2"),
            ("CONSUL_HTTP_TOKEN", "t"),
        ];
        let authority = |line: &str, environment| configured(line, environment).unwrap().0.address;
        assert_eq!(authority("", &[]), "");
        assert_eq!(authority("", &environment[..1]), "c:1");
        assert_eq!(authority("", &environment), "q:2");
        assert_eq!(authority("-http-addr=f:3", &environment), "f:3");
        assert_eq!(configured("", &environment).unwrap().0.token, "t");
        assert_eq!(configured("-token=f", &environment).unwrap().0.token, "f");
        assert_eq!(
            configured("-token-file=f", &environment).unwrap().1,
            Some("f".to_owned())
        );
    }

    #[test]
    fn datacenter_and_stale_go_with_every_request() {
        let config = configured("-datacenter=dc2 -stale", &[]).unwrap().0;
        assert_eq!((config.datacenter.as_str(), config.stale), ("dc2", true));
    }

    #[test]
    fn what_is_not_supported_is_refused_before_anything_is_sent() {
        assert!(
            configured("", &[("CONSUL_HTTP_SSL", "true")])
                .unwrap_err()
                .contains("https is not supported")
        );
        assert!(
            configured("", &[("CONSUL_HTTP_SSL", "maybe")])
                .unwrap_err()
                .contains("no boolean")
        );
        assert!(configured("", &[("CONSUL_HTTP_SSL", "false")]).is_ok());
    }
}
