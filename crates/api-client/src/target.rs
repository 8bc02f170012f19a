//! What is asked for: a path and its parameters, escaped.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Left as they are in a path, slashes included: keys have slashes of their own.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/');
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A path with parameters, as it goes into a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    text: String,
    has_query: bool,
}

impl Target {
    /// An endpoint: its path as it is.
    pub fn new(path: &str) -> Self {
        Self {
            text: path.to_owned(),
            has_query: false,
        }
    }
    /// Appends a name, an id or a key to the path.
    pub fn rest(mut self, rest: &str) -> Self {
        assert!(!self.has_query, "the path comes before the parameters");
        self.text.extend(utf8_percent_encode(rest, PATH));
        self
    }
    pub fn query(mut self, name: &str, value: &str) -> Self {
        self.separate();
        self.text.push_str(name);
        self.text.push('=');
        self.text.extend(utf8_percent_encode(value, QUERY));
        self
    }
    pub fn flag(mut self, name: &str) -> Self {
        self.separate();
        self.text.push_str(name);
        self
    }
    /// The parameter, when its value is not empty.
    pub fn query_if(self, name: &str, value: &str) -> Self {
        if value.is_empty() {
            self
        } else {
            self.query(name, value)
        }
    }
    pub fn flag_if(self, name: &str, set: bool) -> Self {
        if set { self.flag(name) } else { self }
    }
    pub fn as_str(&self) -> &str {
        &self.text
    }
    fn separate(&mut self) {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_slashes_and_lose_nothing_else() {
        let target = Target::new("/v1/kv/")
            .rest("a/b c?é")
            .query("dc", "x&y")
            .flag("recurse")
            .query_if("near", "");
        assert_eq!(target.as_str(), "/v1/kv/a/b%20c%3F%C3%A9?dc=x%26y&recurse");
    }
}
