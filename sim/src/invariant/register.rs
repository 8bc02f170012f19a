//! Whether one register's history has a linearization (Wing and Gong's search, with a memory of what was tried).
//!
//! In: operations with the times of their call and return. Out: nothing, or where every order fails.
//! A write whose outcome is unknown may take effect at any time after its call, or never. Every written value is written
//! once, which is what keeps the search small: a value must be read by all who read it before another is written, and an
//! unknown write that nobody read need not be placed at all.
//! Registers are independent of one another, so each is judged alone (linearizability is local: Herlihy and Wing).

use std::collections::BTreeSet;
use std::fmt;

/// A written value: unique within its register.
pub type Value = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Write(Value),
    Read(Option<Value>),
}

/// One call. Times are nanoseconds of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub called_at: u64,
    /// `None`: nobody knows whether it happened, or will. Of a read: it is not part of the history.
    pub returned_at: Option<u64>,
    pub action: Action,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |nanos: u64| nanos as f64 / 1e9;
        match self.action {
            Action::Write(value) => write!(f, "write {value}")?,
            Action::Read(Some(value)) => write!(f, "read {value}")?,
            Action::Read(None) => f.write_str("read nothing")?,
        }
        write!(f, " called {:.6}", seconds(self.called_at))?;
        match self.returned_at {
            Some(at) => write!(f, " returned {:.6}", seconds(at)),
            None => f.write_str(" unknown"),
        }
    }
}

/// The best that could be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotLinearizable {
    pub placed_count: usize,
    /// What the register held then.
    pub value: Option<Value>,
    /// What could not follow, by time of return.
    pub stuck: Vec<Operation>,
}

impl fmt::Display for NotLinearizable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {} operations the register holds ", self.placed_count)?;
        match self.value {
            Some(value) => write!(f, "{value}")?,
            None => f.write_str("nothing")?,
        }
        f.write_str(" and none of these can be next:")?;
        for operation in &self.stuck {
            write!(f, "\n    {operation}")?;
        }
        Ok(())
    }
}

const STUCK_SHOWN_MAX: usize = 6;

/// A set of operations, by position.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Placed {
    words: Vec<u64>,
    count: usize,
}

impl Placed {
    /// None of so many.
    pub(super) fn nothing(operation_count: usize) -> Self {
        Self {
            words: vec![0; operation_count.div_ceil(64)],
            count: 0,
        }
    }
    pub(super) const fn count(&self) -> usize {
        self.count
    }
    pub(super) fn has(&self, position: usize) -> bool {
        self.words[position / 64] >> (position % 64) & 1 == 1
    }
    pub(super) fn add(&mut self, position: usize) {
        assert!(!self.has(position), "an operation takes effect once");
        self.words[position / 64] |= 1 << (position % 64);
        self.count += 1;
    }
}

struct Search {
    /// By time of call.
    operations: Vec<Operation>,
    completed_count: usize,
}

impl Search {
    /// Operations that may be next: those called before any that is still to be placed has returned.
    fn candidates(&self, placed: &Placed) -> Vec<usize> {
        let mut found = Vec::new();
        let mut returned_first = u64::MAX;
        for (position, operation) in self.operations.iter().enumerate() {
            if operation.called_at > returned_first {
                break;
            }
            if !placed.has(position) {
                returned_first = returned_first.min(operation.returned_at.unwrap_or(u64::MAX));
                found.push(position);
            }
        }
        found
    }
    /// Places all reads that the value answers: a read changes nothing, so there is no reason to put it off.
    fn place_reads(&self, placed: &mut Placed, value: Option<Value>) -> Vec<usize> {
        loop {
            let candidates = self.candidates(placed);
            let answered = |position: &&usize| self.operations[**position].action == Action::Read(value);
            let Some(&position) = candidates.iter().find(answered) else {
                return candidates;
            };
            placed.add(position);
        }
    }
    fn is_read_later(&self, placed: &Placed, value: Option<Value>) -> bool {
        let all = self.operations.iter().enumerate();
        let mut reads = all.filter(|(_, operation)| operation.action == Action::Read(value));
        reads.any(|(position, _)| !placed.has(position))
    }
    fn run(&self) -> Result<(), NotLinearizable> {
        let nothing = Placed::nothing(self.operations.len());
        let mut tried = BTreeSet::new();
        let mut open = vec![(nothing, None)];
        let mut best: Option<NotLinearizable> = None;
        while let Some((mut placed, value)) = open.pop() {
            let candidates = self.place_reads(&mut placed, value);
            let is_left =
                |(position, operation): (usize, &Operation)| operation.returned_at.is_some() && !placed.has(position);
            if !self.operations.iter().enumerate().any(is_left) {
                return Ok(());
            }
            if !tried.insert((placed.clone(), value)) {
                continue;
            }
            if best.as_ref().is_none_or(|best| placed.count > best.placed_count) {
                let mut stuck: Vec<Operation> = candidates
                    .iter()
                    .map(|&position| self.operations[position].clone())
                    .collect();
                stuck.sort_by_key(|operation| operation.returned_at.unwrap_or(u64::MAX));
                stuck.truncate(STUCK_SHOWN_MAX);
                best = Some(NotLinearizable {
                    placed_count: placed.count,
                    value,
                    stuck,
                });
            }
            if self.is_read_later(&placed, value) {
                // Values are written once: this one will not come back for the read.
                continue;
            }
            // The one that returned first is tried first: it is the likeliest.
            let mut writes: Vec<(u64, usize, Value)> = Vec::new();
            for position in candidates {
                if let Action::Write(written) = self.operations[position].action {
                    let returned_at = self.operations[position].returned_at.unwrap_or(u64::MAX);
                    writes.push((returned_at, position, written));
                }
            }
            writes.sort_unstable();
            for (_, position, written) in writes.into_iter().rev() {
                let mut next = placed.clone();
                next.add(position);
                open.push((next, Some(written)));
            }
        }
        assert!(self.completed_count > 0, "without operations there is nothing to fail");
        Err(best.expect("the empty beginning was tried"))
    }
}

/// Judges the history of one register, which holds nothing at first.
pub fn check(history: &[Operation]) -> Result<(), NotLinearizable> {
    let values = |of: fn(&Operation) -> Option<Value>| history.iter().filter_map(of);
    let written: Vec<Value> = values(|operation| match operation.action {
        Action::Write(value) => Some(value),
        Action::Read(_) => None,
    })
    .collect();
    let distinct: BTreeSet<Value> = written.iter().copied().collect();
    assert_eq!(written.len(), distinct.len(), "every value is written once");
    let read: BTreeSet<Value> = values(|operation| match operation.action {
        Action::Read(value) => value.filter(|_| operation.returned_at.is_some()),
        Action::Write(_) => None,
    })
    .collect();
    let counts = |operation: &&Operation| {
        operation.returned_at.is_some() || matches!(operation.action, Action::Write(value) if read.contains(&value))
    };
    let mut operations: Vec<Operation> = history.iter().filter(counts).cloned().collect();
    operations.sort_by_key(|operation| (operation.called_at, operation.returned_at));
    let completed_count = operations
        .iter()
        .filter(|operation| operation.returned_at.is_some())
        .count();
    Search {
        operations,
        completed_count,
    }
    .run()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: Value, called_at: u64, returned_at: u64) -> Operation {
        Operation {
            called_at,
            returned_at: Some(returned_at),
            action: Action::Write(value),
        }
    }
    fn unknown(value: Value, called_at: u64) -> Operation {
        Operation {
            called_at,
            returned_at: None,
            action: Action::Write(value),
        }
    }
    fn read(value: impl Into<Option<Value>>, called_at: u64, returned_at: u64) -> Operation {
        Operation {
            called_at,
            returned_at: Some(returned_at),
            action: Action::Read(value.into()),
        }
    }
    #[track_caller]
    fn accepts(history: &[Operation]) {
        if let Err(err) = check(history) {
            panic!("{err}");
        }
    }
    #[track_caller]
    fn rejects(history: &[Operation]) {
        assert!(check(history).is_err());
    }

    #[test]
    fn histories_with_an_order_are_accepted() {
        accepts(&[]);
        accepts(&[read(None, 0, 1), write(1, 2, 3), read(1, 4, 5)]);
        // Both may come first.
        accepts(&[write(1, 0, 10), write(2, 0, 10), read(1, 11, 12), read(1, 13, 14)]);
        accepts(&[write(1, 0, 10), write(2, 0, 10), read(2, 11, 12)]);
        // A read beside a write sees either value.
        accepts(&[write(1, 0, 1), write(2, 2, 9), read(1, 3, 4), read(2, 5, 6)]);
    }

    #[test]
    fn a_stale_read_is_rejected() {
        rejects(&[write(1, 0, 1), write(2, 2, 3), read(1, 4, 5)]);
        rejects(&[write(1, 0, 1), read(None, 2, 3)]);
        // Once the new value was seen, the old one is stale, though the write has not returned.
        rejects(&[write(1, 0, 1), write(2, 2, 9), read(2, 3, 4), read(1, 5, 6)]);
    }

    #[test]
    fn a_lost_acknowledged_write_is_rejected() {
        rejects(&[write(1, 0, 1), write(2, 2, 3), read(1, 100, 101), read(1, 102, 103)]);
        rejects(&[write(1, 0, 1), unknown(2, 2), read(None, 100, 101)]);
    }

    #[test]
    fn a_resurrected_value_is_rejected() {
        rejects(&[
            write(1, 0, 1),
            read(1, 2, 3),
            write(2, 4, 5),
            read(2, 6, 7),
            read(1, 8, 9),
        ]);
        // An unknown write takes effect once.
        rejects(&[
            unknown(1, 0),
            read(1, 1, 2),
            write(2, 3, 4),
            read(2, 5, 6),
            read(1, 7, 8),
        ]);
    }

    #[test]
    fn a_value_nobody_wrote_is_rejected() {
        rejects(&[write(1, 0, 1), read(7, 2, 3)]);
        // Nor is one read before its write was called.
        rejects(&[read(1, 0, 1), write(1, 2, 3)]);
    }

    #[test]
    fn an_unknown_write_may_take_effect_late_or_never() {
        accepts(&[write(1, 0, 1), unknown(2, 2), read(1, 50, 51), read(1, 60, 61)]);
        accepts(&[write(1, 0, 1), unknown(2, 2), read(1, 50, 51), read(2, 60, 61)]);
        accepts(&[unknown(2, 0), write(1, 1, 2), read(1, 3, 4), read(2, 60, 61)]);
        rejects(&[write(1, 0, 1), unknown(2, 2), read(2, 50, 51), read(1, 60, 61)]);
    }

    #[test]
    fn many_unknown_writes_do_not_make_the_search_long() {
        let mut history = vec![write(1000, 0, 1)];
        for value in 0..40 {
            history.push(unknown(value, 2));
        }
        for value in 0..40 {
            history.push(read(39 - value, 100 + 2 * value, 101 + 2 * value));
        }
        accepts(&history);
        history.push(read(20, 500, 501));
        rejects(&history);
    }
}
