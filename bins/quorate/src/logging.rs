//! The agent's log: one line an event, in Consul's layout or as JSON, on standard output.
//!
//! Layout: `2026-11-22T15:02:02.471Z [INFO]  agent.dns: message: key=value`; JSON has `@level`, `@message`, `@module`,
//! `@timestamp` and the event's fields. The level and the layout can be changed while the agent runs.
//! Libraries below the agent speak only when something is wrong.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Context, Filter, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt as log_fmt};

/// The log's switches. Clones share them.
#[derive(Clone, Default)]
pub struct Logs {
    switches: Arc<Switches>,
}

struct Switches {
    /// 1 error .. 5 trace.
    level: AtomicU8,
    json: AtomicBool,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            level: AtomicU8::new(rank(Level::INFO)),
            json: AtomicBool::new(false),
        }
    }
}

fn rank(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// Begins to log. Called once in a process.
pub fn install() -> Logs {
    let logs = Logs::default();
    let layer = log_fmt::layer()
        .event_format(Layout { logs: logs.clone() })
        .with_writer(std::io::stdout)
        .with_filter(LevelFilter { logs: logs.clone() });
    // Only a second call could fail, and then the first one's log goes on.
    let _ = tracing_subscriber::registry().with(layer).try_init();
    logs
}

impl Logs {
    /// `trace`, `debug`, `info`, `warn` or `error`; another word changes nothing.
    pub fn set_level(&self, level: &str) {
        if let Ok(level) = level.parse::<Level>() {
            self.switches.level.store(rank(level), Ordering::Relaxed);
            tracing::callsite::rebuild_interest_cache();
        }
    }
    pub fn set_json(&self, json: bool) {
        self.switches.json.store(json, Ordering::Relaxed);
    }
    fn is_enabled(&self, metadata: &Metadata<'_>) -> bool {
        let level = self.switches.level.load(Ordering::Relaxed);
        let ours = metadata.target().starts_with("quorate");
        // A library's complaints are details of ours, which say the same with what to do about it.
        let most = if ours || level == rank(Level::TRACE) {
            level
        } else {
            rank(Level::ERROR).min(level)
        };
        rank(*metadata.level()) <= most
    }
}

struct LevelFilter {
    logs: Logs,
}

impl<S: Subscriber> Filter<S> for LevelFilter {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        self.logs.is_enabled(metadata)
    }
}

struct Layout {
    logs: Logs,
}

/// An event's message and its other fields, in order.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(err) = source {
            let _ = write!(text, ": {err}");
            source = err.source();
        }
        self.put(field, text);
    }
}

impl Fields {
    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.others.push((name, value)),
        }
    }
}

/// `quorate_dns_server::udp` is `agent.dns-server` to the reader.
fn module(target: &str) -> String {
    let part = target.split("::").next().unwrap_or(target);
    match part.strip_prefix("quorate_") {
        Some("agent") | None => "agent".to_owned(),
        Some(part) => format!("agent.{}", part.replace('_', "-")),
    }
}

fn quoted(value: &str) -> String {
    let plain = !value.is_empty() && value.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '"');
    if plain { value.to_owned() } else { format!("{value:?}") }
}

fn line(time: &str, level: Level, module: &str, fields: &Fields) -> String {
    let level = format!("[{level}]");
    let mut text = format!("{time} {level:<7} {module}: {}", fields.message);
    for (position, (name, value)) in fields.others.iter().enumerate() {
        let separator = if position == 0 { ": " } else { " " };
        let _ = write!(text, "{separator}{name}={}", quoted(value));
    }
    text
}

fn json(time: &str, level: Level, module: &str, fields: &Fields) -> String {
    let mut object = serde_json::Map::new();
    object.insert("@level".to_owned(), level.as_str().to_lowercase().into());
    object.insert("@message".to_owned(), fields.message.clone().into());
    object.insert("@module".to_owned(), module.into());
    object.insert("@timestamp".to_owned(), time.into());
    for (name, value) in &fields.others {
        object.insert((*name).to_owned(), value.clone().into());
    }
    serde_json::Value::Object(object).to_string()
}

impl<S, N> FormatEvent<S, N> for Layout
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let module = module(metadata.target());
        let layout = if self.logs.switches.json.load(Ordering::Relaxed) {
            json
        } else {
            line
        };
        writeln!(writer, "{}", layout(&time, *metadata.level(), &module, &fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Fields {
        Fields {
            message: "check status changed".to_owned(),
            others: vec![("check", "service:web".to_owned()), ("output", "a b".to_owned())],
        }
    }

    #[test]
    fn a_line_reads_as_consuls() {
        let text = line("2026-11-22T15:02:02.471Z", Level::INFO, "agent.checks", &sample());
        assert_eq!(
            text,
            "2026-11-22T15:02:02.471Z [INFO]  agent.checks: check status changed: check=service:web output=\"a b\""
        );
    }

    #[test]
    fn a_json_line_is_an_object_with_the_fields() {
        let text = json("t", Level::WARN, "agent", &sample());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["@level"], &value["check"]),
            (&"warn".into(), &"service:web".into())
        );
    }

    #[test]
    fn modules_are_named_for_their_crate() {
        assert_eq!(module("quorate_dns_server::udp"), "agent.dns-server");
        assert_eq!(module("quorate_agent::node"), "agent");
    }
}
