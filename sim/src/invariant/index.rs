//! The index of one read at one server never goes backwards between its starts.
//!
//! Two reads under way at once may be answered in either order, so a read is held to what others had been told before it
//! was asked.

use std::collections::BTreeMap;

type Series = (String, u64, String);

#[derive(Debug, Default)]
pub struct Indexes {
    told: BTreeMap<Series, u64>,
}

/// A read that was asked, with the index it may not fall below.
#[derive(Debug)]
pub struct Asked {
    series: Series,
    floor: u64,
}

impl Indexes {
    pub fn ask(&self, node: &str, boot: u64, read: &str) -> Asked {
        let series = (node.to_owned(), boot, read.to_owned());
        let floor = self.told.get(&series).copied().unwrap_or(0);
        Asked { series, floor }
    }
    /// The answer came from the same start of the server that was asked.
    pub fn answer(&mut self, asked: Asked, boot: u64, index: u64) -> Result<(), String> {
        if asked.series.1 != boot {
            return Ok(());
        }
        let Asked { series, floor } = asked;
        if index < floor {
            let (node, _, read) = series;
            return Err(format!("{read} at {node} had index {floor} and has {index} now"));
        }
        let told = self.told.entry(series).or_default();
        *told = index.max(*told);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_falls_is_rejected() {
        let mut indexes = Indexes::default();
        let first = indexes.ask("a", 1, "/k");
        assert_eq!(indexes.answer(first, 1, 5), Ok(()));
        let second = indexes.ask("a", 1, "/k");
        assert!(indexes.answer(second, 1, 4).is_err());
    }

    #[test]
    fn concurrent_reads_other_servers_and_restarts_are_told_apart() {
        let mut indexes = Indexes::default();
        let (early, late) = (indexes.ask("a", 1, "/k"), indexes.ask("a", 1, "/k"));
        assert_eq!(indexes.answer(late, 1, 9), Ok(()));
        assert_eq!(indexes.answer(early, 1, 8), Ok(()));
        for (node, boot, read) in [("b", 1, "/k"), ("a", 2, "/k"), ("a", 1, "/other")] {
            let asked = indexes.ask(node, boot, read);
            assert_eq!(indexes.answer(asked, boot, 1), Ok(()));
        }
        let before = indexes.ask("a", 1, "/k");
        assert_eq!(indexes.answer(before, 2, 1), Ok(()), "a restart came between");
    }
}
