//! The walk over a stream's tree of shards, without IO.
//!
//! What enters: what the service lists, and what was read of which shard. What leaves: which shards may be read now,
//! and a version for each record. **Invariants:** a shard is read only when its parent has been read to its end, so
//! that the changes of a key come in their order; a version depends on its shard's records, its parents' and the stored
//! floor alone, so that reading again from a stored position gives the same versions, however shards interleave. The
//! position stays small: a shard that was read whole is forgotten once its children are known, and known for done by
//! them while it is still listed.
//!
//! Source: <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Streams.html#Streams.Processing>

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{ShardPosition, StreamPosition, Version};

/// A shard, as the service lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub id: String,
    pub parent: Option<String>,
}

/// How far one stream has been walked.
#[derive(Debug, Clone)]
pub struct Walk {
    position: StreamPosition,
    /// Up to what time each shard has been read.
    read_to_us: BTreeMap<String, i64>,
}

impl Walk {
    /// Goes on from a position, in which everything up to `read_to_us` has been read.
    pub fn new(position: StreamPosition, read_to_us: i64) -> Self {
        let read_to_us = position.shards.keys().map(|shard| (shard.clone(), read_to_us)).collect();
        Walk { position, read_to_us }
    }

    pub fn position(&self) -> &StreamPosition {
        &self.position
    }

    /// The shards to read, each with the last record read of it.
    pub fn open(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let open = self.position.shards.iter().filter(|(_, shard)| !shard.drained);
        open.map(|(id, shard)| (id.as_str(), shard.sequence.as_deref()))
    }

    /// Takes note of all shards that the service lists now; the ones that may be read from here on.
    pub fn listed(&mut self, listing: &[Listed], floor: Version, read_to_us: i64) -> Vec<String> {
        let parents: BTreeMap<&str, Option<&str>> =
            listing.iter().map(|shard| (shard.id.as_str(), shard.parent.as_deref())).collect();
        let forgotten = self.forgotten(&parents);
        let mut begun = Vec::new();
        for shard in listing {
            if self.position.shards.contains_key(&shard.id) || forgotten.contains_key(shard.id.as_str()) {
                continue;
            }
            let parent = shard.parent.as_deref();
            let known = parent.and_then(|parent| self.position.shards.get(parent));
            let clock = match (parent, known) {
                (_, Some(known)) if known.drained => known.clock,
                (_, Some(_)) => continue,
                (Some(parent), None) => match forgotten.get(parent) {
                    Some(clock) => *clock,
                    // It comes when its own parent has been read.
                    None if parents.contains_key(parent) => continue,
                    None => floor,
                },
                (None, None) => floor,
            };
            let from_us = parent.and_then(|parent| self.read_to_us.get(parent)).copied().unwrap_or(read_to_us);
            begun.push((shard.id.clone(), clock.max(floor), from_us));
        }
        for (id, clock, from_us) in &begun {
            let shard = ShardPosition { sequence: None, clock: *clock, drained: false };
            self.position.shards.insert(id.clone(), shard);
            self.read_to_us.insert(id.clone(), *from_us);
        }
        self.forget(listing);
        begun.into_iter().map(|(id, ..)| id).collect()
    }

    /// The listed shards that have been read whole and forgotten, each with a version that its changes are not above:
    /// the ancestors of those that are known.
    fn forgotten<'a>(&self, parents: &BTreeMap<&'a str, Option<&'a str>>) -> BTreeMap<&'a str, Version> {
        let mut forgotten: BTreeMap<&'a str, Version> = BTreeMap::new();
        for (id, shard) in &self.position.shards {
            let mut ancestor = parents.get(id.as_str()).copied().flatten();
            while let Some(id) = ancestor.filter(|id| !self.position.shards.contains_key(*id)) {
                let clock = forgotten.entry(id).or_insert(shard.clock);
                *clock = (*clock).max(shard.clock);
                ancestor = parents.get(id).copied().flatten();
            }
        }
        forgotten
    }

    /// Forgets the shards that were read whole, once all their listed children are known, or they are no longer listed.
    fn forget(&mut self, listing: &[Listed]) {
        let listed: BTreeSet<&str> = listing.iter().map(|shard| shard.id.as_str()).collect();
        let with_children: BTreeSet<&str> = listing.iter().filter_map(|shard| shard.parent.as_deref()).collect();
        self.position.shards.retain(|id, shard| {
            !shard.drained || (listed.contains(id.as_str()) && !with_children.contains(id.as_str()))
        });
        let shards = &self.position.shards;
        self.read_to_us.retain(|id, _| shards.contains_key(id));
    }

    /// The version of a record of a shard, which was made at about `created_us`; none for one from before the table was
    /// copied.
    pub fn tick(&mut self, id: &str, sequence: &str, created_us: i64, floor: Version) -> Option<Version> {
        let shard = self.position.shards.get_mut(id)?;
        shard.sequence = Some(sequence.to_owned());
        if created_us < self.position.begin_us {
            return None;
        }
        shard.clock = shard.clock.max(floor).saturating_add(1).max(created_us);
        Some(shard.clock)
    }

    /// A shard has been read up to this time.
    pub fn read_to(&mut self, id: &str, time_us: i64) {
        if let Some(read_to_us) = self.read_to_us.get_mut(id) {
            *read_to_us = (*read_to_us).max(time_us);
        }
    }

    /// A closed shard has been read to its end.
    pub fn drained(&mut self, id: &str) {
        if let Some(shard) = self.position.shards.get_mut(id) {
            shard.drained = true;
        }
    }

    /// Up to what time every shard has been read; none while no shard is known. A shard that was read to its end counts
    /// until its children are known: what they hold is still to be read.
    pub fn all_read_to(&self) -> Option<i64> {
        self.read_to_us.values().min().copied()
    }

    /// Whether a shard has been read to its end, and its children are not known yet.
    pub fn awaits_children(&self) -> bool {
        self.position.shards.values().any(|shard| shard.drained)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn listing(shards: &[(&str, Option<&str>)]) -> Vec<Listed> {
        shards.iter().map(|(id, parent)| Listed { id: (*id).into(), parent: parent.map(str::to_owned) }).collect()
    }

    fn known(walk: &Walk) -> Vec<&str> {
        walk.position.shards.keys().map(String::as_str).collect()
    }

    #[test]
    fn children_wait_for_their_parents_end_and_begin_at_its_clock() {
        let mut walk = Walk::new(StreamPosition::default(), 0);
        let all = listing(&[("a", None), ("b", Some("a")), ("c", Some("a")), ("d", Some("b")), ("z", Some("trimmed"))]);
        assert_eq!(walk.listed(&all, 100, 0), ["a", "z"]);
        assert_eq!(walk.tick("a", "1", 5_000, 100), Some(5_000));
        assert_eq!(walk.listed(&all, 100, 0), [""; 0], "the parent is open");
        walk.drained("a");
        assert_eq!(walk.listed(&all, 100, 0), ["b", "c"]);
        assert_eq!(walk.tick("b", "2", 4_000, 100), Some(5_001), "its clock goes on from its parent's");
        assert_eq!(walk.tick("c", "3", 4_000, 100), Some(5_001));
        assert_eq!(walk.tick("z", "4", 4_000, 100), Some(4_000));
        assert_eq!(known(&walk), ["b", "c", "z"], "a shard with known children is forgotten");
        assert_eq!(walk.listed(&all, 100, 0), [""; 0], "and not read again while it is still listed");
    }

    #[test]
    fn a_child_that_is_listed_late_is_not_below_what_its_forgotten_parent_came_to() {
        let mut walk = Walk::new(StreamPosition::default(), 0);
        walk.listed(&listing(&[("a", None)]), 0, 0);
        walk.tick("a", "1", 9_000, 0);
        walk.drained("a");
        walk.listed(&listing(&[("a", None), ("b", Some("a"))]), 0, 0);
        assert_eq!(known(&walk), ["b"]);
        let begun = walk.listed(&listing(&[("a", None), ("b", Some("a")), ("c", Some("a"))]), 0, 0);
        assert_eq!(begun, ["c"]);
        assert_eq!(walk.tick("c", "2", 1, 0), Some(9_001));
    }

    #[test]
    fn time_stands_still_until_the_children_of_a_closed_shard_are_read() {
        let mut walk = Walk::new(StreamPosition::default(), 7);
        assert_eq!(walk.all_read_to(), None);
        walk.listed(&listing(&[("a", None)]), 0, 7);
        walk.read_to("a", 50);
        walk.drained("a");
        assert!(walk.awaits_children());
        walk.listed(&listing(&[("a", None), ("b", Some("a"))]), 0, 90);
        assert_eq!(walk.all_read_to(), Some(50));
        walk.read_to("b", 60);
        assert_eq!(walk.all_read_to(), Some(60));
    }

    #[test]
    fn records_from_before_the_copy_are_passed_over_but_remembered() {
        let mut walk = Walk::new(StreamPosition { begin_us: 100, ..StreamPosition::default() }, 0);
        walk.listed(&listing(&[("a", None)]), 500, 0);
        assert_eq!(walk.tick("a", "1", 99, 500), None);
        assert_eq!(walk.open().collect::<Vec<_>>(), [("a", Some("1"))]);
        assert_eq!(walk.tick("a", "2", 100, 500), Some(501));
    }

    /// A tree of shards with records: what a split or a roll-over makes of one.
    #[derive(Debug, Clone)]
    struct Tree {
        /// Of each shard its parent's number, and the seconds at which its records were made.
        shards: Vec<(Option<usize>, Vec<i64>)>,
    }

    fn trees() -> impl Strategy<Value = Tree> {
        let shard = (any::<prop::sample::Index>(), any::<bool>(), prop::collection::vec(0..5i64, 0..6));
        prop::collection::vec(shard, 1..12).prop_map(|shards| {
            let shards = shards.into_iter().enumerate().map(|(number, (parent, is_root, records))| {
                let parent = (number > 0 && !is_root).then(|| parent.index(number));
                (parent, records)
            });
            Tree { shards: shards.collect() }
        })
    }

    fn number(text: &str) -> usize {
        text.parse().expect("a number")
    }

    fn name(number: usize) -> String {
        format!("shard-{number:03}")
    }

    /// Reads everything in an order that `choices` decides; the version of each record by shard and place.
    fn read(tree: &Tree, mut walk: Walk, choices: &[usize], restart_at: usize) -> BTreeMap<(usize, usize), Version> {
        let all: Vec<Listed> = (tree.shards.iter().enumerate())
            .map(|(number, (parent, _))| Listed { id: name(number), parent: parent.map(name) })
            .collect();
        let mut versions = BTreeMap::new();
        for step in 0.. {
            walk.listed(&all, 1_000, 0);
            if step == restart_at {
                walk = Walk::new(walk.position().clone(), 0);
            }
            let open: Vec<(usize, usize)> =
                (walk.open()).map(|(id, sequence)| (number(&id[6..]), sequence.map_or(0, number))).collect();
            let Some(&(shard, place)) = open.get(choices[step % choices.len()] % open.len().max(1)) else { break };
            match tree.shards[shard].1.get(place) {
                Some(second) => {
                    let version = walk.tick(&name(shard), &(place + 1).to_string(), second * 1_000_000, 1_000);
                    versions.insert((shard, place), version.expect("after the beginning"));
                }
                None => walk.drained(&name(shard)),
            }
        }
        versions
    }

    proptest! {
        #[test]
        fn every_record_is_read_once_parents_first_with_versions_that_no_interleaving_or_restart_changes(
            tree in trees(),
            choices in prop::collection::vec(0..12usize, 1..40),
            others in prop::collection::vec(0..12usize, 1..40),
            restart_at in 0..40usize,
        ) {
            let fresh = || Walk::new(StreamPosition::default(), 0);
            let versions = read(&tree, fresh(), &choices, usize::MAX);
            prop_assert_eq!(&versions, &read(&tree, fresh(), &others, restart_at));
            let records: usize = tree.shards.iter().map(|(_, records)| records.len()).sum();
            prop_assert_eq!(versions.len(), records);
            for ((shard, place), version) in &versions {
                if *place > 0 {
                    prop_assert!(versions[&(*shard, place - 1)] < *version);
                }
                let mut ancestor = tree.shards[*shard].0;
                while let Some(number) = ancestor {
                    for place in 0..tree.shards[number].1.len() {
                        prop_assert!(versions[&(number, place)] < *version);
                    }
                    ancestor = tree.shards[number].0;
                }
            }
        }
    }
}
