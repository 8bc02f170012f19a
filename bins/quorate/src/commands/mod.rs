//! The commands: one table, from which come dispatch, flags and help.

pub mod agent;
mod catalog;
mod event;
mod keygen;
mod keyring;
mod kv;
mod local;
mod lock;
mod maint;
mod members;
mod reachability;
mod rtt;
mod services;
mod validate;
mod version;

use crate::flags::{self, Flag, FlagError, Flags, Kind, flag};
use crate::report::Report;
use futures::future::BoxFuture;
use quorate_api_client::Client;
use quorate_rt::production::TokioRt;

/// What a command may use of the outside world.
pub struct Context {
    pub rt: TokioRt,
    pub flags: Flags,
}

impl Context {
    /// The agent the flags and the environment name.
    pub async fn client(&self) -> Result<Client<TokioRt>, String> {
        crate::api::connect(&self.rt, &self.flags).await
    }
    pub fn arguments(&self) -> &[String] {
        &self.flags.arguments
    }
}

/// Which of the common flags a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// It talks to no agent.
    None,
    /// It talks to an agent.
    Client,
    /// It asks the agent for what servers hold.
    Server,
}

type Run = for<'a> fn(&'a Context) -> BoxFuture<'a, Report>;

pub struct Command {
    /// Its words, `kv put`.
    pub name: &'static str,
    /// What follows them in the usage line.
    pub usage: &'static str,
    pub synopsis: &'static str,
    pub group: Group,
    pub flags: &'static [Flag],
    run: Run,
}

const CLIENT_FLAGS: &[Flag] = &[
    flag(
        "http-addr",
        Kind::Text,
        "Address of the agent: host:port or http://host:port. Also CONSUL_HTTP_ADDR.",
    ),
    flag("token", Kind::Text, "ACL token of the request. Also CONSUL_HTTP_TOKEN."),
    flag(
        "token-file",
        Kind::Text,
        "File with the ACL token. Also CONSUL_HTTP_TOKEN_FILE.",
    ),
    flag(
        "ca-file",
        Kind::Text,
        "Certificate authority for https. Also CONSUL_CACERT.",
    ),
    flag(
        "ca-path",
        Kind::Text,
        "Folder of certificate authorities for https. Also CONSUL_CAPATH.",
    ),
    flag(
        "client-cert",
        Kind::Text,
        "Client certificate for https. Also CONSUL_CLIENT_CERT.",
    ),
    flag(
        "client-key",
        Kind::Text,
        "Client key for https. Also CONSUL_CLIENT_KEY.",
    ),
    flag(
        "tls-server-name",
        Kind::Text,
        "Server name to expect for https. Also CONSUL_TLS_SERVER_NAME.",
    ),
    flag("namespace", Kind::Ignored, "Accepted for compatibility."),
    flag("partition", Kind::Ignored, "Accepted for compatibility."),
];
const SERVER_FLAGS: &[Flag] = &[
    flag(
        "datacenter",
        Kind::Text,
        "Datacenter to ask; the agent's own without it.",
    ),
    flag("stale", Kind::Boolean, "Let any server answer, not only the leader."),
];

macro_rules! command {
    ($name:literal, $usage:literal, $synopsis:literal, $group:expr, $run:path, [$($flag:expr),* $(,)?]) => {
        Command {
            name: $name,
            usage: $usage,
            synopsis: $synopsis,
            group: $group,
            flags: &[$($flag),*],
            run: |context| Box::pin(async move { $run(context).await.unwrap_or_else(|report| report) }),
        }
    };
}

/// All commands but `agent`, sorted.
pub const COMMANDS: &[Command] = &[
    command!(
        "catalog datacenters",
        "[options]",
        "Lists all known datacenters",
        Group::Server,
        catalog::datacenters,
        []
    ),
    command!(
        "catalog nodes",
        "[options]",
        "Lists all nodes of the datacenter",
        Group::Server,
        catalog::nodes,
        [
            flag(
                "detailed",
                Kind::Boolean,
                "Show the whole id, tagged addresses and metadata."
            ),
            flag("filter", Kind::Text, "Filter expression."),
            flag("near", Kind::Text, "Sort by round trip time from this node."),
            flag(
                "node-meta",
                Kind::Texts,
                "Only nodes with this metadata, key=value. May be repeated."
            ),
            flag("service", Kind::Text, "Only nodes with this service."),
        ]
    ),
    command!(
        "catalog services",
        "[options]",
        "Lists all services of the datacenter",
        Group::Server,
        catalog::services,
        [
            flag("node", Kind::Text, "Only services of this node, by name or id."),
            flag(
                "node-meta",
                Kind::Texts,
                "Only nodes with this metadata, key=value. May be repeated."
            ),
            flag("tags", Kind::Boolean, "Show each service's tags."),
        ]
    ),
    command!(
        "event",
        "[options] [PAYLOAD]",
        "Tells all agents of the datacenter of an event",
        Group::Client,
        event::run,
        [
            flag("name", Kind::Text, "Name of the event."),
            flag("node", Kind::Text, "Regular expression of the nodes it is for."),
            flag(
                "service",
                Kind::Text,
                "Regular expression of the services it is for: only nodes with one."
            ),
            flag("tag", Kind::Text, "Regular expression of the tags -service must have."),
        ]
    ),
    command!(
        "force-leave",
        "[options] NAME",
        "Makes a failed member leave",
        Group::Client,
        members::force_leave,
        [
            flag("prune", Kind::Boolean, "Remove it from the list of members at once."),
            flag("wan", Kind::Boolean, "Act on the WAN pool."),
        ]
    ),
    command!(
        "info",
        "[options]",
        "Shows figures of the agent",
        Group::Client,
        local::info,
        []
    ),
    command!(
        "join",
        "[options] ADDRESS...",
        "Makes the agent join a cluster",
        Group::Client,
        members::join,
        [flag("wan", Kind::Boolean, "Join the WAN pool."),]
    ),
    command!(
        "keygen",
        "",
        "Makes a gossip encryption key",
        Group::None,
        keygen::run,
        []
    ),
    command!(
        "keyring",
        "[options]",
        "Lists and changes the gossip encryption keys of all members",
        Group::Client,
        keyring::run,
        [
            flag(
                "install",
                Kind::Text,
                "Give every member this key, so that others may use it."
            ),
            flag("list", Kind::Boolean, "List all keys, with how many members have them."),
            flag(
                "list-primary",
                Kind::Boolean,
                "List the keys that members encrypt with."
            ),
            flag(
                "local-only",
                Kind::Boolean,
                "Of a list: ask this datacenter's LAN pool only."
            ),
            flag("relay-factor", Kind::Integer, "Accepted for compatibility (0 to 5)."),
            flag("remove", Kind::Text, "Take this key from every member."),
            flag(
                "use",
                Kind::Text,
                "Let every member encrypt with this key, which it has."
            ),
        ]
    ),
    command!(
        "kv delete",
        "[options] KEY_OR_PREFIX",
        "Removes keys",
        Group::Server,
        kv::delete,
        [
            flag("cas", Kind::Boolean, "Delete only if the key's index is -modify-index."),
            flag("modify-index", Kind::Integer, "The index -cas compares with."),
            flag("recurse", Kind::Boolean, "Delete all keys with this prefix."),
        ]
    ),
    command!(
        "kv export",
        "[options] [PREFIX]",
        "Exports keys as JSON",
        Group::Server,
        kv::export,
        []
    ),
    command!(
        "kv get",
        "[options] [KEY_OR_PREFIX]",
        "Reads keys",
        Group::Server,
        kv::get,
        [
            flag("base64", Kind::Boolean, "Show values in base64."),
            flag("detailed", Kind::Boolean, "Show indexes, flags and session."),
            flag("keys", Kind::Boolean, "List the names of keys with this prefix."),
            flag("recurse", Kind::Boolean, "Read all keys with this prefix."),
            flag("separator", Kind::Text, "What -keys cuts names at (/)."),
        ]
    ),
    command!(
        "kv import",
        "[options] DATA",
        "Imports keys from JSON",
        Group::Server,
        kv::import,
        [flag("prefix", Kind::Text, "Put before each imported key."),]
    ),
    command!(
        "kv put",
        "[options] KEY [DATA]",
        "Writes a key; DATA is text, @FILE or - (standard input)",
        Group::Server,
        kv::put,
        [
            flag("acquire", Kind::Boolean, "Take the key's lock for -session."),
            flag("base64", Kind::Boolean, "DATA is base64."),
            flag(
                "cas",
                Kind::Boolean,
                "Write only if the key's index is -modify-index (0: only if it is absent)."
            ),
            flag("flags", Kind::Integer, "A number kept with the key."),
            flag("modify-index", Kind::Integer, "The index -cas compares with."),
            flag("release", Kind::Boolean, "Give up the key's lock of -session."),
            flag("session", Kind::Text, "The session that takes or gives up the lock."),
        ]
    ),
    command!(
        "leave",
        "[options]",
        "Makes the agent leave its cluster and stop",
        Group::Client,
        local::leave,
        []
    ),
    command!(
        "lock",
        "[options] PREFIX CHILD...",
        "Runs a command while a lock is held",
        Group::Server,
        lock::run,
        [
            flag(
                "child-exit-code",
                Kind::Boolean,
                "Exit with 2 when the command failed; otherwise its failure is not passed on."
            ),
            flag(
                "monitor-retry",
                Kind::Text,
                "Errors in a row, a second apart, until the lock counts as lost (3)."
            ),
            flag(
                "n",
                Kind::Text,
                "How many may hold it at a time (1); more than one make it a semaphore."
            ),
            flag(
                "name",
                Kind::Text,
                "Name of the session; made of the command without it."
            ),
            flag("pass-stdin", Kind::Boolean, "Pass standard input to the command."),
            flag(
                "shell",
                Kind::Boolean,
                "Run the command in a shell, $SHELL or /bin/sh (true)."
            ),
            flag(
                "timeout",
                Kind::Text,
                "Give up when it was not acquired in this time, such as 10s (0: never)."
            ),
            flag("try", Kind::Text, "The same as -timeout, which replaces it."),
            flag("verbose", Kind::Boolean, "Tell what happens."),
        ]
    ),
    command!(
        "maint",
        "[options]",
        "Turns maintenance on or off, or lists it",
        Group::Client,
        maint::run,
        [
            flag("disable", Kind::Boolean, "Turn maintenance off."),
            flag("enable", Kind::Boolean, "Turn maintenance on."),
            flag("reason", Kind::Text, "Why, for those who look."),
            flag("service", Kind::Text, "Only for the service with this id."),
        ]
    ),
    command!(
        "members",
        "[options]",
        "Lists the members of the cluster",
        Group::Client,
        members::members,
        [
            flag("detailed", Kind::Boolean, "Show all tags."),
            flag("filter", Kind::Text, "Filter expression."),
            flag("segment", Kind::Text, "Only this network segment (_all)."),
            flag("status", Kind::Text, "Regular expression of the statuses to show (.*)."),
            flag("wan", Kind::Boolean, "List the WAN pool."),
        ]
    ),
    command!(
        "reachability",
        "[options]",
        "Asks all members who cannot reach whom",
        Group::Client,
        reachability::run,
        [flag(
            "timeout",
            Kind::Text,
            "How long members may take to answer (5s, at most 60s)."
        ),]
    ),
    command!(
        "reload",
        "[options]",
        "Makes the agent read its configuration again",
        Group::Client,
        local::reload,
        []
    ),
    command!(
        "rtt",
        "[options] NODE1 [NODE2]",
        "Estimates the round trip time between two nodes",
        Group::Client,
        rtt::run,
        [flag("wan", Kind::Boolean, "Between servers, named node.datacenter."),]
    ),
    command!(
        "services deregister",
        "[options] [FILE...]",
        "Removes services from the agent",
        Group::Server,
        services::deregister,
        [flag("id", Kind::Text, "Id of the service, in place of files."),]
    ),
    command!(
        "services register",
        "[options] [FILE...]",
        "Registers services with the agent",
        Group::Server,
        services::register,
        [
            flag("address", Kind::Text, "Address of the service; the agent's without it."),
            flag("id", Kind::Text, "Id; the name without it."),
            flag("kind", Kind::Text, "Kind of the service."),
            flag("meta", Kind::Texts, "Metadata, key=value. May be repeated."),
            flag("name", Kind::Text, "Name of the service, in place of files."),
            flag("port", Kind::Integer, "Port of the service."),
            flag("socket", Kind::Text, "Unix socket of the service."),
            flag("tag", Kind::Texts, "A tag. May be repeated."),
            flag("tagged-address", Kind::Texts, "name=address:port. May be repeated."),
        ]
    ),
    command!(
        "validate",
        "[options] FILE_OR_FOLDER...",
        "Checks configuration files",
        Group::None,
        validate::run,
        [
            flag(
                "config-format",
                Kind::Text,
                "json or hcl, for files of other extensions."
            ),
            flag("quiet", Kind::Boolean, "Say nothing on success."),
        ]
    ),
    command!(
        "version",
        "[options]",
        "Shows the version",
        Group::None,
        version::run,
        [flag("format", Kind::Text, "pretty or json (pretty)."),]
    ),
];

/// The command that these arguments name, and what is left of them.
pub fn find(arguments: &[String]) -> Option<(&'static Command, &[String])> {
    COMMANDS.iter().find_map(|command| {
        let words = command.name.split(' ');
        let count = words.clone().count();
        let is_named = arguments.len() >= count && words.zip(arguments).all(|(word, argument)| word == argument);
        is_named.then(|| (command, &arguments[count..]))
    })
}

impl Command {
    fn declared(&self) -> impl Iterator<Item = &'static Flag> + Clone {
        let (client, server): (&[Flag], &[Flag]) = match self.group {
            Group::None => (&[], &[]),
            Group::Client => (CLIENT_FLAGS, &[]),
            Group::Server => (CLIENT_FLAGS, SERVER_FLAGS),
        };
        self.flags.iter().chain(client).chain(server)
    }
    pub fn help(&self) -> String {
        let usage = format!("Usage: quorate {} {}", self.name, self.usage);
        let mut text = format!("{}\n\n  {}.\n", usage.trim_end(), self.synopsis);
        if self.declared().next().is_some() {
            text.push_str("\nOptions:\n\n");
            text.push_str(&flags::help(self.declared()));
        }
        text
    }
    /// Takes the flags; `Err` holds what to print when the command is not to run.
    pub fn parse(&self, arguments: &[String]) -> Result<Flags, Report> {
        let flags = flags::parse(self.declared(), arguments).map_err(|error| match error {
            FlagError::Help => Report::text(self.help()),
            FlagError::Mistake(mistake) => Report {
                stderr: format!("{mistake}\n{}", self.help()),
                code: 1,
                ..Report::default()
            },
        })?;
        // Consul refuses them in `leave` and `catalog` and passes over them elsewhere, where a flag behind one is then
        // without effect and without a word.
        if !self.takes_arguments() && !flags.arguments.is_empty() {
            return Err(self.refuse_arguments(&flags.arguments));
        }
        Ok(flags)
    }
    /// The usage line names what may follow the options.
    fn takes_arguments(&self) -> bool {
        !matches!(self.usage, "" | "[options]")
    }
    fn refuse_arguments(&self, arguments: &[String]) -> Report {
        if self.name == "leave" {
            return Report {
                stdout: self.help().into_bytes(),
                stderr: format!("Error found unexpected args: [{}]\n", arguments.join(" ")),
                code: 1,
            };
        }
        Report::failure(format!("Too many arguments (expected 0, got {})", arguments.len()))
    }
    pub async fn run(&self, context: &Context) -> Report {
        (self.run)(context).await
    }
}

/// A mistake in the arguments, with the command's help.
fn misused(name: &str, mistake: &str) -> Report {
    let command = COMMANDS.iter().find(|command| command.name == name);
    let help = command.expect("a command names itself").help();
    Report {
        stderr: format!("{mistake}\n\n{help}"),
        code: 1,
        ..Report::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn a_command_is_found_by_all_its_words() {
        let arguments = words("kv put -cas k v");
        let (command, rest) = find(&arguments).unwrap();
        assert_eq!((command.name, rest), ("kv put", &arguments[2..]));
        assert!(find(&words("kv")).is_none());
        assert!(find(&words("kv bogus")).is_none());
        assert!(find(&words("")).is_none());
    }

    #[test]
    fn commands_are_sorted_and_no_flag_is_declared_twice() {
        assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
        for command in COMMANDS {
            let mut names: Vec<&str> = command.declared().map(|flag| flag.name).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", command.name);
        }
    }

    #[test]
    fn help_ends_well_and_an_unknown_flag_ends_badly() {
        let (command, rest) = (find(&words("members")).unwrap().0, words("-h"));
        let report = command.parse(&rest).unwrap_err();
        assert_eq!(report.code, 0);
        assert!(report.stdout.starts_with(b"Usage: quorate members [options]\n"));
        let report = command.parse(&words("-bogus")).unwrap_err();
        assert_eq!(report.code, 1);
        assert!(
            report
                .stderr
                .starts_with("flag provided but not defined: -bogus\nUsage: ")
        );
    }
}
