//! Which source set a key, for what is wrong only once all sources are merged.
//!
//! In: each source's tree, in the order of merging. Out: a mistake with the names of the sources whose keys it names.
//! Not here: mistakes that one file shows alone (`decode`), and definitions, which carry their file themselves.

use super::value::Value;
use std::collections::BTreeMap;

/// The last source of every key, by its path; of a map too, whose entries are not all keys of the schema.
#[derive(Clone, Debug, Default)]
pub struct Origins {
    by_path: BTreeMap<String, String>,
}

impl Origins {
    /// Notes what `source` sets. Later sources win, as in merging.
    pub fn add(&mut self, source: &str, tree: &Value) {
        self.add_below("", source, tree);
    }

    fn add_below(&mut self, path: &str, source: &str, tree: &Value) {
        if !path.is_empty() {
            self.by_path.insert(path.to_owned(), source.to_owned());
        }
        if let Value::Map(map) = tree {
            for (key, value) in map.iter().filter(|(_, value)| **value != Value::Null) {
                let dot = if path.is_empty() { "" } else { "." };
                self.add_below(&format!("{path}{dot}{key}"), source, value);
            }
        }
    }

    /// The mistake, with the sources of the keys that it names behind it. Consul's own words come first and unchanged.
    pub fn name(&self, mistake: &str) -> String {
        let mut sources: Vec<&str> = Vec::new();
        let words = mistake.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '.'));
        for source in words.filter_map(|word| self.by_path.get(word.trim_matches('.'))) {
            if !sources.contains(&source.as_str()) {
                sources.push(source);
            }
        }
        match sources.as_slice() {
            [] => mistake.to_owned(),
            sources => format!("{mistake} (from {})", sources.join(" and ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;

    #[test]
    fn a_mistake_names_the_last_source_of_each_key_in_it() {
        let mut origins = Origins::default();
        for (source, text) in [
            (
                "a.json",
                r#"{"retry_interval":"5","bootstrap":true,"node_meta":{"a b":"c"},"server":null}"#,
            ),
            (
                "b.json",
                r#"{"retry_interval":"6","bootstrap_expect":3,"dns_config":{"service_ttl":{"*":"7"}}}"#,
            ),
        ] {
            origins.add(source, &json::parse(text).unwrap());
        }
        for (mistake, sources) in [
            ("retry_interval: invalid duration", " (from b.json)"),
            (
                "'bootstrap_expect > 0' and 'bootstrap = true' clash",
                " (from b.json and a.json)",
            ),
            ("node_meta invalid: ('a b', 'c')", " (from a.json)"),
            (r#"dns_config.service_ttl["*"]: invalid duration"#, " (from b.json)"),
            ("data_dir cannot be empty", ""),
            ("'bootstrapped' requires 'server = true'", ""),
        ] {
            assert_eq!(origins.name(mistake), format!("{mistake}{sources}"));
        }
    }
}
