//! Domain names in wire form (RFC 1035 section 3.1): cheap to clone, compared without case where DNS says so.
//!
//! Invariants: labels of 1 to 63 bytes, 255 bytes in all, ended by the root label; no compression pointers.
//! `==` and the order are by exact bytes: a name keeps the case it was asked in (RFC 4343 section 4.1).
//! Not here: escapes. Text comes from node, service and host names, in which a backslash means itself.

use std::fmt;
use std::sync::Arc;
use thiserror::Error;

/// RFC 1035 section 2.3.4.
const LABEL_LEN_BYTES_MAX: usize = 63;
const NAME_LEN_BYTES_MAX: usize = 255;

/// Why a text is no domain name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    #[error("a label of a domain name is empty")]
    LabelEmpty,
    #[error("a label of a domain name is longer than 63 bytes")]
    LabelTooLong,
    #[error("a domain name is longer than 255 bytes")]
    TooLong,
}

/// A fully qualified domain name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(Arc<[u8]>);

impl Name {
    pub fn root() -> Self {
        Self(Arc::from([0_u8].as_slice()))
    }

    /// Reads labels separated by dots; a dot at the end is optional, and `""` and `"."` are the root.
    pub fn from_text(text: &str) -> Result<Self, NameError> {
        Self::root().child(&[text.strip_suffix('.').unwrap_or(text)])
    }

    /// The name with `parts`, each one or more labels separated by dots, in front of this one. An empty part is nothing.
    pub fn child(&self, parts: &[&str]) -> Result<Self, NameError> {
        let mut wire = Vec::with_capacity(64);
        for part in parts.iter().filter(|part| !part.is_empty()) {
            for label in part.split('.') {
                push_label(&mut wire, label.as_bytes())?;
            }
        }
        wire.extend_from_slice(&self.0);
        Self::from_checked_wire(wire)
    }

    /// A name from its labels, as a decoder gives them.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, NameError> {
        let mut wire = Vec::with_capacity(64);
        for label in labels {
            push_label(&mut wire, label)?;
        }
        wire.push(0);
        Self::from_checked_wire(wire)
    }

    fn from_checked_wire(wire: Vec<u8>) -> Result<Self, NameError> {
        if wire.len() > NAME_LEN_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        Ok(Self(wire.into()))
    }

    /// Reads the uncompressed name that `bytes` begins with. `None`: it is cut short, too long or compressed.
    pub fn from_wire_prefix(bytes: &[u8]) -> Option<Self> {
        let mut end = 0;
        loop {
            let label_len_bytes = usize::from(*bytes.get(end)?);
            if label_len_bytes > LABEL_LEN_BYTES_MAX {
                return None;
            }
            end += 1 + label_len_bytes;
            if end > NAME_LEN_BYTES_MAX {
                return None;
            }
            if label_len_bytes == 0 {
                return Some(Self(bytes.get(..end)?.into()));
            }
        }
    }

    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// From the left, without the root's.
    pub fn labels(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || {
            let (length, tail) = rest.split_first()?;
            if *length == 0 {
                return None;
            }
            let (label, tail) = tail.split_at(usize::from(*length));
            rest = tail;
            Some(label)
        })
    }

    /// The labels left of `parent` when this name is `parent` or below it.
    pub fn labels_below(&self, parent: &Self) -> Option<Vec<&[u8]>> {
        let mut labels = Vec::new();
        let mut rest = &self.0[..];
        while rest.len() > parent.0.len() {
            let (label, tail) = rest[1..].split_at(usize::from(rest[0]));
            labels.push(label);
            rest = tail;
        }
        // Length bytes are at most 63, below every letter: ignoring case cannot confuse them.
        rest.eq_ignore_ascii_case(&parent.0).then_some(labels)
    }

    /// Whether this name is `parent` or below it.
    pub fn is_within(&self, parent: &Self) -> bool {
        self.labels_below(parent).is_some()
    }

    pub fn eq_ignore_case(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(&other.0)
    }

    pub fn to_lowercase(&self) -> Self {
        Self(self.0.to_ascii_lowercase().into())
    }

    /// Whether both share one allocation: a quick, one-sided test of equality.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

fn push_label(wire: &mut Vec<u8>, label: &[u8]) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::LabelEmpty);
    }
    if label.len() > LABEL_LEN_BYTES_MAX {
        return Err(NameError::LabelTooLong);
    }
    // Names come from the catalog: refuse before a long one is copied in full.
    if wire.len() + label.len() >= NAME_LEN_BYTES_MAX {
        return Err(NameError::TooLong);
    }
    wire.push(u8::try_from(label.len()).expect("checked against 63"));
    wire.extend_from_slice(label);
    Ok(())
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() == 1 {
            return f.write_str(".");
        }
        for label in self.labels() {
            for byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                    0x21..=0x7e => write!(f, "{}", char::from(*byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailing_dot_is_optional_and_the_root_has_no_labels() {
        assert_eq!(
            Name::from_text("Web.consul").unwrap(),
            Name::from_text("Web.consul.").unwrap()
        );
        assert_eq!(Name::from_text("Web.consul").unwrap().to_string(), "Web.consul.");
        for root in ["", "."] {
            assert_eq!(Name::from_text(root).unwrap(), Name::root());
        }
    }

    #[test]
    fn what_does_not_fit_the_wire_is_refused() {
        assert_eq!(Name::from_text("a..b"), Err(NameError::LabelEmpty));
        assert_eq!(Name::from_text(".."), Err(NameError::LabelEmpty));
        assert_eq!(Name::from_text(&"a".repeat(64)), Err(NameError::LabelTooLong));
        assert!(Name::from_text(&"a".repeat(63)).is_ok());
        // 127 labels of one byte fill 255 bytes exactly.
        assert!(Name::from_text(&["a"; 127].join(".")).is_ok());
        assert_eq!(Name::from_text(&["a"; 128].join(".")), Err(NameError::TooLong));
    }

    #[test]
    fn names_are_within_a_domain_at_label_boundaries_and_without_case() {
        let consul = Name::from_text("consul").unwrap();
        let name = Name::from_text("N1.node.CONSUL").unwrap();
        assert_eq!(name.labels_below(&consul).unwrap(), [&b"N1"[..], &b"node"[..]]);
        assert!(consul.is_within(&consul));
        assert!(consul.is_within(&Name::root()));
        assert!(!Name::from_text("notconsul").unwrap().is_within(&consul));
        assert!(!Name::root().is_within(&consul));
    }

    #[test]
    fn compressed_and_cut_names_are_not_read() {
        assert!(Name::from_wire_prefix(&[0xc0, 12]).is_none());
        assert!(Name::from_wire_prefix(&[3, b'a', b'b']).is_none());
        assert!(Name::from_wire_prefix(&[]).is_none());
        let name = Name::from_wire_prefix(&[1, b'a', 0, 9, 9]).unwrap();
        assert_eq!(name.to_string(), "a.");
    }
}
