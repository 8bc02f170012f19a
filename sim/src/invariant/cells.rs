//! Whether a history of conditional writes and whole reads of a few cells has a linearization.
//!
//! The cells are one object: a transaction touches several of them at once, so they cannot be judged one by one. An operation
//! expects values (its conditions, and what it read) and writes others. Done, all it expected was there at one moment between
//! its call and its return, and all it wrote was there from then on. Refused, something it expected was not there, and it
//! wrote nothing. Unknown, it may have been done at any time after its call, or never.
//! Every value is written by one operation only, and every operation that writes expects a value of a cell it writes: at most
//! a few can be next, which keeps Wing and Gong's search small though many outcomes are unknown.
//! Ready-made checkers (`todc-utils`, stateright's) know no outcome that stays unknown beside later calls of its client.

use super::register::{Placed, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

pub type Cell = usize;

/// What an operation came to, as its client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    Done,
    Refused,
    Unknown,
}

/// One call. Times are nanoseconds of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    pub called_at: u64,
    /// Of no meaning when it is unknown what it came to.
    pub returned_at: u64,
    pub came: Came,
    /// What it needs or read; `None`: nothing is there.
    pub expects: Vec<(Cell, Option<Value>)>,
    pub writes: Vec<(Cell, Value)>,
}

impl Operation {
    fn returns_at(&self) -> u64 {
        match self.came {
            Came::Unknown => u64::MAX,
            Came::Done | Came::Refused => self.returned_at,
        }
    }
    fn is_met(&self, cells: &Cells) -> bool {
        let held = |cell: &Cell| cells.get(cell).copied();
        self.expects.iter().all(|(cell, value)| held(cell) == *value)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, called {:.6}", self.came, self.called_at as f64 / 1e9)?;
        if self.came != Came::Unknown {
            write!(f, ", returned {:.6}", self.returned_at as f64 / 1e9)?;
        }
        write!(f, ": expects {:?}, writes {:?}", self.expects, self.writes)
    }
}

type Cells = BTreeMap<Cell, Value>;

/// How far it could be followed.
#[derive(Clone, Debug)]
pub struct NotLinearizable {
    placed_count: usize,
    cells: Cells,
    stuck: Vec<Operation>,
}

impl fmt::Display for NotLinearizable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "after {} operations the cells hold {:?} and none of these can be next:",
            self.placed_count, self.cells
        )?;
        for operation in &self.stuck {
            write!(f, "\n    {operation}")?;
        }
        Ok(())
    }
}

const STUCK_SHOWN_MAX: usize = 6;

struct Search {
    /// By time of call.
    operations: Vec<Operation>,
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
                returned_first = returned_first.min(operation.returns_at());
                found.push(position);
            }
        }
        found
    }
    /// Places all that change nothing and are right now: there is no reason to put them off.
    fn place_idle(&self, placed: &mut Placed, cells: &Cells) -> Vec<usize> {
        loop {
            let candidates = self.candidates(placed);
            let is_idle = |position: &&usize| {
                let operation = &self.operations[**position];
                match operation.came {
                    Came::Done => operation.writes.is_empty() && operation.is_met(cells),
                    Came::Refused => !operation.is_met(cells),
                    Came::Unknown => false,
                }
            };
            let Some(&position) = candidates.iter().find(is_idle) else {
                return candidates;
            };
            placed.add(position);
        }
    }

    fn run(&self) -> Result<(), NotLinearizable> {
        let mut tried = BTreeSet::new();
        let mut open = vec![(Placed::nothing(self.operations.len()), Cells::new())];
        let mut best: Option<NotLinearizable> = None;
        while let Some((mut placed, cells)) = open.pop() {
            let candidates = self.place_idle(&mut placed, &cells);
            let mut known = self.operations.iter().enumerate();
            if !known.any(|(position, operation)| operation.came != Came::Unknown && !placed.has(position)) {
                return Ok(());
            }
            if !tried.insert((placed.clone(), cells.clone())) {
                continue;
            }
            if best.as_ref().is_none_or(|best| placed.count() > best.placed_count) {
                let stuck = candidates.iter().map(|&position| self.operations[position].clone());
                let mut stuck: Vec<Operation> = stuck.collect();
                stuck.sort_by_key(Operation::returns_at);
                stuck.truncate(STUCK_SHOWN_MAX);
                best = Some(NotLinearizable {
                    placed_count: placed.count(),
                    cells: cells.clone(),
                    stuck,
                });
            }
            let mut next: Vec<usize> = candidates
                .into_iter()
                .filter(|&position| {
                    let operation = &self.operations[position];
                    operation.came != Came::Refused && !operation.writes.is_empty() && operation.is_met(&cells)
                })
                .collect();
            // The one that returned first is taken from the stack first: it is the likeliest.
            next.sort_by_key(|&position| std::cmp::Reverse((self.operations[position].returns_at(), position)));
            for position in next {
                let (mut placed, mut cells) = (placed.clone(), cells.clone());
                placed.add(position);
                cells.extend(self.operations[position].writes.iter().copied());
                open.push((placed, cells));
            }
        }
        Err(best.expect("the empty beginning was tried"))
    }
}

/// Judges the history of cells that hold nothing at first.
pub fn check(history: &[Operation]) -> Result<(), NotLinearizable> {
    let mut writers: BTreeMap<Value, usize> = BTreeMap::new();
    for (position, operation) in history.iter().enumerate() {
        for (_, value) in &operation.writes {
            let writer = *writers.entry(*value).or_insert(position);
            assert_eq!(writer, position, "a value is written by one operation");
        }
        let is_guarded = |(cell, _): &(Cell, Value)| operation.expects.iter().any(|(expected, _)| expected == cell);
        assert!(
            operation.writes.is_empty() || operation.writes.iter().any(is_guarded),
            "what writes expects something of what it writes"
        );
    }
    // An unknown read says nothing.
    let counts = |operation: &&Operation| operation.came != Came::Unknown || !operation.writes.is_empty();
    let mut operations: Vec<Operation> = history.iter().filter(counts).cloned().collect();
    operations.sort_by_key(|operation| (operation.called_at, operation.returns_at()));
    Search { operations }.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(
        (called_at, returned_at): (u64, u64),
        came: Came,
        expects: &[(Cell, Option<Value>)],
        writes: &[(Cell, Value)],
    ) -> Operation {
        Operation {
            called_at,
            returned_at,
            came,
            expects: expects.to_vec(),
            writes: writes.to_vec(),
        }
    }
    /// A compare-and-set of cell 0.
    fn cas(times: (u64, u64), came: Came, from: impl Into<Option<Value>>, to: Value) -> Operation {
        operation(times, came, &[(0, from.into())], &[(0, to)])
    }
    /// Both cells at once, when cell 0 is as expected.
    fn both(times: (u64, u64), came: Came, from: impl Into<Option<Value>>, to: Value) -> Operation {
        operation(times, came, &[(0, from.into())], &[(0, to), (1, to)])
    }
    fn read(times: (u64, u64), first: impl Into<Option<Value>>, second: impl Into<Option<Value>>) -> Operation {
        operation(times, Came::Done, &[(0, first.into()), (1, second.into())], &[])
    }
    use Came::{Done, Refused, Unknown};

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
        accepts(&[
            read((0, 1), None, None),
            both((2, 3), Done, None, 1),
            read((4, 5), 1, 1),
        ]);
        // Of two at once one wins; either may be first.
        accepts(&[cas((0, 9), Done, None, 1), cas((0, 9), Refused, None, 2)]);
        accepts(&[
            cas((0, 9), Refused, None, 2),
            cas((3, 9), Done, None, 1),
            cas((10, 11), Done, 1, 3),
        ]);
        // A read beside a transaction sees it or not.
        accepts(&[
            both((0, 9), Done, None, 1),
            read((1, 2), None, None),
            read((3, 4), 1, 1),
        ]);
    }

    #[test]
    fn two_that_win_from_one_value_are_rejected() {
        rejects(&[cas((0, 1), Done, None, 1), cas((0, 1), Done, None, 2)]);
        rejects(&[
            cas((0, 1), Done, None, 1),
            cas((2, 9), Done, 1, 2),
            cas((2, 9), Done, 1, 3),
        ]);
    }

    #[test]
    fn one_that_is_refused_though_nothing_changed_is_rejected() {
        rejects(&[cas((0, 1), Done, None, 1), cas((2, 3), Refused, 1, 2)]);
        accepts(&[
            cas((0, 1), Done, None, 1),
            cas((2, 3), Unknown, 1, 7),
            cas((4, 5), Refused, 1, 2),
        ]);
    }

    #[test]
    fn a_transaction_that_shows_in_parts_is_rejected() {
        rejects(&[both((0, 9), Done, None, 1), read((1, 2), 1, None)]);
        rejects(&[
            both((0, 1), Done, None, 1),
            both((2, 9), Done, 1, 2),
            read((3, 4), 1, 2),
        ]);
        rejects(&[both((0, 9), Unknown, None, 1), read((10, 11), None, 1)]);
    }

    #[test]
    fn what_was_rolled_back_is_never_seen() {
        rejects(&[
            cas((0, 1), Done, None, 1),
            both((2, 3), Refused, None, 2),
            read((4, 5), 2, 2),
        ]);
    }

    #[test]
    fn an_old_read_and_a_lost_write_are_rejected() {
        rejects(&[
            both((0, 1), Done, None, 1),
            both((2, 3), Done, 1, 2),
            read((4, 5), 1, 1),
        ]);
        rejects(&[both((0, 1), Done, None, 1), read((2, 3), None, None)]);
        // Once it was seen, nobody sees what was before.
        rejects(&[
            both((0, 9), Unknown, None, 1),
            read((1, 2), 1, 1),
            read((3, 4), None, None),
        ]);
    }

    #[test]
    fn what_is_unknown_is_done_once_late_or_never() {
        let unknown = both((0, 0), Unknown, None, 1);
        accepts(&[unknown.clone(), read((50, 51), None, None)]);
        accepts(&[unknown.clone(), read((50, 51), None, None), read((60, 61), 1, 1)]);
        // Its condition holds no more.
        rejects(&[unknown.clone(), cas((1, 2), Done, None, 2), read((50, 51), 1, 1)]);
        rejects(&[unknown, read((1, 2), 1, 1), cas((3, 4), Done, 1, 2), read((5, 6), 1, 1)]);
    }

    #[test]
    fn many_unknown_ones_do_not_make_the_search_long() {
        let mut history = Vec::new();
        let mut last = None;
        for turn in 0..200 {
            let at = 10 * turn;
            for loser in 0..3 {
                history.push(cas((at, 0), Unknown, last, 1000 + 4 * turn + loser));
            }
            let value = 1000 + 4 * turn + 3;
            history.push(cas((at, at + 1), Done, last, value));
            last = Some(value);
        }
        accepts(&history);
        history.push(cas((5000, 5001), Done, 1003, 1));
        rejects(&history);
    }
}
