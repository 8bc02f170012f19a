//! For whom an event is: regular expressions on a node's name, and on its local services and their tags.
//!
//! In: an event's filters. Out: whether an agent accepts it. Promises: a filter's memory and time are bounded.

use crate::event::UserEvent;
use regex::{Regex, RegexBuilder};
use thiserror::Error;

/// Memory of one compiled expression.
const REGEX_LEN_BYTES_MAX: usize = 256 * 1024;

/// Why an event's filters cannot be used. The texts are Consul's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    #[error("Invalid node filter: {0}")]
    Node(String),
    #[error("Invalid service filter: {0}")]
    Service(String),
    #[error("Invalid tag filter: {0}")]
    Tag(String),
    #[error("Cannot provide tag filter without service filter")]
    TagWithoutService,
}

/// The compiled filters of an event. An empty one accepts everything.
#[derive(Clone, Debug)]
pub struct EventFilter {
    node: Option<Regex>,
    service: Option<Regex>,
    tag: Option<Regex>,
}

impl EventFilter {
    pub fn new(node: &str, service: &str, tag: &str) -> Result<Self, FilterError> {
        if !tag.is_empty() && service.is_empty() {
            return Err(FilterError::TagWithoutService);
        }
        Ok(Self {
            node: compile(node).map_err(FilterError::Node)?,
            service: compile(service).map_err(FilterError::Service)?,
            tag: compile(tag).map_err(FilterError::Tag)?,
        })
    }
    /// Of an event heard of.
    pub fn of(event: &UserEvent) -> Result<Self, FilterError> {
        Self::new(&event.node_filter, &event.service_filter, &event.tag_filter)
    }
    /// Whether an agent of this name, with these local services (name and tags), is meant.
    pub fn accepts<'a>(&self, node: &str, services: impl IntoIterator<Item = (&'a str, &'a [String])>) -> bool {
        if self.node.as_ref().is_some_and(|filter| !filter.is_match(node)) {
            return false;
        }
        let Some(service_filter) = &self.service else {
            return true;
        };
        services.into_iter().any(|(name, tags)| {
            let has_tag = |filter: &Regex| tags.iter().any(|tag| filter.is_match(tag));
            service_filter.is_match(name) && self.tag.as_ref().is_none_or(has_tag)
        })
    }
}

fn compile(expression: &str) -> Result<Option<Regex>, String> {
    if expression.is_empty() {
        return Ok(None);
    }
    RegexBuilder::new(expression)
        .size_limit(REGEX_LEN_BYTES_MAX)
        .dfa_size_limit(REGEX_LEN_BYTES_MAX)
        .build()
        .map(Some)
        .map_err(|err| format!("error parsing regexp: {}: `{expression}`", reason(&err)))
}

/// What is wrong with an expression, in one line, and where Go has a word for it in Go's.
fn reason(err: &regex::Error) -> String {
    let text = match err {
        regex::Error::CompiledTooBig(_) => return "expression too large".to_owned(),
        err => err.to_string(),
    };
    // The last line names the reason; those before show the place.
    let last = text.lines().last().unwrap_or_default().trim();
    let reason = last.strip_prefix("error: ").unwrap_or(last);
    match reason {
        "unclosed group" => "missing closing )",
        "unopened group" => "unexpected )",
        "unclosed character class" => "missing closing ]",
        "repetition operator missing expression" => "missing argument to repetition operator",
        "incomplete escape sequence, reached end of pattern prematurely" => "trailing backslash at end of expression",
        "unrecognized escape sequence" => "invalid escape sequence",
        reason => reason,
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(filters: [&str; 3], accepted: bool) {
        let tags = ["primary".to_owned(), "v2".to_owned()];
        let none: [String; 0] = [];
        let services = [("web", &none[..]), ("redis", &tags[..])];
        let filter = EventFilter::new(filters[0], filters[1], filters[2]).unwrap();
        assert_eq!(filter.accepts("web-frontend-1", services), accepted, "{filters:?}");
    }

    #[test]
    fn filters_match_anywhere_and_a_tag_counts_on_the_matched_service_only() {
        check(["", "", ""], true);
        check(["front", "", ""], true);
        check(["^front", "", ""], false);
        check(["", "^re", ""], true);
        check(["", "mysql", ""], false);
        check(["", "redis", "primary"], true);
        check(["", "web", "primary"], false);
        check(["other", "redis", ""], false);
    }

    #[test]
    fn what_is_no_expression_is_refused_with_consuls_words() {
        let text = |node, service, tag| EventFilter::new(node, service, tag).unwrap_err().to_string();
        assert_eq!(
            text("(", "", ""),
            "Invalid node filter: error parsing regexp: missing closing ): `(`"
        );
        assert_eq!(
            text("", "*", ""),
            "Invalid service filter: error parsing regexp: missing argument to repetition operator: `*`"
        );
        assert_eq!(
            text("", "a", "[z"),
            "Invalid tag filter: error parsing regexp: missing closing ]: `[z`"
        );
        assert_eq!(text("(", "", "a"), "Cannot provide tag filter without service filter");
        // A short expression may stand for a large machine.
        assert!(text("(\\pL{100}){100}", "", "").contains("expression too large"));
    }
}
