//! Network coordinates: where a node is in a space whose distances are round-trip times.
//!
//! Not here: how a node finds its own (`swim::coordinate`), JSON shapes (`http-api`).

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Serf's default, and the only one: coordinates of other dimensions cannot be compared.
pub const COORDINATE_DIMENSION_COUNT: usize = 8;
/// Height and error of a node that knows nothing yet (Serf's `HeightMin` and `VivaldiErrorMax`).
pub const COORDINATE_HEIGHT_MIN: f64 = 10.0e-6;
pub const COORDINATE_ERROR_MAX: f64 = 1.5;
/// No honest component comes near it: a round trip counts up to 10 s.
const COMPONENT_SECS_MAX: f64 = 1000.0;

/// A Vivaldi coordinate (Dabek, Cox, Kaashoek and Morris 2004) with Serf's adjustment. All in seconds, but for `error`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Coordinate {
    pub vector: [f64; COORDINATE_DIMENSION_COUNT],
    /// Confidence: relative error, 0 is certain.
    pub error: f64,
    /// Added to a distance; may be below 0.
    pub adjustment: f64,
    /// The way up to the network's core, which every path from the node takes.
    pub height: f64,
}

/// Where a node of the catalog is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCoordinate {
    pub node: String,
    pub coordinate: Coordinate,
}

impl Default for Coordinate {
    /// The origin, of which nothing is certain.
    fn default() -> Self {
        Self {
            vector: [0.0; COORDINATE_DIMENSION_COUNT],
            error: COORDINATE_ERROR_MAX,
            adjustment: 0.0,
            height: COORDINATE_HEIGHT_MIN,
        }
    }
}

impl PartialEq for Coordinate {
    /// Bit by bit, so that equality is total and what was encoded equals what is decoded.
    fn eq(&self, other: &Self) -> bool {
        self.bits() == other.bits()
    }
}

impl Eq for Coordinate {}

impl Coordinate {
    fn components(&self) -> impl Iterator<Item = f64> {
        self.vector
            .into_iter()
            .chain([self.error, self.adjustment, self.height])
    }
    fn bits(&self) -> [u64; COORDINATE_DIMENSION_COUNT + 3] {
        let mut bits = [0; COORDINATE_DIMENSION_COUNT + 3];
        for (bits, component) in bits.iter_mut().zip(self.components()) {
            *bits = component.to_bits();
        }
        bits
    }

    /// Every component is a number, and none is infinite.
    pub fn is_finite(&self) -> bool {
        self.components().all(f64::is_finite)
    }
    /// Finite, and within what a node that follows the rules can come to.
    pub fn is_plausible(&self) -> bool {
        self.is_finite()
            && self.components().all(|component| component.abs() <= COMPONENT_SECS_MAX)
            && (0.0..=COORDINATE_ERROR_MAX).contains(&self.error)
            && self.height >= 0.0
    }
    /// The estimated round trip between the two, without their adjustments.
    pub fn raw_distance_secs(&self, other: &Self) -> f64 {
        let squares = self
            .vector
            .iter()
            .zip(&other.vector)
            .map(|(ours, theirs)| (ours - theirs) * (ours - theirs));
        squares.sum::<f64>().sqrt() + self.height + other.height
    }
    /// The estimated round trip between the two.
    pub fn distance_secs(&self, other: &Self) -> f64 {
        let distance = self.raw_distance_secs(other);
        let adjusted = distance + self.adjustment + other.adjustment;
        if adjusted > 0.0 { adjusted } else { distance }
    }
    /// The estimated round trip between the two, to the nanosecond; saturates.
    pub fn distance(&self, other: &Self) -> Duration {
        Duration::try_from_secs_f64(self.distance_secs(other)).unwrap_or(Duration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(vector: [f64; 3]) -> Coordinate {
        let mut coordinate = Coordinate {
            height: 0.0,
            ..Coordinate::default()
        };
        coordinate.vector[..3].copy_from_slice(&vector);
        coordinate
    }
    #[track_caller]
    fn check(distance: f64, expected: f64) {
        assert!((distance - expected).abs() < 1e-9, "{distance} is not {expected}");
    }

    #[test]
    fn distances_are_those_of_serfs_own_test() {
        let (mut a, mut b) = (at([-0.5, 1.3, 2.4]), at([1.2, -2.3, 3.4]));
        check(a.distance_secs(&a), 0.0);
        check(a.distance_secs(&b), 4.104_875_150_354_758);
        check(a.distance_secs(&b), b.distance_secs(&a));
        // An adjustment that would make a distance negative is left out.
        a.adjustment = -1.0e6;
        check(a.distance_secs(&b), 4.104_875_150_354_758);
        a.adjustment = 0.1;
        b.adjustment = 0.2;
        check(a.distance_secs(&b), 4.404_875_150_354_758);
        check(a.raw_distance_secs(&b), 4.104_875_150_354_758);
        // The heights of both ends count.
        (a.height, b.height) = (0.7, 0.1);
        check(a.raw_distance_secs(&b), 4.904_875_150_354_758);
    }

    #[test]
    fn nonsense_is_not_plausible() {
        assert!(Coordinate::default().is_plausible());
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0e4] {
            let mut coordinate = Coordinate::default();
            coordinate.vector[7] = bad;
            assert!(!coordinate.is_plausible(), "{bad}");
            let coordinate = Coordinate {
                adjustment: bad,
                ..Coordinate::default()
            };
            assert!(!coordinate.is_plausible(), "{bad}");
        }
        let negative = Coordinate {
            height: -1.0,
            ..Coordinate::default()
        };
        assert!(!negative.is_plausible());
    }

    #[test]
    fn equality_is_total() {
        let strange = Coordinate {
            error: f64::NAN,
            ..Coordinate::default()
        };
        assert_eq!(strange, strange);
        assert_ne!(strange, Coordinate::default());
        assert_eq!(strange.distance(&at([f64::NAN, 0.0, 0.0])), Duration::MAX);
    }
}
