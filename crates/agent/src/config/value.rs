//! Values: the common tree that JSON and HCL files are read into.
//!
//! A map is ordered by its keys, so that errors and warnings come in one order on every machine.
//! Not here: which keys exist (`schema`), how files become trees (`json`, `hcl`).

use std::collections::BTreeMap;

/// Containers within containers deeper than this are refused by both parsers: recursion must not use up the stack.
pub const DEPTH_MAX: usize = 100;

/// One value of a configuration file.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    String(String),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
}

impl Default for Value {
    fn default() -> Self {
        Self::Map(BTreeMap::new())
    }
}

impl Value {
    /// The value at a dotted path of map keys; `None` when absent or null.
    pub fn get(&self, path: &str) -> Option<&Value> {
        let mut at = self;
        for key in path.split('.') {
            let Value::Map(map) = at else { return None };
            at = map.get(key)?;
        }
        (*at != Value::Null).then_some(at)
    }

    /// Sets the value at a dotted path, making the maps on the way.
    pub fn set(&mut self, path: &str, value: Value) {
        let mut at = self;
        for key in path.split('.') {
            if !matches!(at, Value::Map(_)) {
                *at = Value::default();
            }
            let Value::Map(map) = at else {
                unreachable!("made a map above")
            };
            at = map.entry(key.to_owned()).or_insert(Value::Null);
        }
        *at = value;
    }

    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// Lays `over` on this tree: scalars replace, lists append, maps merge by key. Nulls change nothing.
    pub fn merge(&mut self, over: Value) {
        match (self, over) {
            (_, Value::Null) => {}
            (Value::Map(base), Value::Map(over)) => {
                for (key, value) in over {
                    base.entry(key).or_insert(Value::Null).merge(value);
                }
            }
            (Value::List(base), Value::List(over)) => base.extend(over),
            (base, over) => *base = over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, Value)]) -> Value {
        Value::Map(pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect())
    }

    #[test]
    fn scalars_replace_lists_append_and_maps_merge() {
        let mut base = map(&[
            ("a", Value::Int(1)),
            ("l", Value::List(vec![Value::Int(1)])),
            ("m", map(&[("x", Value::Int(1)), ("y", Value::Int(1))])),
        ]);
        base.merge(map(&[
            ("a", Value::Int(2)),
            ("l", Value::List(vec![Value::Int(2)])),
            ("m", map(&[("y", Value::Int(2))])),
            ("n", Value::Null),
        ]));
        assert_eq!(base.get("a"), Some(&Value::Int(2)));
        assert_eq!(base.get("l"), Some(&Value::List(vec![Value::Int(1), Value::Int(2)])));
        assert_eq!(base.get("m.x"), Some(&Value::Int(1)));
        assert_eq!(base.get("m.y"), Some(&Value::Int(2)));
        assert_eq!(base.get("n"), None);
    }

    #[test]
    fn setting_a_path_makes_the_maps_on_the_way() {
        let mut tree = Value::default();
        tree.set("ports.http", Value::Int(1));
        tree.set("ports.dns", Value::Int(2));
        assert_eq!(tree.get("ports.http"), Some(&Value::Int(1)));
        assert_eq!(tree.get("ports.dns"), Some(&Value::Int(2)));
        assert_eq!(tree.get("ports.dns.more"), None);
    }
}
