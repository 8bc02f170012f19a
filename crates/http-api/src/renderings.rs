//! One encoding for all who are given the same answer in the same form.
//!
//! In: an answer that several readers hold, by pointer, and what else the body depends on. Out: the body, encoded once.
//! Promises: never the body of another answer: what is kept holds its answer, so that no other can have its address. Bounded by
//! [`KEPT_COUNT_MAX`] bodies of at most [`BODY_LEN_BYTES_MAX`]; the oldest goes first, and what is larger is encoded each time.
//! Not here: bodies that depend on more than the answer and the request (`near` asks for coordinates).

use bytes::Bytes;
use quorate_store::Answer;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// As many questions are asked by many at a time.
const KEPT_COUNT_MAX: usize = 32;
/// So that all that is kept is at most 8 MiB.
const BODY_LEN_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug)]
struct Kept {
    answer: Arc<Answer>,
    form: String,
    body: Arc<OnceLock<Bytes>>,
}

/// The bodies that were encoded last.
#[derive(Debug, Default)]
pub struct Renderings {
    kept: Mutex<VecDeque<Kept>>,
    encoded_count: AtomicU64,
    shared_count: AtomicU64,
}

impl Renderings {
    /// The body of `answer` in `form`, which names all that `encode` depends on but the answer.
    pub fn once(&self, answer: &Arc<Answer>, form: String, encode: impl FnOnce() -> Bytes) -> Bytes {
        let found = self.find(answer, form);
        let mut is_mine = false;
        // Whoever comes while it is encoded waits for it: that is shorter than encoding it again.
        let body = found.get_or_init(|| {
            is_mine = true;
            encode()
        });
        let count = if is_mine {
            &self.encoded_count
        } else {
            &self.shared_count
        };
        count.fetch_add(1, Ordering::Relaxed);
        if is_mine && body.len() > BODY_LEN_BYTES_MAX {
            self.forget(&found);
        }
        body.clone()
    }
    fn find(&self, answer: &Arc<Answer>, form: String) -> Arc<OnceLock<Bytes>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |kept: &Kept| Arc::ptr_eq(&kept.answer, answer) && kept.form == form;
        if let Some(found) = kept.iter().find(|kept| is_it(kept)) {
            return Arc::clone(&found.body);
        }
        while kept.len() >= KEPT_COUNT_MAX {
            kept.pop_front();
        }
        let body = Arc::default();
        kept.push_back(Kept {
            answer: Arc::clone(answer),
            form,
            body: Arc::clone(&body),
        });
        body
    }
    fn forget(&self, body: &Arc<OnceLock<Bytes>>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| !Arc::ptr_eq(&kept.body, body));
    }
    /// Bodies that were encoded, and those given again, since the start.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.encoded_count.load(Ordering::Relaxed),
            self.shared_count.load(Ordering::Relaxed),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Arc<Answer> {
        Arc::new(Answer::KvKeys(Vec::new()))
    }

    #[test]
    fn one_answer_in_one_form_is_encoded_once() {
        let renderings = Renderings::default();
        let first = answer();
        let body = |answer: &Arc<Answer>, form: &str, text: &'static str| {
            renderings.once(answer, form.to_owned(), || Bytes::from_static(text.as_bytes()))
        };
        assert_eq!(body(&first, "a", "1"), "1");
        assert_eq!(body(&first, "a", "2"), "1");
        assert_eq!(body(&first, "b", "3"), "3");
        // An equal answer of another evaluation is another answer.
        assert_eq!(body(&answer(), "a", "4"), "4");
        assert_eq!(renderings.counts(), (3, 1));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let renderings = Renderings::default();
        for _ in 0..100 {
            renderings.once(&answer(), String::new(), Bytes::new);
        }
        assert_eq!(renderings.kept.lock().unwrap().len(), KEPT_COUNT_MAX);
        let large = answer();
        let body = || Bytes::from(vec![0; BODY_LEN_BYTES_MAX + 1]);
        renderings.once(&large, String::new(), body);
        assert!(
            !renderings
                .kept
                .lock()
                .unwrap()
                .iter()
                .any(|kept| Arc::ptr_eq(&kept.answer, &large))
        );
    }
}
