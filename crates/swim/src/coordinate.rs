//! Where this member is in the network: Vivaldi (Dabek, Cox, Kaashoek and Morris 2004) with Serf's additions.
//!
//! Each measured round trip to a peer of known coordinate pulls our coordinate a little nearer to that peer, or pushes
//! it away, the more so the surer the peer is of itself. Serf adds a height, an adjustment that makes up for what the
//! space cannot express (Lee, Jamieson, Ledlie et al. 2009), a median of the last round trips of each peer against
//! outliers, and gravity towards the origin against drift.
//!
//! In: `observe`, a peer's coordinate and a round trip. Out: our coordinate, and what peers last said of themselves.
//! Promises: our coordinate is always finite; nonsense is refused and counted; peers are forgotten with their members.
//! Not here: who is pinged (`machine`), what coordinates are for (`http-api` sorts by them).

use quorate_types::coordinate::{COORDINATE_DIMENSION_COUNT, COORDINATE_ERROR_MAX, COORDINATE_HEIGHT_MIN};
use quorate_types::{Coordinate, NodeId};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;
use std::collections::BTreeMap;
use std::time::Duration;
use thiserror::Error;

// Serf's `coordinate.DefaultConfig`.
/// How much one observation changes our error at most (Vivaldi's c_e), and our place (c_c).
const ERROR_GAIN: f64 = 0.25;
const FORCE_GAIN: f64 = 0.25;
/// Observations that the adjustment is averaged over.
const ADJUSTMENT_SAMPLE_COUNT: usize = 20;
/// Round trips of one peer that the median is taken of.
const LATENCY_SAMPLE_COUNT: usize = 3;
/// At this distance from the origin, in seconds, gravity pulls by one second.
const GRAVITY_RHO: f64 = 150.0;
/// Below it things are the same place, or no time.
const ZERO_THRESHOLD: f64 = 1.0e-6;
/// A longer round trip says more about the peer's health than about its place.
const RTT_MAX: Duration = Duration::from_secs(10);

/// Why an observation is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Implausible {
    #[error("coordinate is not finite or out of range")]
    Coordinate,
    #[error("round trip time not in valid range, duration {0:?} is not a positive value less than {RTT_MAX:?}")]
    RoundTrip(Duration),
}

type Vector = [f64; COORDINATE_DIMENSION_COUNT];

/// The last round trips to one peer, oldest first.
#[derive(Clone, Copy, Debug, Default)]
struct Latencies {
    samples: [f64; LATENCY_SAMPLE_COUNT],
    count: usize,
}

impl Latencies {
    fn push(&mut self, rtt_secs: f64) {
        if self.count == LATENCY_SAMPLE_COUNT {
            self.samples.rotate_left(1);
            self.count -= 1;
        }
        self.samples[self.count] = rtt_secs;
        self.count += 1;
    }
    /// The upper one of the two in the middle, as Serf takes it.
    fn median(&self) -> f64 {
        let mut sorted = self.samples;
        let sorted = &mut sorted[..self.count];
        sorted.sort_by(f64::total_cmp);
        sorted[self.count / 2]
    }
}

#[derive(Clone, Debug)]
struct Peer {
    coordinate: Coordinate,
    latencies: Latencies,
}

/// Our coordinate and how we come to it.
#[derive(Clone, Debug)]
pub struct Coordinates {
    own: Coordinate,
    peers: BTreeMap<NodeId, Peer>,
    adjustments: [f64; ADJUSTMENT_SAMPLE_COUNT],
    adjustment_next: usize,
    reset_count: u64,
    refused_count: u64,
    /// For a direction when two are at the same place.
    rng: ChaCha8Rng,
}

impl Coordinates {
    /// At the origin.
    pub fn new(rng: ChaCha8Rng) -> Self {
        Self {
            own: Coordinate::default(),
            peers: BTreeMap::new(),
            adjustments: [0.0; ADJUSTMENT_SAMPLE_COUNT],
            adjustment_next: 0,
            reset_count: 0,
            refused_count: 0,
            rng,
        }
    }
    pub fn own(&self) -> Coordinate {
        self.own
    }
    /// What a peer last said of itself.
    pub fn peer(&self, id: NodeId) -> Option<Coordinate> {
        self.peers.get(&id).map(|peer| peer.coordinate)
    }
    /// Times that our coordinate became nonsense and began anew.
    pub fn reset_count(&self) -> u64 {
        self.reset_count
    }
    /// Observations refused.
    pub fn refused_count(&self) -> u64 {
        self.refused_count
    }
    pub(crate) fn forget(&mut self, id: NodeId) {
        self.peers.remove(&id);
    }

    /// Moves by one measured round trip to a peer that says to be at `coordinate`.
    pub fn observe(&mut self, id: NodeId, coordinate: Coordinate, rtt: Duration) -> Result<(), Implausible> {
        if !coordinate.is_plausible() {
            self.refused_count += 1;
            return Err(Implausible::Coordinate);
        }
        if rtt > RTT_MAX {
            self.refused_count += 1;
            return Err(Implausible::RoundTrip(rtt));
        }
        let peer = self.peers.entry(id).or_insert_with(|| Peer {
            coordinate,
            latencies: Latencies::default(),
        });
        peer.coordinate = coordinate;
        peer.latencies.push(rtt.as_secs_f64());
        let rtt_secs = peer.latencies.median();

        self.move_by(&coordinate, rtt_secs);
        self.adjust(&coordinate, rtt_secs);
        self.gravitate();
        if !self.own.is_plausible() {
            self.reset_count += 1;
            self.own = Coordinate::default();
        }
        Ok(())
    }

    fn move_by(&mut self, other: &Coordinate, rtt_secs: f64) {
        let distance_secs = self.own.distance_secs(other);
        // A clock may be too coarse for a round trip on one machine.
        let rtt_secs = rtt_secs.max(ZERO_THRESHOLD);
        let wrongness = (distance_secs - rtt_secs).abs() / rtt_secs;
        let total_error = (self.own.error + other.error).max(ZERO_THRESHOLD);
        let weight = self.own.error / total_error;
        let error = ERROR_GAIN * weight * wrongness + self.own.error * (1.0 - ERROR_GAIN * weight);
        self.own.error = error.min(COORDINATE_ERROR_MAX);
        self.apply_force(FORCE_GAIN * weight * (rtt_secs - distance_secs), other);
    }
    fn adjust(&mut self, other: &Coordinate, rtt_secs: f64) {
        // Of the raw distance: the adjustment does not feed on itself.
        self.adjustments[self.adjustment_next] = rtt_secs - self.own.raw_distance_secs(other);
        self.adjustment_next = (self.adjustment_next + 1) % ADJUSTMENT_SAMPLE_COUNT;
        self.own.adjustment = self.adjustments.iter().sum::<f64>() / (2.0 * ADJUSTMENT_SAMPLE_COUNT as f64);
    }
    fn gravitate(&mut self) {
        let origin = Coordinate::default();
        let ratio = origin.distance_secs(&self.own) / GRAVITY_RHO;
        self.apply_force(-(ratio * ratio), &origin);
    }
    /// Away from `other` by `force` seconds; towards it when below 0.
    fn apply_force(&mut self, force: f64, other: &Coordinate) {
        let (direction, magnitude) = self.direction_from(&other.vector);
        for (component, direction) in self.own.vector.iter_mut().zip(direction) {
            *component += direction * force;
        }
        if magnitude > ZERO_THRESHOLD {
            let height = (self.own.height + other.height) * force / magnitude + self.own.height;
            self.own.height = height.max(COORDINATE_HEIGHT_MIN);
        }
    }
    /// A vector of length 1 from `other` to us, and how far that is. Any direction, and 0, when we are there.
    fn direction_from(&mut self, other: &Vector) -> (Vector, f64) {
        let mut difference = self.own.vector;
        for (ours, theirs) in difference.iter_mut().zip(other) {
            *ours -= theirs;
        }
        if let Some((unit, magnitude)) = normalized(difference) {
            return (unit, magnitude);
        }
        let random = difference.map(|_| {
            // 53 random bits are a number in 0..1 without rounding.
            (self.rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64 - 0.5
        });
        if let Some((unit, _)) = normalized(random) {
            return (unit, 0.0);
        }
        let mut first = [0.0; COORDINATE_DIMENSION_COUNT];
        first[0] = 1.0;
        (first, 0.0)
    }
}

fn normalized(vector: Vector) -> Option<(Vector, f64)> {
    let magnitude = vector.iter().map(|component| component * component).sum::<f64>().sqrt();
    (magnitude > ZERO_THRESHOLD).then(|| (vector.map(|component| component * (1.0 / magnitude)), magnitude))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quorate_types::Uuid;
    use rand_core::SeedableRng as _;

    fn id(n: usize) -> NodeId {
        NodeId(Uuid::from_bytes([u8::try_from(n).unwrap(); 16]))
    }
    fn fresh(seed: u64) -> Coordinates {
        Coordinates::new(ChaCha8Rng::seed_from_u64(seed))
    }
    fn at(vector: [f64; 3]) -> Coordinate {
        let mut coordinate = Coordinate::default();
        coordinate.vector[..3].copy_from_slice(&vector);
        coordinate
    }
    #[track_caller]
    fn check_near(actual: f64, expected: f64) {
        assert!((actual - expected).abs() < 1e-6, "{actual} is not {expected}");
    }
    #[track_caller]
    fn check_vector(actual: &Vector, expected: [f64; 3]) {
        for (actual, expected) in actual.iter().zip(expected.into_iter().chain([0.0; 5])) {
            check_near(*actual, expected);
        }
    }

    #[test]
    fn a_force_pushes_straight_away_as_in_serfs_test() {
        let mut client = fresh(1);
        client.apply_force(5.3, &at([0.0, 0.0, 2.9]));
        check_vector(&client.own.vector, [0.0, 0.0, -5.3]);
        client.apply_force(2.0, &at([3.4, 0.0, -5.3]));
        check_vector(&client.own.vector, [-2.0, 0.0, -5.3]);
        // From the same place: anywhere, but as far as the force says.
        let mut client = fresh(1);
        client.apply_force(1.0, &Coordinate::default());
        check_near(client.own.raw_distance_secs(&Coordinate::default()), 1.0 + 2.0e-5);
    }
    #[test]
    fn a_force_changes_the_height_as_in_serfs_test() {
        let mut client = fresh(1);
        client.apply_force(5.3, &at([0.0, 0.0, 2.9]));
        check_near(
            client.own.height,
            COORDINATE_HEIGHT_MIN + 5.3 * 2.0 * COORDINATE_HEIGHT_MIN / 2.9,
        );
        // Never below its least.
        client.apply_force(-5.3, &at([0.0, 0.0, 2.9]));
        assert!(client.own.height >= COORDINATE_HEIGHT_MIN);
    }
    #[test]
    fn unit_vectors_are_those_of_serfs_test() {
        let mut client = fresh(1);
        client.own = at([1.0, 2.0, 3.0]);
        let (unit, magnitude) = client.direction_from(&at([0.5, 0.6, 0.7]).vector);
        check_vector(
            &unit,
            [0.182_574_185_835_055_36, 0.511_207_720_338_155, 0.839_841_254_841_254_6],
        );
        check_near(magnitude, 2.738_612_787_525_830_5);
        let (unit, magnitude) = client.direction_from(&at([1.0, 2.0, 3.0]).vector);
        check_near(normalized(unit).unwrap().1, 1.0);
        check_near(magnitude, 0.0);
    }
    #[test]
    fn a_longer_round_trip_than_expected_moves_away() {
        let mut client = fresh(1);
        client
            .observe(id(1), at([0.0, 0.0, 0.001]), Duration::from_millis(2))
            .unwrap();
        assert!(client.own.vector[2] < 0.0);
        assert_eq!(client.peer(id(1)), Some(at([0.0, 0.0, 0.001])));
    }
    #[test]
    fn one_outlier_does_not_pass_the_latency_filter_as_in_serfs_test() {
        let mut latencies = Latencies::default();
        let medians = [0.201, 0.200, 0.207, 1.9, 0.203, 0.199, 0.211].map(|rtt_secs| {
            latencies.push(rtt_secs);
            latencies.median()
        });
        assert_eq!(medians, [0.201, 0.201, 0.201, 0.207, 0.207, 0.203, 0.203]);
    }
    #[test]
    fn nonsense_is_refused_counted_and_moves_nothing() {
        let mut client = fresh(1);
        client
            .observe(id(1), at([0.1, 0.0, 0.0]), Duration::from_millis(9))
            .unwrap();
        let before = client.own();
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0e9] {
            let refused = client.observe(id(2), at([0.0, bad, 0.0]), Duration::from_millis(1));
            assert_eq!(refused, Err(Implausible::Coordinate));
        }
        let refused = client.observe(id(2), at([0.0, 0.0, 0.0]), Duration::from_secs(11));
        assert_eq!(refused, Err(Implausible::RoundTrip(Duration::from_secs(11))));
        assert_eq!((client.own(), client.refused_count()), (before, 5));
        assert_eq!(client.peer(id(2)), None);
    }

    // Serf's `phantom.go`: coordinates of simulated networks come near the truth, within Serf's own bounds.

    type Truth = fn(usize, usize) -> f64;

    fn simulate(node_count: usize, cycles: usize, truth: Truth) -> (f64, f64, Vec<Coordinate>) {
        let mut clients: Vec<_> = (0..node_count).map(|n| fresh(n as u64)).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for _ in 0..cycles {
            for i in 0..node_count {
                let j = (rng.next_u64() % node_count as u64) as usize;
                if i != j {
                    let other = clients[j].own();
                    let rtt = Duration::from_secs_f64(truth(i.min(j), i.max(j)));
                    clients[i].observe(id(j), other, rtt).unwrap();
                }
            }
        }
        let coordinates: Vec<_> = clients.iter().map(Coordinates::own).collect();
        let (mut error_max, mut error_sum, mut count) = (0.0_f64, 0.0, 0.0);
        for j in 0..node_count {
            for i in 0..j {
                let actual = truth(i, j);
                let error = (coordinates[i].distance_secs(&coordinates[j]) - actual).abs() / actual;
                error_max = error_max.max(error);
                error_sum += error;
                count += 1.0;
            }
        }
        (error_sum / count, error_max, coordinates)
    }
    #[track_caller]
    fn check_error(node_count: usize, truth: Truth, average_max: f64, worst_max: f64) {
        let (average, worst, _) = simulate(node_count, 1000, truth);
        assert!(average <= average_max && worst <= worst_max, "{average} {worst}");
    }

    #[test]
    fn nodes_on_a_line_find_their_places() {
        check_error(10, |i, j| 0.010 * (j - i) as f64, 0.0031, 0.0130);
    }
    #[test]
    fn nodes_on_a_grid_find_their_places() {
        let truth = |i: usize, j: usize| {
            let (dx, dy) = ((j % 5) as f64 - (i % 5) as f64, (j / 5) as f64 - (i / 5) as f64);
            0.010 * (dx * dx + dy * dy).sqrt()
        };
        check_error(25, truth, 0.0016, 0.0230);
    }
    #[test]
    fn nodes_of_two_distant_sites_find_their_places() {
        let truth = |i: usize, j: usize| if i <= 12 && j > 12 { 0.011 } else { 0.001 };
        check_error(25, truth, 0.000_060, 0.000_48);
    }
    #[test]
    fn a_node_behind_a_slow_link_stands_above_the_plane() {
        // Equally far from all others, which stand on a circle; the space has dimensions enough to move aside instead of
        // up, so only the distances are held to a bound.
        let truth = |i: usize, j: usize| {
            if i == 0 {
                return 0.200;
            }
            let angle = |n: usize| core::f64::consts::TAU * n as f64 / 25.0;
            0.200 * libm::sin((angle(j) - angle(i)) / 2.0).abs()
        };
        let (average, worst, _) = simulate(25, 1000, truth);
        assert!(average <= 0.0028 && worst <= 0.064, "{average} {worst}");
    }

    proptest! {
        #[test]
        fn whatever_peers_say_our_coordinate_stays_plausible(
            seed: u64,
            observations in proptest::collection::vec(
                (0..5_usize, proptest::array::uniform8(prop_oneof![any::<f64>(), -1000.0..1000.0]), 0.0..2.0, -2000.0..2000.0,
                 -1.0..2000.0, 0_u64..20_000_000_000),
                0..60,
            ),
        ) {
            let mut client = fresh(seed);
            for (peer, vector, error, adjustment, height, rtt_nanos) in observations {
                let coordinate = Coordinate { vector, error, adjustment, height };
                let taken = client.observe(id(peer), coordinate, Duration::from_nanos(rtt_nanos));
                prop_assert_eq!(taken.is_ok(), coordinate.is_plausible() && rtt_nanos <= 10_000_000_000);
                prop_assert!(client.own().is_plausible());
            }
        }
        #[test]
        fn two_that_measure_one_another_come_to_agree(seed: u64, rtt_micros in 100_u64..2_000_000) {
            let rtt = Duration::from_micros(rtt_micros);
            let (mut a, mut b) = (fresh(seed), fresh(!seed));
            for _ in 0..300 {
                a.observe(id(1), b.own(), rtt).unwrap();
                b.observe(id(0), a.own(), rtt).unwrap();
            }
            let (estimate, actual) = (a.own().distance_secs(&b.own()), rtt.as_secs_f64());
            prop_assert!((estimate - actual).abs() <= 0.1 * actual, "{} {}", estimate, actual);
        }
    }
}
