//! Thresholds: how many results of one kind in a row it takes to change a check's status.
//!
//! In: results. Out: the status to show with that result's output, or nothing when the result is held back.
//! The counters start full, so that the first result counts at once (Consul 1.8.7). A warning counts as a success.
//! Between `failures_before_warning` and `failures_before_critical` failures the status is `warning`.

use quorate_types::CheckStatus;

/// The counters of one check.
#[derive(Clone, Debug)]
pub struct Threshold {
    success_before_passing: u32,
    failures_before_warning: u32,
    failures_before_critical: u32,
    success_count: u32,
    failure_count: u32,
    shown: CheckStatus,
}

impl Threshold {
    /// 0 and 1 mean at once; a zero `failures_before_warning` is `failures_before_critical`.
    pub fn new(
        shown: CheckStatus,
        success_before_passing: u32,
        failures_before_warning: u32,
        failures_before_critical: u32,
    ) -> Self {
        Self {
            success_before_passing,
            failures_before_warning: match failures_before_warning {
                0 => failures_before_critical,
                count => count,
            },
            failures_before_critical,
            success_count: success_before_passing,
            failure_count: failures_before_critical,
            shown,
        }
    }

    /// Takes a result: the status to show now, or `None` when status and output stay as they were.
    pub fn take(&mut self, result: CheckStatus) -> Option<CheckStatus> {
        let status = match result {
            CheckStatus::Passing | CheckStatus::Warning => {
                self.success_count = self.success_count.saturating_add(1);
                self.failure_count = 0;
                (self.success_count >= self.success_before_passing).then_some(result)
            }
            CheckStatus::Critical => {
                self.failure_count = self.failure_count.saturating_add(1);
                self.success_count = 0;
                if self.failure_count >= self.failures_before_critical || self.shown == CheckStatus::Critical {
                    Some(CheckStatus::Critical)
                } else {
                    (self.failure_count >= self.failures_before_warning).then_some(CheckStatus::Warning)
                }
            }
        };
        // What is shown already needs no threshold to be shown with a newer output.
        let status = status.or((result == self.shown).then_some(result));
        if let Some(status) = status {
            self.shown = status;
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CheckStatus::{Critical, Passing, Warning};
    use proptest::prelude::*;

    #[track_caller]
    fn check(mut threshold: Threshold, steps: &[(CheckStatus, Option<CheckStatus>)]) {
        for (step, (result, want)) in steps.iter().enumerate() {
            assert_eq!(threshold.take(*result), *want, "step {step}");
        }
    }

    #[test]
    fn without_thresholds_every_result_counts() {
        for count in [0, 1] {
            let steps = [Passing, Critical, Warning, Critical].map(|result| (result, Some(result)));
            check(Threshold::new(Critical, count, count, count), &steps);
        }
    }

    #[test]
    fn the_first_result_counts_at_once_and_later_flips_take_three_in_a_row() {
        let steps = [
            (Passing, Some(Passing)),
            (Critical, None),
            (Critical, None),
            (Passing, Some(Passing)),
            (Critical, None),
            (Critical, None),
            (Critical, Some(Critical)),
            (Passing, None),
            (Critical, Some(Critical)),
            (Passing, None),
            (Passing, None),
            (Passing, Some(Passing)),
        ];
        check(Threshold::new(Critical, 3, 0, 3), &steps);
        check(
            Threshold::new(Passing, 3, 0, 3),
            &[(Critical, Some(Critical)), (Passing, None)],
        );
    }

    #[test]
    fn failures_show_a_warning_before_they_are_critical() {
        let steps = [
            (Passing, Some(Passing)),
            (Critical, None),
            (Critical, Some(Warning)),
            (Critical, Some(Warning)),
            (Critical, Some(Critical)),
            (Passing, Some(Passing)),
        ];
        check(Threshold::new(Critical, 0, 2, 4), &steps);
    }

    proptest! {
        #[test]
        fn enough_equal_results_are_always_shown(
            counts in (0u32..5, 0u32..5, 0u32..5),
            results in proptest::collection::vec(0usize..3, 0..30),
            last in 0usize..3,
        ) {
            let all = [Passing, Warning, Critical];
            let mut threshold = Threshold::new(Critical, counts.0, counts.1, counts.2);
            for result in results {
                threshold.take(all[result]);
            }
            let mut shown = None;
            for _ in 0..5 {
                shown = threshold.take(all[last]);
            }
            prop_assert_eq!(shown, Some(all[last]));
        }
    }
}
