//! The table of members: who is known, under which id, name and address.
//!
//! A pool of N members costs each of them N records, so that what every record carries is kept small (`Record` is 40
//! bytes, its indexes about 35 more), and every operation costs the same whatever N is. What only few members have
//! (a suspicion, an intent, the time of a death) is kept beside the table, by `machine`.
//! In: records to put in, change, take out. Out: seats, by id, name or address; members drawn at random.
//! Invariants (`check`): a name has one holder; each seat stands in exactly one list, the own in none; the digest is that
//! of the live members.
//! Not here: which changes are right (`machine`).

use super::{below, shuffle};
use crate::message::{MemberState, Status};
use hashbrown::HashTable;
use quorate_types::{Incarnation, NodeId};
use rand_chacha::ChaCha8Rng;
use rand_core::Rng as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// Where a member stands in the table for as long as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seat(u32);

impl Seat {
    /// This member's own.
    pub(super) const ME: Self = Self(0);
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) state: Arc<MemberState>,
    incarnation: Incarnation,
    id: NodeId,
    /// The position in its list.
    place: u32,
    status: Status,
    /// We heard from it ourselves.
    pub(super) is_met: bool,
}

impl Record {
    pub(super) fn id(&self) -> NodeId {
        self.id
    }
    pub(super) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }
    pub(super) fn status(&self) -> Status {
        self.status
    }
    pub(super) fn address(&self) -> SocketAddr {
        self.state.address
    }
}

/// A seat under an address. The tag is half of the address's hash: it saves a look at what the member says of itself,
/// which is elsewhere in memory.
#[derive(Clone, Copy, Debug)]
struct Place {
    seat: u32,
    tag: u32,
}

#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Option<Record>>,
    free: Vec<u32>,
    count: usize,
    key: [u64; 2],
    ids: HashTable<u32>,
    names: HashTable<u32>,
    /// All but us; several that came one after the other may share an address.
    addresses: HashTable<Place>,
    /// Live members but us, in the order in which they are probed.
    order: Vec<u32>,
    /// The next to be probed.
    order_index: usize,
    dead: Vec<u32>,
    left: Vec<u32>,
    digest: u64,
}

/// A fixed mix of 128 bits into 64: both halves of a product.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product >> 64) as u64 ^ product as u64
}

/// What a live member adds to the digest. Part of the protocol: all members of a pool must agree on it.
fn mark(id: NodeId, incarnation: Incarnation) -> u64 {
    const A: u64 = 0x9e37_79b9_7f4a_7c15;
    const B: u64 = 0xc2b2_ae3d_27d4_eb4f;
    let id = id.0.as_u128();
    let (high, low) = ((id >> 64) as u64, id as u64);
    fold(
        fold(high ^ A, low ^ B) ^ A,
        incarnation.0.wrapping_mul(B) ^ high.rotate_left(32) ^ low,
    )
}

/// Grows by an eighth: doubling would leave half of a large pool's memory unused.
fn make_room<T>(list: &mut Vec<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact((list.len() / 8).max(8));
    }
}

fn seat_of(index: usize) -> u32 {
    u32::try_from(index).expect("far fewer members than 2^32")
}

impl Table {
    /// With this member alone. The hashes are keyed, so that peers cannot choose ids that collide.
    pub(super) fn new(me: Arc<MemberState>, incarnation: Incarnation, rng: &mut ChaCha8Rng) -> Self {
        let mut table = Self {
            slots: Vec::new(),
            free: Vec::new(),
            count: 1,
            key: [rng.next_u64(), rng.next_u64() | 1],
            ids: HashTable::new(),
            names: HashTable::new(),
            addresses: HashTable::new(),
            order: Vec::new(),
            order_index: 0,
            dead: Vec::new(),
            left: Vec::new(),
            digest: mark(me.id, incarnation),
        };
        let (id_hash, name_hash) = (table.hash_id(me.id), table.hash_name(&me.name));
        table.slots.push(Some(Record {
            id: me.id,
            state: me,
            incarnation,
            place: u32::MAX,
            status: Status::Alive,
            is_met: true,
        }));
        table.ids.insert_unique(id_hash, Seat::ME.0, |_| id_hash);
        table.names.insert_unique(name_hash, Seat::ME.0, |_| name_hash);
        table
    }

    fn hash_id(&self, id: NodeId) -> u64 {
        hash_id(self.key, id)
    }
    fn hash_name(&self, name: &str) -> u64 {
        hash_name(self.key, name)
    }
    fn hash_address(&self, address: SocketAddr) -> u64 {
        hash_address(self.key, address)
    }

    // Getters.

    /// All known, us included.
    pub(super) fn len(&self) -> usize {
        self.count
    }
    /// Alive and suspect members but us.
    pub(super) fn live_count(&self) -> usize {
        self.order.len()
    }
    pub(super) fn dead_count(&self) -> usize {
        self.dead.len()
    }
    pub(super) fn left_count(&self) -> usize {
        self.left.len()
    }
    pub(super) fn digest(&self) -> u64 {
        self.digest
    }
    /// One more than the highest index of a seat.
    pub(super) fn seat_index_end(&self) -> usize {
        self.slots.len()
    }
    pub(super) fn get(&self, seat: Seat) -> &Record {
        self.slots[seat.index()].as_ref().expect("a seat is taken")
    }
    pub(super) fn get_mut(&mut self, seat: Seat) -> &mut Record {
        self.slots[seat.index()].as_mut().expect("a seat is taken")
    }
    pub(super) fn find(&self, id: NodeId) -> Option<Seat> {
        let found = self.ids.find(self.hash_id(id), |seat| self.get(Seat(*seat)).id == id);
        found.copied().map(Seat)
    }
    pub(super) fn holder(&self, name: &str) -> Option<Seat> {
        let found = self
            .names
            .find(self.hash_name(name), |seat| self.get(Seat(*seat)).state.name == name);
        found.copied().map(Seat)
    }
    /// Whether anybody is at this address.
    pub(super) fn is_held(&self, address: SocketAddr) -> bool {
        let hash = self.hash_address(address);
        self.addresses.find(hash, |place| place.tag == tag_of(hash)).is_some()
    }
    /// The one at this address that is alive, if any: the first by seat.
    pub(super) fn alive_at(&self, address: SocketAddr) -> Option<Seat> {
        let hash = self.hash_address(address);
        let places = self.addresses.iter_hash(hash).filter(|place| place.tag == tag_of(hash));
        let seats = places.map(|place| Seat(place.seat));
        // That another address has all of the hash is less likely than that memory fails.
        seats.filter(|seat| self.get(*seat).status == Status::Alive).min()
    }
    /// Those at this address, in no order that could matter: by seat.
    pub(super) fn holders(&self, address: SocketAddr) -> Vec<Seat> {
        let mut seats: Vec<Seat> = self
            .addresses
            .iter_hash(self.hash_address(address))
            .map(|place| Seat(place.seat))
            .filter(|seat| self.get(*seat).address() == address)
            .collect();
        seats.sort_unstable();
        seats
    }
    /// All known, by seat.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Seat, &Record)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(index, slot)| Some((Seat(seat_of(index)), slot.as_ref()?)))
    }
    /// The nth live member but us, in an order of no meaning.
    pub(super) fn live(&self, nth: usize) -> Seat {
        Seat(self.order[nth])
    }
    /// Reads what `next_target` and who asks for that member will read: its place, its record, what it says of itself.
    pub(super) fn look_ahead(&self, turn: usize) -> u64 {
        let next = self.order.get(self.order_index);
        let record = || self.slots[*next? as usize].as_ref();
        match turn {
            1 => next.map_or(0, |seat| u64::from(*seat)),
            2 => record().map_or(0, |record| record.incarnation.0),
            _ => record().map_or(0, |record| u64::from(record.state.address.port())),
        }
    }
    pub(super) fn dead(&self, nth: usize) -> Seat {
        Seat(self.dead[nth])
    }
    // Changes.

    /// Room for so many members more.
    pub(super) fn reserve(&mut self, count: usize) {
        let key = self.key;
        let Self {
            slots,
            ids,
            names,
            addresses,
            order,
            ..
        } = self;
        slots.reserve_exact(count);
        order.reserve_exact(count);
        let at = |seat: &u32| slots[*seat as usize].as_ref().expect("an indexed seat is taken");
        ids.reserve(count, |seat| hash_id(key, at(seat).id));
        names.reserve(count, |seat| hash_name(key, &at(seat).state.name));
        addresses.reserve(count, |place| hash_address(key, at(&place.seat).address()));
    }

    /// A new live member. Its id and name are free.
    pub(super) fn insert(&mut self, state: Arc<MemberState>, incarnation: Incarnation, rng: &mut ChaCha8Rng) -> Seat {
        let key = self.key;
        let (id, address_hash) = (state.id, self.hash_address(state.address));
        let (id_hash, name_hash) = (self.hash_id(id), self.hash_name(&state.name));
        let record = Some(Record {
            id,
            state,
            incarnation,
            place: 0,
            status: Status::Alive,
            is_met: false,
        });
        let seat = match self.free.pop() {
            Some(seat) => {
                self.slots[seat as usize] = record;
                seat
            }
            None => {
                make_room(&mut self.slots);
                self.slots.push(record);
                seat_of(self.slots.len() - 1)
            }
        };
        let slots = &self.slots;
        let at = |seat: &u32| slots[*seat as usize].as_ref().expect("an indexed seat is taken");
        self.ids.insert_unique(id_hash, seat, |seat| hash_id(key, at(seat).id));
        self.names
            .insert_unique(name_hash, seat, |seat| hash_name(key, &at(seat).state.name));
        let place = Place {
            seat,
            tag: tag_of(address_hash),
        };
        self.addresses.insert_unique(address_hash, place, |place| {
            hash_address(key, at(&place.seat).address())
        });
        self.count += 1;
        self.digest = self.digest.wrapping_add(mark(id, incarnation));
        self.enlist(Seat(seat), rng);
        Seat(seat)
    }
    /// Forgets a member.
    pub(super) fn remove(&mut self, seat: Seat) -> Record {
        assert_ne!(seat, Seat::ME, "this member never forgets itself");
        self.delist(seat);
        let record = self.get(seat);
        let (id_hash, name_hash) = (self.hash_id(record.id), self.hash_name(&record.state.name));
        let address_hash = self.hash_address(record.address());
        if record.status.is_live() {
            self.digest = self.digest.wrapping_sub(mark(record.id, record.incarnation));
        }
        for (index, hash) in [(&mut self.ids, id_hash), (&mut self.names, name_hash)] {
            let entry = index.find_entry(hash, |other| *other == seat.0);
            entry.expect("a member is indexed").remove();
        }
        let entry = self.addresses.find_entry(address_hash, |place| place.seat == seat.0);
        entry.expect("a member is indexed").remove();
        self.count -= 1;
        self.free.push(seat.0);
        self.slots[seat.index()].take().expect("a seat is taken")
    }
    /// What a member says of itself. Its id and name stay.
    pub(super) fn set_state(&mut self, seat: Seat, state: Arc<MemberState>) {
        let key = self.key;
        let record = self.get(seat);
        assert_eq!(record.id, state.id, "a seat is one member's");
        assert_eq!(record.state.name, state.name, "a name stays with its seat");
        if seat != Seat::ME && record.address() != state.address {
            let (before, after) = (self.hash_address(record.address()), self.hash_address(state.address));
            let entry = self.addresses.find_entry(before, |place| place.seat == seat.0);
            entry.expect("a member is indexed").remove();
            // First, as the index may look at it when it grows.
            self.get_mut(seat).state = state;
            let slots = &self.slots;
            let place = Place {
                seat: seat.0,
                tag: tag_of(after),
            };
            self.addresses.insert_unique(after, place, |place| {
                let record = slots[place.seat as usize].as_ref().expect("an indexed seat is taken");
                hash_address(key, record.address())
            });
        } else {
            self.get_mut(seat).state = state;
        }
    }
    pub(super) fn set_incarnation(&mut self, seat: Seat, incarnation: Incarnation) {
        let record = self.get_mut(seat);
        let (id, before, is_live) = (record.id, record.incarnation, record.status.is_live());
        record.incarnation = incarnation;
        if is_live && before != incarnation {
            self.digest = self.digest.wrapping_sub(mark(id, before));
            self.digest = self.digest.wrapping_add(mark(id, incarnation));
        }
    }
    pub(super) fn set_status(&mut self, seat: Seat, status: Status, rng: &mut ChaCha8Rng) {
        let record = self.get(seat);
        let (before, mark) = (record.status, mark(record.id, record.incarnation));
        if before.is_live() && status.is_live() || before == status {
            self.get_mut(seat).status = status;
            return;
        }
        if before.is_live() {
            self.digest = self.digest.wrapping_sub(mark);
        } else if status.is_live() {
            self.digest = self.digest.wrapping_add(mark);
        }
        if seat == Seat::ME {
            self.get_mut(seat).status = status;
            return;
        }
        self.delist(seat);
        self.get_mut(seat).status = status;
        self.enlist(seat, rng);
    }

    /// The next live member of the round; a new round begins in a new order, so that a member's longest wait is bounded.
    pub(super) fn next_target(&mut self, rng: &mut ChaCha8Rng) -> Option<Seat> {
        if self.order_index >= self.order.len() {
            self.order_index = 0;
            shuffle(rng, &mut self.order);
            for place in 0..self.order.len() {
                self.settle(place);
            }
        }
        let seat = *self.order.get(self.order_index)?;
        self.order_index += 1;
        Some(Seat(seat))
    }

    fn settle(&mut self, place: usize) {
        let seat = Seat(self.order[place]);
        self.get_mut(seat).place = seat_of(place);
    }
    fn enlist(&mut self, seat: Seat, rng: &mut ChaCha8Rng) {
        let list = match self.get(seat).status {
            Status::Alive | Status::Suspect => &mut self.order,
            Status::Dead => &mut self.dead,
            Status::Left => &mut self.left,
        };
        make_room(list);
        list.push(seat.0);
        let place = list.len() - 1;
        self.get_mut(seat).place = seat_of(place);
        if self.get(seat).status.is_live() {
            // At a random place, or the newest would wait longest for its first probe.
            let other = below(rng, place + 1);
            self.order.swap(place, other);
            self.settle(place);
            self.settle(other);
        }
    }
    fn delist(&mut self, seat: Seat) {
        let record = self.get(seat);
        let (place, status) = (record.place as usize, record.status);
        let (list, mut place) = match status {
            Status::Alive | Status::Suspect => (&mut self.order, place),
            Status::Dead => (&mut self.dead, place),
            Status::Left => (&mut self.left, place),
        };
        assert_eq!(list.get(place), Some(&seat.0), "a member stands at its place");
        if status.is_live() && place < self.order_index {
            // The last that was probed takes its place, so that the probed stay before those to be probed.
            self.order_index -= 1;
            let last = self.order_index;
            self.order.swap(place, last);
            self.settle(place);
            place = last;
        }
        let list = match status {
            Status::Alive | Status::Suspect => &mut self.order,
            Status::Dead => &mut self.dead,
            Status::Left => &mut self.left,
        };
        list.swap_remove(place);
        if let Some(moved) = list.get(place).copied() {
            self.get_mut(Seat(moved)).place = seat_of(place);
        }
    }

    pub(super) fn check(&self) {
        let taken = self.slots.iter().flatten().count();
        assert_eq!(taken, self.count, "members are counted");
        assert_eq!(taken + self.free.len(), self.slots.len(), "a seat is taken or free");
        assert_eq!(self.ids.len(), taken, "a member has one id");
        assert_eq!(self.names.len(), taken, "a name has one holder, a member one name");
        assert_eq!(self.addresses.len() + 1, taken, "all but us stand under their address");
        assert_eq!(
            self.order.len() + self.dead.len() + self.left.len() + 1,
            taken,
            "all but us stand in one list"
        );
        assert!(
            self.order_index <= self.order.len(),
            "the next to be probed is in the order"
        );
        let mut digest = 0_u64;
        for (seat, record) in self.iter() {
            assert_eq!(record.state.id, record.id, "a record has its member's id");
            assert_eq!(self.find(record.id), Some(seat), "a member is found by its id");
            assert_eq!(self.holder(&record.state.name), Some(seat), "a member holds its name");
            assert!(record.state.validate().is_ok(), "only valid members are kept");
            if record.status.is_live() {
                digest = digest.wrapping_add(mark(record.id, record.incarnation));
            }
            if seat == Seat::ME {
                continue;
            }
            let list = match record.status {
                Status::Alive | Status::Suspect => &self.order,
                Status::Dead => &self.dead,
                Status::Left => &self.left,
            };
            assert_eq!(list[record.place as usize], seat.0, "a member stands at its place");
            assert!(
                self.holders(record.address()).contains(&seat),
                "a member stands under its address"
            );
            if record.status == Status::Alive {
                assert!(self.alive_at(record.address()).is_some(), "and under its tag");
            }
        }
        assert_eq!(digest, self.digest, "the digest is that of the live members");
    }
}

fn hash_id(key: [u64; 2], id: NodeId) -> u64 {
    let id = id.0.as_u128();
    fold((id >> 64) as u64 ^ key[0], id as u64 ^ key[1])
}
fn hash_name(key: [u64; 2], name: &str) -> u64 {
    let mut hash = key[0] ^ name.len() as u64;
    for chunk in name.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = fold(hash ^ u64::from_le_bytes(word), key[1] ^ 0x9e37_79b9_7f4a_7c15);
    }
    hash
}
fn tag_of(hash: u64) -> u32 {
    (hash >> 16) as u32
}
fn hash_address(key: [u64; 2], address: SocketAddr) -> u64 {
    let ip = match address.ip() {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    fold(
        (ip >> 64) as u64 ^ key[0] ^ u64::from(address.port()),
        ip as u64 ^ key[1],
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_types::Uuid;
    use rand_core::SeedableRng as _;
    use std::collections::{BTreeMap, BTreeSet};

    fn state(n: u8) -> Arc<MemberState> {
        Arc::new(MemberState {
            id: NodeId(Uuid::from_bytes([n; 16])),
            name: format!("n{n}"),
            address: SocketAddr::from(([10, 0, 0, n], 8301)),
            datacenter: "dc1".to_owned(),
            tags: BTreeMap::new(),
        })
    }

    #[test]
    fn a_record_is_small() {
        assert_eq!(size_of::<Option<Record>>(), 40);
    }

    #[test]
    fn the_digest_is_the_same_in_every_build() {
        assert_eq!(mark(state(1).id, Incarnation(7)), 7_792_933_981_079_059_658);
    }

    #[test]
    fn equal_tables_have_equal_digests_whatever_they_went_through() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut one = Table::new(state(1), Incarnation(1), &mut rng);
        let mut other = Table::new(state(2), Incarnation(2), &mut rng);
        let two = one.insert(state(2), Incarnation(2), &mut rng);
        let three = one.insert(state(3), Incarnation(9), &mut rng);
        one.set_status(three, Status::Dead, &mut rng);
        let first = other.insert(state(1), Incarnation(5), &mut rng);
        assert_ne!(one.digest(), other.digest());
        other.set_incarnation(first, Incarnation(1));
        assert_eq!(one.digest(), other.digest());
        one.set_status(two, Status::Suspect, &mut rng);
        assert_eq!(one.digest(), other.digest(), "a suspect is live");
        one.remove(three);
        one.check();
        other.check();
        assert_eq!(one.digest(), other.digest());
    }

    #[test]
    fn every_member_that_stays_is_probed_once_a_round_whoever_comes_and_goes() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut table = Table::new(state(1), Incarnation(1), &mut rng);
        let stay: BTreeSet<Seat> = (2..=20)
            .map(|n| table.insert(state(n), Incarnation(1), &mut rng))
            .collect();
        for round in 0..100_u8 {
            let passing = table.insert(state(100 + round), Incarnation(1), &mut rng);
            let mut probed = Vec::new();
            table.order_index = table.order.len();
            for step in 0..20_u8 {
                if step == round % 20 {
                    table.remove(passing);
                }
                table.check();
                if step == 0 || table.order_index < table.order.len() {
                    probed.push(table.next_target(&mut rng).unwrap());
                }
            }
            let mut stayed: Vec<Seat> = probed.into_iter().filter(|seat| *seat != passing).collect();
            stayed.sort_unstable();
            assert_eq!(stayed, Vec::from_iter(stay.iter().copied()), "round {round}");
        }
    }

    #[test]
    fn members_are_found_by_their_new_address_and_seats_are_used_again() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut table = Table::new(state(1), Incarnation(1), &mut rng);
        let seat = table.insert(state(2), Incarnation(1), &mut rng);
        let mut moved = MemberState::clone(&state(2));
        moved.address = state(3).address;
        table.set_state(seat, Arc::new(moved));
        let third = table.insert(state(3), Incarnation(1), &mut rng);
        table.check();
        assert_eq!(table.holders(state(2).address), []);
        assert_eq!(table.holders(state(3).address), [seat, third]);
        table.remove(seat);
        assert_eq!(table.insert(state(4), Incarnation(1), &mut rng), seat);
        table.check();
    }
}
