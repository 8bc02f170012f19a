//! At most one leader in a term.

use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Leaders {
    by_term: BTreeMap<u64, String>,
}

impl Leaders {
    /// `node` leads `term`, by its own account.
    pub fn observe(&mut self, term: u64, node: &str) -> Result<(), String> {
        let leader = self.by_term.entry(term).or_insert_with(|| node.to_owned());
        if leader == node {
            return Ok(());
        }
        Err(format!("term {term} has two leaders: {leader} and {node}"))
    }
    /// Terms that had a leader.
    pub fn count(&self) -> usize {
        self.by_term.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_leader_of_a_term_is_rejected() {
        let mut leaders = Leaders::default();
        assert_eq!(leaders.observe(1, "a"), Ok(()));
        assert_eq!(leaders.observe(2, "b"), Ok(()));
        // An old leader that does not know of the new term yet.
        assert_eq!(leaders.observe(1, "a"), Ok(()));
        assert!(leaders.observe(2, "a").is_err());
    }
}
