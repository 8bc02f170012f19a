//! Pools under other troubles than the paper's: members that lose packets, pools of thousands, mass joins.

use crate::paper::Setting;
use crate::world::{Change, LossRatio, Totals, World};
use quorate_swim::Status;
use quorate_types::Instant;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What is wrong with the faulty members of a `lossy` run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Trouble {
    /// All that is sent to them is lost for 20 s, nothing for the next 20 s, and so on. They send as ever.
    IngressOnOff,
    /// Each packet from and to them is lost with a probability of 80 %.
    EightyPercent,
}

impl Trouble {
    pub const ALL: [Self; 2] = [Self::IngressOnOff, Self::EightyPercent];
    pub fn name(self) -> &'static str {
        match self {
            Self::IngressOnOff => "all ingress lost, 20 s on, 20 s off",
            Self::EightyPercent => "80 % loss, both ways",
        }
    }
    fn apply(self, world: &mut World, faulty: &[u32], half_period: u32) {
        for index in faulty {
            match self {
                Self::IngressOnOff => {
                    let ratio = [LossRatio::ALL, LossRatio::NONE][half_period as usize % 2];
                    world.set_ingress_loss(*index, ratio);
                }
                Self::EightyPercent => {
                    world.set_ingress_loss(*index, LossRatio::new(0.8));
                    world.set_egress_loss(*index, LossRatio::new(0.8));
                }
            }
        }
    }
}

const HALF_PERIOD: Duration = Duration::from_secs(20);
const HALF_PERIODS: u32 = 15;
const QUIET: Duration = Duration::from_secs(15);
/// By then the pool is to have made up its mind.
pub const SETTLED_AFTER: Duration = Duration::from_secs(60);

/// What 1 % of faulty members did to a pool in 300 s.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lossy {
    pub label: String,
    pub trouble: Trouble,
    pub members: u32,
    pub faulty: u32,
    /// Healthy members that any healthy member held for failed at any time.
    pub healthy_removed: usize,
    /// Events at healthy members that a healthy one failed.
    pub healthy_removals: u64,
    /// Faulty members that more than half of the healthy ones held for dead 60 s after the beginning, and at the end.
    pub faulty_removed_at_60_s: usize,
    pub faulty_removed_at_end: usize,
    /// Median time until more than half of the healthy members held a faulty one for failed, of those that came so far.
    pub removed_median_s: Option<f64>,
    /// Events at healthy members that a faulty one came back, or failed once more, after 60 s; for each faulty and healthy
    /// member.
    pub flaps_each_after_60_s: f64,
    pub messages_a_member_and_second: f64,
}

/// One faulty member in a hundred.
pub fn lossy(setting: &Setting, trouble: Trouble, members: u32, seed: u64) -> Lossy {
    let mut world = World::pool(members, &setting.config, seed);
    world.is_counting_stream_bytes = false;
    world.run_for(QUIET);
    let faulty = world.draw((members / 100).max(1));
    let is_healthy = |index: u32| faulty.binary_search(&index).is_err();
    world.observe();
    let before = world.totals();
    let begun_at = world.now();
    let removed = |world: &World| {
        let healthy = || (0..world.len()).filter(|index| is_healthy(*index));
        let half = healthy().count() / 2;
        let is_removed = |subject: &&u32| {
            let dead = |observer: &u32| world.status(*observer, **subject) == Some(Status::Dead);
            healthy().filter(dead).count() > half
        };
        faulty.iter().filter(is_removed).count()
    };
    let mut faulty_removed_at_60_s = 0;
    for half_period in 0..HALF_PERIODS {
        if HALF_PERIOD * half_period == SETTLED_AFTER {
            faulty_removed_at_60_s = removed(&world);
        }
        trouble.apply(&mut world, &faulty, half_period);
        world.run_for(HALF_PERIOD);
    }
    let mut healthy_failed: BTreeMap<u32, u64> = BTreeMap::new();
    let mut first_at: BTreeMap<u32, Vec<Instant>> = BTreeMap::new();
    let mut flaps = 0_u64;
    let mut known: BTreeSet<(u32, u32)> = BTreeSet::new();
    for seen in world.observations().iter().filter(|seen| is_healthy(seen.observer)) {
        if is_healthy(seen.subject) {
            if seen.change == Change::Failed {
                *healthy_failed.entry(seen.subject).or_default() += 1;
            }
            continue;
        }
        let is_first = seen.change == Change::Failed && known.insert((seen.observer, seen.subject));
        if is_first {
            first_at.entry(seen.subject).or_default().push(seen.at);
        } else {
            flaps += u64::from(seen.at - begun_at > SETTLED_AFTER);
        }
    }
    let healthy_count = members as usize - faulty.len();
    let mut majorities: Vec<Duration> = first_at
        .values()
        .filter_map(|times| times.get(healthy_count / 2).map(|at| *at - begun_at))
        .collect();
    majorities.sort_unstable();
    let totals = world.totals().since(&before);
    let seconds = (HALF_PERIOD * HALF_PERIODS).as_secs_f64();
    Lossy {
        label: setting.label.clone(),
        trouble,
        members,
        faulty: faulty.len() as u32,
        healthy_removed: healthy_failed.len(),
        healthy_removals: healthy_failed.values().sum(),
        faulty_removed_at_60_s,
        faulty_removed_at_end: removed(&world),
        removed_median_s: majorities.get(majorities.len() / 2).map(Duration::as_secs_f64),
        flaps_each_after_60_s: flaps as f64 / (faulty.len() * healthy_count) as f64,
        messages_a_member_and_second: totals.messages() as f64 / f64::from(members) / seconds,
    }
}

/// A quiet pool, ready to be timed: whoever measures runs it on and counts seconds of its own.
pub fn steady(setting: &Setting, members: u32, seed: u64) -> World {
    let mut world = World::pool(members, &setting.config, seed);
    world.is_counting_stream_bytes = false;
    world
}

/// How long it took until each list held everybody.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Joined {
    pub members: u32,
    /// Absent when it took longer than the limit.
    pub all_complete_s: Option<f64>,
    /// When half of the members were complete, and 99 %.
    pub half_complete_s: Option<f64>,
    pub p99_complete_s: Option<f64>,
    /// At the end.
    pub complete: usize,
    pub messages_a_member: f64,
    #[serde(skip)]
    pub totals: Totals,
}

/// `members` strangers that all join through the first, in the first second.
pub fn join(setting: &Setting, members: u32, limit: Duration, seed: u64) -> Joined {
    let mut world = World::strangers(members, &setting.config, seed);
    world.is_counting_stream_bytes = false;
    let spread = Duration::from_secs(1) / members.max(1);
    for index in 1..members {
        world.run_for(spread);
        world.join(index, 0);
    }
    let count = members as usize;
    let mut reached: [(usize, Option<Instant>); 3] = [
        (count.div_ceil(2), None),
        ((count * 99).div_ceil(100), None),
        (count, None),
    ];
    let end_at = Instant::ZERO + limit;
    while reached[2].1.is_none() && world.step(end_at) {
        for (wanted, at) in &mut reached {
            if at.is_none() && world.complete_count() >= *wanted {
                *at = Some(world.now());
            }
        }
    }
    let seconds = |at: Option<Instant>| at.map(|at| (at - Instant::ZERO).as_secs_f64());
    Joined {
        members,
        all_complete_s: seconds(reached[2].1),
        half_complete_s: seconds(reached[0].1),
        p99_complete_s: seconds(reached[1].1),
        complete: world.complete_count(),
        messages_a_member: world.totals().messages() as f64 / f64::from(members.max(1)),
        totals: world.totals(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paper::{DEFAULT, Parts};

    #[test]
    fn a_small_pool_joins_and_says_when() {
        let setting = Setting::new(Parts::Quorate, DEFAULT);
        let joined = join(&setting, 20, Duration::from_secs(120), 1);
        assert_eq!(joined.complete, 20);
        let [half, all] = [joined.half_complete_s, joined.all_complete_s].map(Option::unwrap);
        assert!(half <= all, "{joined:?}");
        assert_eq!(joined, join(&setting, 20, Duration::from_secs(120), 1));
    }

    #[test]
    fn a_deaf_member_is_found_in_a_lossy_pool() {
        let setting = Setting::new(Parts::Quorate, DEFAULT);
        let outcome = lossy(&setting, Trouble::EightyPercent, 30, 1);
        assert_eq!(outcome.faulty, 1);
        assert!(outcome.removed_median_s.is_some(), "{outcome:?}");
    }
}
