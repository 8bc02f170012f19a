//! One evaluation for all who ask the same of the same state.
//!
//! A change of a service wakes everybody who watches it, and all of them ask the same question of the same snapshot: who is
//! first evaluates, the others take the same answer, by pointer, which also lets the API encode it once.
//! In: a snapshot, its position in the log, a query. Out: what `Store::evaluate` says, shared.
//! A server that passed a question on, and a client agent, are told the answer once for each who waits: there equal ones become
//! one ([`Evaluations::told`]).
//! Promises: never an answer of another state: a server's state is a function of the log's first entries, and what was kept
//! is found by the last of them. What is kept is bounded by [`KEPT_COUNT_MAX`]; the oldest goes first.
//! Not here: whether the snapshot is fresh enough (`router`).

use crate::router::locked;
use quorate_store::{Answer, Evaluation, Query, Store};
use quorate_types::ModifyIndex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Questions that are asked by many at a time. Each keeps an answer, whose records the state has anyway, mostly.
const KEPT_COUNT_MAX: usize = 32;

/// An answer that others may have too.
#[derive(Clone, Debug)]
pub struct SharedEvaluation {
    pub index: ModifyIndex,
    pub answer: Arc<Answer>,
}

impl From<Evaluation> for SharedEvaluation {
    fn from(evaluation: Evaluation) -> Self {
        Self {
            index: evaluation.index,
            answer: Arc::new(evaluation.answer),
        }
    }
}

#[derive(Debug)]
struct Kept {
    query: Query,
    /// The last entry of the log that the state is made of.
    applied: ModifyIndex,
    evaluation: Arc<OnceLock<SharedEvaluation>>,
}

/// Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Evaluations {
    shared: Arc<Shared>,
}

/// An answer that another server gave.
#[derive(Debug)]
struct Told {
    query: Query,
    index: ModifyIndex,
    answer: Arc<Answer>,
}

#[derive(Debug, Default)]
struct Shared {
    kept: Mutex<VecDeque<Kept>>,
    told: Mutex<VecDeque<Told>>,
    made_count: AtomicU64,
}

/// One key is looked up faster than what was kept for it.
const fn is_worth_keeping(query: &Query) -> bool {
    !matches!(
        query,
        Query::KvGet { .. } | Query::Address { .. } | Query::Session { .. }
    )
}

impl Evaluations {
    /// What the store says.
    pub fn of(&self, store: &Store, query: &Query) -> SharedEvaluation {
        if !is_worth_keeping(query) {
            return store.evaluate(query).into();
        }
        let found = self.find(store.last_index(), query);
        // Whoever comes while it is made waits for it: that is shorter than making it again.
        let evaluation = found.get_or_init(|| {
            self.shared.made_count.fetch_add(1, Ordering::Relaxed);
            store.evaluate(query).into()
        });
        evaluation.clone()
    }
    fn find(&self, applied: ModifyIndex, query: &Query) -> Arc<OnceLock<SharedEvaluation>> {
        let mut kept = locked(&self.shared.kept);
        let position = kept.iter().position(|kept| kept.query == *query);
        if let Some(position) = position {
            let found = &mut kept[position];
            // A reader may come late with an older snapshot: what is newer stays for the others.
            if found.applied == applied {
                return Arc::clone(&found.evaluation);
            }
            if found.applied > applied {
                return Arc::default();
            }
            kept.remove(position);
        }
        while kept.len() >= KEPT_COUNT_MAX {
            kept.pop_front();
        }
        let evaluation = Arc::default();
        kept.push_back(Kept {
            query: query.clone(),
            applied,
            evaluation: Arc::clone(&evaluation),
        });
        evaluation
    }
    /// The same answer to the same question, if it was told before; otherwise this one, for those who are told it next.
    pub fn told(&self, query: Query, index: ModifyIndex, answer: Arc<Answer>) -> Arc<Answer> {
        if !is_worth_keeping(&query) {
            return answer;
        }
        let mut told = locked(&self.shared.told);
        if let Some(position) = told.iter().position(|told| told.query == query) {
            let found = &told[position];
            if found.index == index && (Arc::ptr_eq(&found.answer, &answer) || found.answer == answer) {
                return Arc::clone(&found.answer);
            }
            // Readers may be told of changes in any order: what is newer stays.
            if found.index > index {
                return answer;
            }
            told.remove(position);
        }
        while told.len() >= KEPT_COUNT_MAX {
            told.pop_front();
        }
        let answer_kept = Arc::clone(&answer);
        told.push_back(Told {
            query,
            index,
            answer: answer_kept,
        });
        answer
    }
    /// Evaluations that were made and kept, since the start.
    pub fn made_count(&self) -> u64 {
        self.shared.made_count.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_store::{Command, KvCommand};
    use quorate_types::{KvPair, LogIndex};

    fn store(writes: u64) -> Store {
        let mut store = Store::default();
        for index in 1..=writes {
            let pair = KvPair {
                key: "k".to_owned(),
                value: index.to_string().into_bytes(),
                ..KvPair::default()
            };
            store.apply(LogIndex(index), &Command::Kv(KvCommand::Set(pair)));
        }
        store
    }
    fn list() -> Query {
        Query::KvList { prefix: String::new() }
    }

    #[test]
    fn one_state_is_asked_once_for_all() {
        let evaluations = Evaluations::default();
        let store = store(3);
        let first = evaluations.of(&store, &list());
        let second = evaluations.of(&store.clone(), &list());
        assert!(Arc::ptr_eq(&first.answer, &second.answer));
        assert_eq!((first.index, evaluations.made_count()), (ModifyIndex(3), 1));
    }

    #[test]
    fn another_state_has_its_own_answer_whoever_asks_first() {
        let evaluations = Evaluations::default();
        for (writes, made_count) in [(1, 1), (2, 2), (1, 3), (2, 3)] {
            let store = store(writes);
            let found = evaluations.of(&store, &list());
            let own = store.evaluate(&list());
            assert_eq!((found.index, &*found.answer), (own.index, &own.answer));
            assert_eq!(evaluations.made_count(), made_count, "after {writes} writes");
        }
    }

    #[test]
    fn equal_answers_told_by_others_become_one() {
        let evaluations = Evaluations::default();
        let told = |writes: u64| {
            let found = store(writes).evaluate(&list());
            evaluations.told(list(), found.index, Arc::new(found.answer))
        };
        let first = told(2);
        assert!(Arc::ptr_eq(&first, &told(2)));
        let second = told(3);
        assert_ne!(first, second);
        assert!(Arc::ptr_eq(&second, &told(3)));
        // Late, and not kept in place of what is newer.
        assert_eq!(told(2), first);
        assert!(Arc::ptr_eq(&second, &told(3)));
        // An index may be reached by another way (a restore): equal indexes alone prove nothing.
        let other = evaluations.told(list(), ModifyIndex(3), Arc::new(Answer::KvList(Vec::new())));
        assert_eq!(*other, Answer::KvList(Vec::new()));
        for number in 0..100 {
            let prefix = number.to_string();
            evaluations.told(Query::KvList { prefix }, ModifyIndex(1), Arc::clone(&first));
        }
        assert_eq!(locked(&evaluations.shared.told).len(), KEPT_COUNT_MAX);
    }

    #[test]
    fn what_is_kept_is_bounded_and_single_keys_are_not_kept() {
        let evaluations = Evaluations::default();
        let store = store(1);
        for number in 0..100 {
            let prefix = number.to_string();
            evaluations.of(&store, &Query::KvList { prefix: prefix.clone() });
            evaluations.of(&store, &Query::KvGet { key: prefix });
        }
        assert_eq!(locked(&evaluations.shared.kept).len(), KEPT_COUNT_MAX);
        assert_eq!(evaluations.made_count(), 100);
    }
}
