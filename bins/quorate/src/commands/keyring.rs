//! `keyring`: the gossip encryption keys of all members.

use super::{Context, find};
use crate::flags::Flags;
use crate::report::Report;
use quorate_api_client::Method;
use quorate_api_client::shapes::KeyringPool;
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    List { primary_only: bool },
    Change { method: Method, key: String },
}

/// The one action asked for; `None`: none was. Or the mistake.
fn action(flags: &Flags) -> Result<Option<Action>, &'static str> {
    let change = |flag: &str, method| {
        let key = flags.text(flag).to_owned();
        (!key.is_empty()).then_some(Action::Change { method, key })
    };
    let list = |flag: &str, primary_only| flags.boolean(flag).then_some(Action::List { primary_only });
    let given = [
        list("list", false),
        list("list-primary", true),
        change("install", Method::POST),
        change("use", Method::PUT),
        change("remove", Method::DELETE),
    ];
    let mut given = given.into_iter().flatten();
    match (given.next(), given.next()) {
        (Some(_), Some(_)) => Err("Only a single action is allowed"),
        (Some(Action::Change { .. }), None) if flags.boolean("local-only") => {
            Err("Error validating local-only: local-only can only be set for list requests")
        }
        (action, _) => Ok(action),
    }
}

pub async fn run(context: &Context) -> Result<Report, Report> {
    let flags = &context.flags;
    let Some(action) = action(flags).map_err(Report::failure)? else {
        let (command, _) = find(&["keyring".to_owned()]).expect("a command names itself");
        return Err(Report::failure(command.help()));
    };
    let relay_factor = flags.integer("relay-factor");
    if relay_factor > 5 {
        return Err(Report::failure(
            "Error parsing relay factor: Relay factor must be in range: [0, 5]",
        ));
    }
    let client = context.client().await?;
    let mut report = Report::line(match &action {
        Action::List { .. } => "==> Gathering installed encryption keys...",
        Action::Change { method, .. } => match *method {
            Method::POST => "==> Installing new gossip encryption key...",
            Method::PUT => "==> Changing primary gossip encryption key...",
            _ => "==> Removing gossip encryption key...",
        },
    });
    let done = match action {
        Action::List { primary_only } => client
            .keyring(relay_factor, flags.boolean("local-only"))
            .await
            .map(|pools| {
                for pool in &pools {
                    let keys = if primary_only { &pool.primary_keys } else { &pool.keys };
                    report.add_line(pool_text(pool, keys));
                }
            }),
        Action::Change { method, key } => client.change_keyring(method, &key, relay_factor).await,
    };
    if let Err(error) = done {
        report.add_failure(format!("error: {error}"));
    }
    Ok(report)
}

/// A blank line, the pool's name, what members had to say, and the keys.
fn pool_text(pool: &KeyringPool, keys: &BTreeMap<String, u64>) -> String {
    let mut text = if pool.wan {
        "\nWAN".to_owned()
    } else {
        format!("\n{} (LAN)", pool.datacenter)
    };
    if !pool.segment.is_empty() {
        text.push_str(&format!(" [{}]", pool.segment));
    }
    text.push(':');
    for (member, message) in &pool.messages {
        text.push_str(&format!("\n  ===> {member}: {message}"));
    }
    for (key, count) in keys {
        text.push_str(&format!("\n  {key} [{count}/{}]", pool.num_nodes));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Option<Action>, &'static str> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let (command, rest) = find(&words).unwrap();
        action(&command.parse(rest).unwrap())
    }

    #[test]
    fn one_action_is_taken_and_two_are_refused() {
        let list = |primary_only| Ok(Some(Action::List { primary_only }));
        assert_eq!(asked("keyring -list"), list(false));
        assert_eq!(asked("keyring -list-primary"), list(true));
        let change = |method, key: &str| {
            let key = key.to_owned();
            Ok(Some(Action::Change { method, key }))
        };
        assert_eq!(asked("keyring -install=k"), change(Method::POST, "k"));
        assert_eq!(asked("keyring -use k"), change(Method::PUT, "k"));
        assert_eq!(asked("keyring -remove k"), change(Method::DELETE, "k"));
        assert_eq!(asked("keyring -list -use k"), Err("Only a single action is allowed"));
        assert_eq!(asked("keyring"), Ok(None));
        assert!(asked("keyring -local-only -use k").is_err());
    }

    #[test]
    fn a_pool_reads_as_consuls() {
        let json = r#"{"WAN":false,"Datacenter":"dc1","Segment":"","Keys":{"a=":3,"b=":2},"PrimaryKeys":{"a=":3},"NumNodes":3}"#;
        let pool: KeyringPool = serde_json::from_str(json).unwrap();
        assert_eq!(pool_text(&pool, &pool.keys), "\ndc1 (LAN):\n  a= [3/3]\n  b= [2/3]");
        assert_eq!(pool_text(&pool, &pool.primary_keys), "\ndc1 (LAN):\n  a= [3/3]");
        let pool = KeyringPool { wan: true, ..pool };
        assert!(pool_text(&pool, &pool.keys).starts_with("\nWAN:\n"));
    }
}
