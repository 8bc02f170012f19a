//! A lock has one holder at a time, its fencing numbers grow, and it rests after a holder that was lost.
//!
//! In: for each lock the acquisitions that were acknowledged, with what each holder then did. Who holds cannot be asked of
//! everybody at one moment, but a holder knows until when nobody else can have the lock: until it asked for its release; or,
//! when its session ended, for the lock-delay after the earliest moment at which it can have ended.
//! What was not acknowledged is no acquisition: nobody acts on it.

/// How much faster than the world's the clock of whoever times sessions and lock-delays may run.
const CLOCK_RATIO_MIN: f64 = 0.95;

/// One acknowledged acquisition. Times are nanoseconds of the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    pub holder: String,
    pub called_at: u64,
    pub returned_at: u64,
    /// The fencing number: `ModifyIndex` of the acquisition.
    pub index: u64,
    pub lock_index: u64,
    /// What can have ended it, as far as its holder can tell. None: nothing did.
    pub ends: Vec<End>,
}

/// How a tenure can have ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It asked for the release then.
    Released { called_at: u64 },
    /// Its session can have ended `after` so long `from` then, and the lock rests for `delay` more.
    Lost { from: u64, after: u64, delay: u64 },
}

impl Tenure {
    /// From then on somebody else may have it. `None`: never.
    fn is_free_at(&self) -> Option<u64> {
        let ends = self.ends.iter().map(|end| match end {
            End::Released { called_at } => *called_at,
            End::Lost { from, after, delay } => from + ((after + delay) as f64 * CLOCK_RATIO_MIN) as u64,
        });
        ends.min()
    }
}

/// Judges the tenures of one lock.
pub fn check(tenures: &[Tenure]) -> Result<(), String> {
    let mut in_order: Vec<&Tenure> = tenures.iter().collect();
    in_order.sort_by_key(|tenure| tenure.index);
    let seconds = |nanos: u64| nanos as f64 / 1e9;
    for pair in in_order.windows(2) {
        let (first, second) = (pair[0], pair[1]);
        let both = format!(
            "{} at index {} and {} at index {}",
            first.holder, first.index, second.holder, second.index
        );
        if first.index == second.index {
            return Err(format!("one entry of the log gave the lock to two: {both}"));
        }
        if first.called_at > second.returned_at {
            return Err(format!(
                "the fencing number went back: {both}, though the latter came first"
            ));
        }
        if first.lock_index >= second.lock_index {
            return Err(format!(
                "LockIndex is {} and then {}: {both}",
                first.lock_index, second.lock_index
            ));
        }
        match first.is_free_at() {
            Some(at) if second.returned_at >= at => {}
            Some(at) => {
                return Err(format!(
                    "{both}: acquired by {:.3} s, and not free before {:.3} s",
                    seconds(second.returned_at),
                    seconds(at)
                ));
            }
            None => return Err(format!("{both}: the first holds it still")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn tenure(holder: &str, at: u64, index: u64, end: impl IntoIterator<Item = End>) -> Tenure {
        Tenure {
            holder: holder.to_owned(),
            called_at: at * SECOND,
            returned_at: at * SECOND + SECOND / 10,
            index,
            lock_index: index / 10,
            ends: end.into_iter().collect(),
        }
    }
    fn released(at: u64) -> Option<End> {
        Some(End::Released { called_at: at * SECOND })
    }
    fn lost(from: u64, after: u64, delay: u64) -> Option<End> {
        Some(End::Lost {
            from: from * SECOND,
            after: after * SECOND,
            delay: delay * SECOND,
        })
    }

    #[test]
    fn one_after_the_other_is_accepted() {
        assert_eq!(check(&[]), Ok(()));
        let tenures = [
            tenure("c", 40, 30, None),
            tenure("a", 1, 10, released(5)),
            tenure("b", 6, 20, lost(10, 20, 10)),
        ];
        assert_eq!(check(&tenures), Ok(()));
    }

    #[test]
    fn two_at_a_time_are_rejected() {
        assert!(check(&[tenure("a", 1, 10, None), tenure("b", 6, 20, None)]).is_err());
        assert!(check(&[tenure("a", 1, 10, released(8)), tenure("b", 6, 20, None)]).is_err());
        assert!(check(&[tenure("a", 1, 10, released(2)), tenure("b", 3, 10, None)]).is_err());
    }

    #[test]
    fn a_lock_that_does_not_rest_is_rejected() {
        // Destroyed at 10 s, and the delay is 15 s; the clocks may be off a little.
        assert!(check(&[tenure("a", 1, 10, lost(10, 0, 15)), tenure("b", 12, 20, None)]).is_err());
        assert_eq!(
            check(&[tenure("a", 1, 10, lost(10, 0, 15)), tenure("b", 25, 20, None)]),
            Ok(())
        );
        // Renewed last at 10 s: it lasts for 20 s more.
        assert!(check(&[tenure("a", 1, 10, lost(10, 20, 0)), tenure("b", 28, 20, None)]).is_err());
    }

    #[test]
    fn fencing_numbers_that_go_back_are_rejected() {
        assert!(check(&[tenure("a", 10, 10, released(11)), tenure("b", 1, 20, None)]).is_err());
        let mut same = [tenure("a", 1, 10, released(2)), tenure("b", 3, 20, None)];
        same[1].lock_index = same[0].lock_index;
        assert!(check(&same).is_err());
    }
}
