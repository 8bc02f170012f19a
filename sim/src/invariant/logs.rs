//! Every server applies the same entries in the same order, and none twice between its starts.

use std::collections::BTreeMap;

/// What identifies an applied entry: its term and the checksum of its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    term: u64,
    checksum: u32,
}

#[derive(Debug, Default)]
pub struct Logs {
    applied: BTreeMap<u64, (Entry, String)>,
    /// The last entry that each boot of each server applied.
    last: BTreeMap<(String, u64), u64>,
}

impl Logs {
    /// The payload of the event `apply`: term, index, checksum, little endian.
    pub fn observe(&mut self, node: &str, boot: u64, payload: &[u8]) -> Result<(), String> {
        let Ok(payload) = <[u8; 20]>::try_from(payload) else {
            return Err(format!("{node} tells of an applied entry in {} bytes", payload.len()));
        };
        let word = |at: usize| u64::from_le_bytes(payload[at..at + 8].try_into().expect("eight bytes"));
        let (term, index) = (word(0), word(8));
        let checksum = u32::from_le_bytes(payload[16..20].try_into().expect("four bytes"));
        self.entry(node, boot, index, Entry { term, checksum })
    }
    fn entry(&mut self, node: &str, boot: u64, index: u64, entry: Entry) -> Result<(), String> {
        if let Some(last) = self.last.insert((node.to_owned(), boot), index)
            && last >= index
        {
            return Err(format!("{node} applied log index {index} after {last}"));
        }
        let (first, by) = self.applied.entry(index).or_insert_with(|| (entry, node.to_owned()));
        if *first == entry {
            return Ok(());
        }
        Err(format!(
            "log index {index} is {first:?} at {by} and {entry:?} at {node}"
        ))
    }
    pub fn count(&self) -> usize {
        self.applied.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(term: u64, index: u64, checksum: u32) -> Vec<u8> {
        let mut payload = term.to_le_bytes().to_vec();
        payload.extend(index.to_le_bytes());
        payload.extend(checksum.to_le_bytes());
        payload
    }

    #[test]
    fn equal_logs_are_accepted_from_any_start() {
        let mut logs = Logs::default();
        for index in 1..5 {
            assert_eq!(logs.observe("a", 1, &payload(1, index, 7)), Ok(()));
        }
        assert_eq!(logs.observe("b", 1, &payload(1, 3, 7)), Ok(()));
        // A restart applies its log again.
        assert_eq!(logs.observe("a", 2, &payload(1, 1, 7)), Ok(()));
    }

    #[test]
    fn another_entry_at_an_index_is_rejected() {
        for other in [payload(2, 1, 7), payload(1, 1, 8)] {
            let mut logs = Logs::default();
            assert_eq!(logs.observe("a", 1, &payload(1, 1, 7)), Ok(()));
            assert!(logs.observe("b", 1, &other).is_err());
        }
    }

    #[test]
    fn an_entry_applied_twice_is_rejected() {
        let mut logs = Logs::default();
        assert_eq!(logs.observe("a", 1, &payload(1, 5, 7)), Ok(()));
        assert!(logs.observe("a", 1, &payload(1, 5, 7)).is_err());
        assert!(Logs::default().observe("a", 1, &[0; 3]).is_err());
    }
}
