//! The clock of one machine: virtual time seen with an offset and a drift.
//!
//! `local` time drives everything the machine's programs call now, sleep and wall time; `virtual` time is the world's own.
//! Invariant: local time never goes back, whatever is done to the drift; only a sabotage sets it back.

const MILLION: i128 = 1_000_000;

/// Local time begins here and not at zero, so that instants before the start can be named.
const LOCAL_NANOS_AT_START: u64 = 365 * 24 * 3600 * 1_000_000_000;

/// 2026-01-01 00:00:00 UTC, the wall time at which every world begins.
pub const WALL_NANOS_AT_START: u64 = 1_767_225_600 * 1_000_000_000;

#[derive(Clone, Debug)]
pub struct NodeClock {
    anchor_virtual: u64,
    anchor_local: u64,
    drift_ppm: i32,
    wall_offset_nanos: i64,
}

impl Default for NodeClock {
    fn default() -> Self {
        Self {
            anchor_virtual: 0,
            anchor_local: LOCAL_NANOS_AT_START,
            drift_ppm: 0,
            wall_offset_nanos: 0,
        }
    }
}

impl NodeClock {
    pub fn local(&self, virtual_nanos: u64) -> u64 {
        let passed = i128::from(virtual_nanos.saturating_sub(self.anchor_virtual));
        let passed = passed * (MILLION + i128::from(self.drift_ppm)) / MILLION;
        self.anchor_local
            .saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }
    /// The first virtual time at which the local clock shows `local_nanos`, under the present drift.
    pub fn virtual_of(&self, local_nanos: u64) -> u64 {
        let ahead = i128::from(local_nanos.saturating_sub(self.anchor_local)) * MILLION;
        let rate = MILLION + i128::from(self.drift_ppm);
        let ahead = (ahead + rate - 1) / rate;
        self.anchor_virtual
            .saturating_add(u64::try_from(ahead).unwrap_or(u64::MAX))
    }
    pub fn wall(&self, virtual_nanos: u64) -> u64 {
        let since_start = self.local(virtual_nanos) - LOCAL_NANOS_AT_START;
        WALL_NANOS_AT_START
            .saturating_add(since_start)
            .saturating_add_signed(self.wall_offset_nanos)
    }
    /// Runs this many millionths faster (slower when negative) from now on. A sleep under way keeps the virtual time it
    /// was given and sleeps on if that turns out too early.
    pub fn set_drift_ppm(&mut self, virtual_nanos: u64, drift_ppm: i32) {
        assert!(
            drift_ppm.abs() < 1_000_000,
            "a clock neither stops nor runs at twice its speed"
        );
        self.anchor_local = self.local(virtual_nanos);
        self.anchor_virtual = virtual_nanos;
        self.drift_ppm = drift_ppm;
    }
    /// Sets the local clock back, as no machine's does: what a program sees whose timers run by the wall clock.
    pub fn set_back(&mut self, virtual_nanos: u64, nanos: u64) {
        self.anchor_local = self
            .local(virtual_nanos)
            .saturating_sub(nanos)
            .max(LOCAL_NANOS_AT_START);
        self.anchor_virtual = virtual_nanos;
    }
    pub fn drift_ppm(&self) -> i32 {
        self.drift_ppm
    }
    pub fn set_wall_offset_nanos(&mut self, wall_offset_nanos: i64) {
        self.wall_offset_nanos = wall_offset_nanos;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_time_drifts_and_never_goes_back() {
        let mut clock = NodeClock::default();
        let at_start = clock.local(0);
        clock.set_drift_ppm(1_000_000, 50_000);
        assert_eq!(clock.local(1_000_000), at_start + 1_000_000);
        assert_eq!(clock.local(2_000_000), at_start + 2_050_000);
        clock.set_drift_ppm(2_000_000, -50_000);
        assert_eq!(clock.local(3_000_000), at_start + 3_000_000);
    }

    #[test]
    fn a_local_instant_is_reached_at_its_virtual_one_and_not_before() {
        let mut clock = NodeClock::default();
        for drift_ppm in [-50_000, -7, 0, 3, 50_000] {
            clock.set_drift_ppm(10, drift_ppm);
            for ahead in [0, 1, 999, 1_000_003] {
                let wanted = clock.local(10) + ahead;
                let at = clock.virtual_of(wanted);
                assert!(clock.local(at) >= wanted);
                assert!(at == 10 || clock.local(at - 1) < wanted);
            }
        }
    }
}
