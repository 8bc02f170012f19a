//! A fixed 128-bit hash of any serializable value.
//!
//! Promises: equal values give equal hashes on every machine and in every build, as long as serde walks the type the same
//! way; lengths and variants are hashed too, so that no two values run into one another. It tells honest servers that
//! drifted apart, and is no defence against somebody who looks for a collision.
//! Not here: what is hashed and how hashes are summed (`table`).

use serde::ser::{self, Serialize};
use std::fmt::{self, Display};

/// Odd, and of random bits: the first digits of pi and of e.
const FACTORS: [u64; 2] = [0x2437_f5a8_885a_308d, 0xb7e1_5162_8aed_2a6b];

/// The hash of a value.
pub(crate) fn hash_of(value: &impl Serialize) -> u128 {
    let mut digest = Digest::default();
    value
        .serialize(&mut digest)
        .expect("a record says its lengths, and hashing has no other way to fail");
    digest.finish()
}

#[derive(Debug, Default)]
struct Digest {
    lanes: [u64; 2],
    /// Bytes that make no whole word yet, the first in the lowest place.
    word: u64,
    len_bytes: u64,
}

/// Both halves of the product, so that every bit of the input reaches the low ones too.
fn fold(left: u64, right: u64) -> u64 {
    let product = u128::from(left) * u128::from(right);
    (product as u64) ^ ((product >> 64) as u64)
}

impl Digest {
    fn mix(&mut self, word: u64) {
        let [first, second] = self.lanes;
        self.lanes = [
            fold(first ^ word, FACTORS[0]).wrapping_add(FACTORS[1]),
            fold(second.rotate_left(23) ^ word.rotate_left(32), FACTORS[1]).wrapping_add(FACTORS[0]),
        ];
    }

    fn byte(&mut self, byte: u8) {
        self.word |= u64::from(byte) << (8 * (self.len_bytes % 8));
        self.len_bytes += 1;
        if self.len_bytes.is_multiple_of(8) {
            let word = std::mem::take(&mut self.word);
            self.mix(word);
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.byte(*byte);
        }
    }

    fn len(&mut self, len: usize) {
        self.bytes(&(len as u64).to_le_bytes());
    }

    fn finish(mut self) -> u128 {
        let (word, len_bytes) = (self.word, self.len_bytes);
        self.mix(word);
        self.mix(len_bytes);
        self.mix(0);
        (u128::from(self.lanes[0]) << 64) | u128::from(self.lanes[1])
    }
}

/// A sequence of unknown length: no record has one.
#[derive(Debug)]
struct Unhashable;

impl Display for Unhashable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence of unknown length")
    }
}
impl std::error::Error for Unhashable {}
impl ser::Error for Unhashable {
    fn custom<T: Display>(_: T) -> Self {
        Self
    }
}

macro_rules! numbers {
    ($($method:ident: $number:ty),*) => {
        $(fn $method(self, value: $number) -> Result<(), Unhashable> {
            self.bytes(&value.to_le_bytes());
            Ok(())
        })*
    };
}

impl<'a> ser::Serializer for &'a mut Digest {
    type Ok = ();
    type Error = Unhashable;
    type SerializeSeq = Parts<'a>;
    type SerializeTuple = Parts<'a>;
    type SerializeTupleStruct = Parts<'a>;
    type SerializeTupleVariant = Parts<'a>;
    type SerializeMap = Parts<'a>;
    type SerializeStruct = Parts<'a>;
    type SerializeStructVariant = Parts<'a>;

    numbers!(
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128,
        serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128,
        serialize_f32: f32, serialize_f64: f64
    );

    fn serialize_u8(self, value: u8) -> Result<(), Unhashable> {
        self.byte(value);
        Ok(())
    }
    fn serialize_bool(self, value: bool) -> Result<(), Unhashable> {
        self.byte(u8::from(value));
        Ok(())
    }
    fn serialize_char(self, value: char) -> Result<(), Unhashable> {
        self.bytes(&u32::from(value).to_le_bytes());
        Ok(())
    }
    fn serialize_str(self, value: &str) -> Result<(), Unhashable> {
        self.serialize_bytes(value.as_bytes())
    }
    fn serialize_bytes(self, value: &[u8]) -> Result<(), Unhashable> {
        self.len(value.len());
        self.bytes(value);
        Ok(())
    }
    fn serialize_none(self) -> Result<(), Unhashable> {
        self.byte(0);
        Ok(())
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Unhashable> {
        self.byte(1);
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Unhashable> {
        Ok(())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Unhashable> {
        Ok(())
    }
    fn serialize_unit_variant(self, _: &'static str, variant: u32, _: &'static str) -> Result<(), Unhashable> {
        self.bytes(&variant.to_le_bytes());
        Ok(())
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Unhashable> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        variant: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Unhashable> {
        self.bytes(&variant.to_le_bytes());
        value.serialize(self)
    }
    fn serialize_seq(self, len: Option<usize>) -> Result<Parts<'a>, Unhashable> {
        self.len(len.ok_or(Unhashable)?);
        Ok(Parts(self))
    }
    fn serialize_tuple(self, _: usize) -> Result<Parts<'a>, Unhashable> {
        Ok(Parts(self))
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, Unhashable> {
        Ok(Parts(self))
    }
    fn serialize_tuple_variant(
        self,
        _: &'static str,
        variant: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, Unhashable> {
        self.bytes(&variant.to_le_bytes());
        Ok(Parts(self))
    }
    fn serialize_map(self, len: Option<usize>) -> Result<Parts<'a>, Unhashable> {
        self.len(len.ok_or(Unhashable)?);
        Ok(Parts(self))
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Parts<'a>, Unhashable> {
        Ok(Parts(self))
    }
    fn serialize_struct_variant(
        self,
        _: &'static str,
        variant: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Parts<'a>, Unhashable> {
        self.bytes(&variant.to_le_bytes());
        Ok(Parts(self))
    }
    fn is_human_readable(&self) -> bool {
        false
    }
}

/// The parts of a compound value, one after the other.
struct Parts<'a>(&'a mut Digest);

macro_rules! parts {
    ($($compound:ident: $method:ident),*) => {
        $(impl ser::$compound for Parts<'_> {
            type Ok = ();
            type Error = Unhashable;
            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unhashable> {
                value.serialize(&mut *self.0)
            }
            fn end(self) -> Result<(), Unhashable> {
                Ok(())
            }
        })*
    };
}
parts!(
    SerializeSeq: serialize_element,
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field
);

macro_rules! named_parts {
    ($($compound:ident),*) => {
        $(impl ser::$compound for Parts<'_> {
            type Ok = ();
            type Error = Unhashable;
            fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Result<(), Unhashable> {
                value.serialize(&mut *self.0)
            }
            fn end(self) -> Result<(), Unhashable> {
                Ok(())
            }
        })*
    };
}
named_parts!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Parts<'_> {
    type Ok = ();
    type Error = Unhashable;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Unhashable> {
        key.serialize(&mut *self.0)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Unhashable> {
        value.serialize(&mut *self.0)
    }
    fn end(self) -> Result<(), Unhashable> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::{KvPair, ModifyIndex, Session, SessionBehavior};
    use std::collections::BTreeSet;

    #[test]
    fn values_that_differ_anywhere_hash_apart() {
        let pair = |key: &str, value: &[u8]| KvPair {
            key: key.into(),
            value: value.into(),
            ..KvPair::default()
        };
        let pairs = [
            pair("a", b""),
            pair("", b"a"),
            pair("ab", b""),
            pair("a", b"b"),
            pair("a", &[0]),
            pair("a", &[0, 0]),
            pair("a", &[0; 8]),
            pair("a", &[0; 16]),
            KvPair {
                flags: 1,
                ..pair("a", b"")
            },
            KvPair {
                modify_index: ModifyIndex(1),
                ..pair("a", b"")
            },
        ];
        let hashes: BTreeSet<u128> = pairs.iter().map(hash_of).collect();
        assert_eq!(hashes.len(), pairs.len());
        let sessions = [SessionBehavior::Release, SessionBehavior::Delete].map(|behavior| Session {
            behavior,
            ..Session::default()
        });
        assert_ne!(hash_of(&sessions[0]), hash_of(&sessions[1]));
    }

    #[test]
    fn the_hash_is_the_same_in_every_build() {
        // Servers of different builds compare theirs: a change of this number parts them.
        let value = ("quorate", 7_u64, Some(true), vec![1_u8, 2, 3]);
        assert_eq!(format!("{:032x}", hash_of(&value)), "e7eaed2af3d1865ca1fe658b8970484d");
    }
}
