//! Consumer groups: who owns which partition. Pure: time comes in, nothing goes out but values.
//!
//! Partitions are spread evenly and stay where they are when they can. One that has to move is first *revoking*: its owner stops polling it, settles
//! what is in flight and releases it; only then, or when [`HANDOVER`] is over or the owner is gone, the next one gets it. When the hub itself was
//! away, its members come back one by one and claim what they held: for [`REJOIN`] nobody else gets what they may still be working on. What they claim
//! is theirs at once, be it more than their part: they give that up like anything else that has to move.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long an owner may take to give up a partition.
pub const HANDOVER: Duration = Duration::from_secs(30);

/// How long a hub that did not end well waits for members that hold partitions. Workers try again every two seconds at the latest.
pub const REJOIN: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Member {
    connection: u64,
    epoch: u64,
    /// What it held before this join: revoked last.
    claims: BTreeSet<u32>,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Slot {
    owner: Option<String>,
    /// Since when its owner is asked to give it up.
    revoking: Option<Duration>,
    /// A member from before the hub was away may be at work on it.
    missed: bool,
}

/// One group on one topic.
#[derive(Debug)]
pub struct Group {
    members: BTreeMap<String, Member>,
    slots: Vec<Slot>,
    epochs: u64,
    /// Until when free partitions go to members that claim them and to no others.
    rejoin_until: Option<Duration>,
}

impl Group {
    /// A group without members.
    pub fn new(partitions: u32) -> Self {
        Self { members: BTreeMap::new(), slots: vec![Slot::default(); partitions as usize], epochs: 0, rejoin_until: None }
    }

    /// Until then, partitions of which members may hold something from before the hub was away are given to those that claim them only.
    pub fn wait_for_claims(mut self, until: Duration, held: impl Fn(u32) -> bool) -> Self {
        self.rejoin_until = Some(until);
        for (partition, slot) in (0..).zip(&mut self.slots) {
            slot.missed = held(partition);
        }
        self
    }

    /// Adds a member, or gives a known one its new connection. `claims` are the partitions it held before.
    pub fn join(&mut self, member: &str, connection: u64, claims: &[u32], now: Duration) {
        if self.epochs == 0 && self.members.is_empty() && !claims.is_empty() && self.rejoin_until.is_none() {
            // It was at work although nobody expected it; so may others be.
            self.rejoin_until = Some(now + REJOIN);
            self.slots.iter_mut().for_each(|slot| slot.missed = true);
        }
        let entry = self.members.entry(member.to_owned()).or_default();
        entry.connection = connection;
        entry.claims = claims.iter().copied().collect();
        for &claim in claims {
            if let Some(slot) = self.slots.get_mut(claim as usize)
                && slot.missed
            {
                *slot = Slot { owner: Some(member.to_owned()), ..Slot::default() };
            }
        }
        self.balance(now);
    }

    /// Takes a member out; its partitions are free at once. Ignored when it came back on another connection.
    pub fn leave(&mut self, member: &str, connection: u64, now: Duration) {
        if self.members.get(member).is_some_and(|m| m.connection == connection) {
            self.members.remove(member);
            for slot in &mut self.slots {
                if slot.owner.as_deref() == Some(member) {
                    *slot = Slot::default();
                }
            }
            self.balance(now);
        }
    }

    /// Takes out every member of a connection; true if there was one.
    pub fn disconnect(&mut self, connection: u64, now: Duration) -> bool {
        let gone: Vec<String> = self.members.iter().filter(|(_, m)| m.connection == connection).map(|(name, _)| name.clone()).collect();
        for member in &gone {
            self.leave(member, connection, now);
        }
        !gone.is_empty()
    }

    /// A member gives up partitions that it was asked for; others are kept.
    pub fn release(&mut self, member: &str, partitions: &[u32], now: Duration) {
        for &partition in partitions {
            if let Some(slot) = self.slots.get_mut(partition as usize)
                && slot.owner.as_deref() == Some(member)
                && slot.revoking.is_some()
            {
                *slot = Slot::default();
            }
        }
        self.balance(now);
    }

    /// Takes partitions from owners that took too long, and gives away those that nobody came back for; true if any moved.
    pub fn tick(&mut self, now: Duration) -> bool {
        let mut late = self.rejoin_until.take_if(|until| now >= *until).is_some();
        for slot in &mut self.slots {
            slot.missed &= !late;
        }
        for slot in &mut self.slots {
            if slot.revoking.is_some_and(|since| now.saturating_sub(since) >= HANDOVER) {
                *slot = Slot::default();
                late = true;
            }
        }
        if late {
            self.balance(now);
        }
        late
    }

    /// The epoch of a member's assignment; `None` for a stranger.
    pub fn epoch(&self, member: &str) -> Option<u64> {
        self.members.get(member).map(|m| m.epoch)
    }

    /// Whether a member owns a partition, revoking or not.
    pub fn owns(&self, member: &str, partition: u32) -> bool {
        self.slots.get(partition as usize).is_some_and(|slot| slot.owner.as_deref() == Some(member))
    }

    /// The partitions of a member, and whether each is to be given up.
    pub fn owned(&self, member: &str) -> Vec<(u32, bool)> {
        let mine = |(id, slot): (usize, &Slot)| (slot.owner.as_deref() == Some(member)).then_some((id as u32, slot.revoking.is_some()));
        self.slots.iter().enumerate().filter_map(mine).collect()
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Members by name, with the number of partitions each owns.
    pub fn members(&self) -> Vec<(String, usize)> {
        self.members.keys().map(|name| (name.clone(), self.owned(name).len())).collect()
    }

    fn keeps(&self, member: &str) -> usize {
        self.slots.iter().filter(|slot| slot.owner.as_deref() == Some(member) && slot.revoking.is_none()).count()
    }

    fn balance(&mut self, now: Duration) {
        let before: Vec<(String, Vec<(u32, bool)>)> = self.members.keys().map(|name| (name.clone(), self.owned(name))).collect();
        for (member, quota) in self.quotas() {
            self.trim(&member, quota, now);
            self.fill(&member, quota);
        }
        // Who was trimmed first may have been below its quota for want of free partitions: a second round sees all of them.
        for (member, quota) in self.quotas() {
            self.fill(&member, quota);
        }
        for (member, owned) in before {
            let changed = self.owned(&member) != owned;
            if let Some(entry) = self.members.get_mut(&member)
                && (changed || entry.epoch == 0)
            {
                self.epochs += 1;
                entry.epoch = self.epochs;
            }
        }
    }

    /// How many partitions each member should have: those with more now get the odd ones, so that as few as possible move.
    fn quotas(&self) -> Vec<(String, usize)> {
        if self.members.is_empty() {
            return Vec::new();
        }
        let mut names: Vec<(usize, String)> = self.members.keys().map(|name| (self.keeps(name), name.clone())).collect();
        names.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let (base, odd) = (self.slots.len() / names.len(), self.slots.len() % names.len());
        names.into_iter().enumerate().map(|(i, (_, name))| (name, base + usize::from(i < odd))).collect()
    }

    /// Asks a member for what it has beyond its quota, unclaimed ones first.
    fn trim(&mut self, member: &str, quota: usize, now: Duration) {
        let mut extra = self.keeps(member).saturating_sub(quota);
        let claims = self.members.get(member).map(|m| m.claims.clone()).unwrap_or_default();
        for claimed in [false, true] {
            for (id, slot) in self.slots.iter_mut().enumerate().rev() {
                let mine = slot.owner.as_deref() == Some(member) && slot.revoking.is_none();
                if extra > 0 && mine && claims.contains(&(id as u32)) == claimed {
                    slot.revoking = Some(now);
                    extra -= 1;
                }
            }
        }
    }

    /// Gives a member what it lacks: first what it was about to lose, then free partitions, claimed ones first.
    fn fill(&mut self, member: &str, quota: usize) {
        let mut missing = quota.saturating_sub(self.keeps(member));
        let claims = self.members.get(member).map(|m| m.claims.clone()).unwrap_or_default();
        for slot in &mut self.slots {
            if missing > 0 && slot.owner.as_deref() == Some(member) && slot.revoking.is_some() {
                slot.revoking = None;
                missing -= 1;
            }
        }
        for claimed in [true, false] {
            for (id, slot) in self.slots.iter_mut().enumerate() {
                if missing > 0 && slot.owner.is_none() && !slot.missed && claims.contains(&(id as u32)) == claimed {
                    *slot = Slot { owner: Some(member.to_owned()), ..Slot::default() };
                    missing -= 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: fn(u64) -> Duration = Duration::from_secs;

    fn sizes(group: &Group) -> Vec<usize> {
        group.members().into_iter().map(|(_, n)| n).collect()
    }

    #[test]
    fn the_first_member_gets_all_and_the_second_waits_for_the_handover() {
        let mut group = Group::new(8);
        group.join("a", 1, &[], T(0));
        assert_eq!(sizes(&group), [8]);
        let epoch = group.epoch("a");
        group.join("b", 2, &[], T(1));
        let revoking: Vec<u32> = group.owned("a").into_iter().filter(|(_, r)| *r).map(|(p, _)| p).collect();
        assert_eq!((revoking.len(), group.owned("b").len()), (4, 0));
        assert_ne!(group.epoch("a"), epoch);
        group.release("a", &revoking[..2], T(2));
        assert_eq!(sizes(&group), [6, 2]);
        assert!(!group.tick(T(30)) && group.tick(T(31)));
        assert_eq!(sizes(&group), [4, 4]);
    }

    #[test]
    fn a_member_cannot_release_what_it_was_not_asked_for() {
        let mut group = Group::new(2);
        group.join("a", 1, &[], T(0));
        group.release("a", &[0, 1, 99], T(0));
        assert_eq!(group.owned("a").len(), 2);
    }

    #[test]
    fn a_lost_connection_frees_its_partitions_but_not_those_of_its_successor() {
        let mut group = Group::new(4);
        group.join("a", 1, &[], T(0));
        group.join("a", 2, &[], T(1));
        assert!(!group.disconnect(1, T(2)));
        assert_eq!(sizes(&group), [4]);
        group.join("b", 3, &[], T(3));
        assert!(group.disconnect(2, T(4)));
        assert_eq!(group.members(), [("b".to_owned(), 4)]);
        assert_eq!(group.epoch("a"), None);
    }

    #[test]
    fn claims_of_a_returning_member_are_revoked_last_and_given_back_first() {
        let mut group = Group::new(4);
        // Not the first one of this hub's life: nobody waits for others.
        group.join("z", 9, &[], T(0));
        group.leave("z", 9, T(0));
        group.join("a", 1, &[2, 3], T(0));
        group.join("b", 2, &[0, 1], T(0));
        assert_eq!(group.owned("a"), [(0, true), (1, true), (2, false), (3, false)]);
        group.release("a", &[0, 1], T(1));
        assert_eq!(group.owned("b"), [(0, false), (1, false)]);
    }

    fn owned(group: &Group, member: &str) -> Vec<u32> {
        group.owned(member).into_iter().filter(|(_, revoking)| !revoking).map(|(partition, _)| partition).collect()
    }

    fn going(group: &Group, member: &str) -> Vec<u32> {
        group.owned(member).into_iter().filter(|(_, revoking)| *revoking).map(|(partition, _)| partition).collect()
    }

    /// | who comes, claiming | partitions with work | has at once | has when the wait is over |
    #[test]
    fn table_of_who_gets_what_after_the_hub_was_away() {
        type Comes = (&'static str, &'static [u32]);
        type Has = &'static [(&'static str, &'static [u32])];
        let table: &[(&[Comes], &[u32], Has, Has)] = &[
            // The first to come holds nothing: what others may be at work on is not for it.
            (&[("new", &[])], &[0, 1, 2, 3], &[("new", &[])], &[("new", &[0, 1, 2, 3])]),
            (&[("new", &[])], &[1], &[("new", &[0, 2, 3])], &[("new", &[0, 1, 2, 3])]),
            (&[("new", &[])], &[], &[("new", &[0, 1, 2, 3])], &[("new", &[0, 1, 2, 3])]),
            (&[("a", &[0, 1])], &[0, 1, 2, 3], &[("a", &[0, 1])], &[("a", &[0, 1, 2, 3])]),
            (&[("a", &[0, 1]), ("b", &[2])], &[0, 1, 2, 3], &[("a", &[0, 1]), ("b", &[2])], &[("a", &[0, 1]), ("b", &[2, 3])]),
            (&[("new", &[]), ("a", &[0, 1]), ("b", &[2, 3])], &[0, 1, 2, 3], &[("new", &[]), ("a", &[0, 1]), ("b", &[2])], &[("new", &[])]),
            // Claims that nobody can have: another one's, and of a partition that is not there.
            (&[("a", &[0, 1]), ("b", &[0, 1, 9])], &[0, 1, 2, 3], &[("a", &[0, 1]), ("b", &[])], &[("a", &[0, 1]), ("b", &[2, 3])]),
        ];
        for (members, held, at_once, at_last) in table {
            let mut group = Group::new(4).wait_for_claims(T(5), |partition| held.contains(&partition));
            for (connection, (member, claims)) in (1..).zip(*members) {
                group.join(member, connection, claims, T(0));
            }
            for (member, expected) in *at_once {
                assert_eq!(owned(&group, member), *expected, "{member} at once, of {members:?} with work in {held:?}");
            }
            assert!(!group.tick(T(4)) && group.tick(T(5)) && !group.tick(T(6)));
            for (member, expected) in *at_last {
                assert_eq!(owned(&group, member), *expected, "{member} at last, of {members:?} with work in {held:?}");
            }
        }
    }

    #[test]
    fn claims_beyond_a_members_part_are_handed_over_and_not_taken_away() {
        let mut group = Group::new(8).wait_for_claims(T(5), |_| true);
        group.join("new", 1, &[], T(0));
        group.join("a", 2, &[0, 1, 2, 3, 4, 5, 6, 7], T(1));
        assert_eq!((group.owned("new").len(), owned(&group, "a").len(), going(&group, "a").len()), (0, 4, 4));
        let asked_for = going(&group, "a");
        group.release("a", &asked_for, T(2));
        // Whoever had them is here: nobody waits for the rest of the time.
        assert_eq!(owned(&group, "new"), asked_for);
        assert!(group.tick(T(5)));
        assert_eq!(sizes(&group), [4, 4]);
    }

    #[test]
    fn a_claim_that_nobody_expected_makes_the_others_wait() {
        let mut group = Group::new(8);
        group.join("a", 1, &[0, 1, 2, 3], T(0));
        assert_eq!(sizes(&group), [4]);
        group.join("new", 2, &[], T(1));
        assert_eq!(group.owned("new"), []);
        group.join("b", 3, &[4, 5], T(2));
        assert_eq!(owned(&group, "b"), [4, 5]);
        assert!(!group.tick(T(4)) && group.tick(T(5)) && !group.tick(T(6)));
        let unowned = (0..8).filter(|&p| !["a", "b", "new"].iter().any(|m| group.owns(m, p))).count();
        assert_eq!(unowned, 0);
    }

    #[test]
    fn a_first_start_waits_for_nobody() {
        let mut group = Group::new(8);
        group.join("a", 1, &[], T(0));
        assert_eq!(sizes(&group), [8]);
    }

    #[test]
    fn more_members_than_partitions_leave_some_without() {
        let mut group = Group::new(2);
        for (i, name) in ["a", "b", "c"].into_iter().enumerate() {
            group.join(name, i as u64, &[], T(0));
        }
        group.tick(T(60));
        assert_eq!(sizes(&group).iter().sum::<usize>(), 2);
    }

    proptest! {
        #[test]
        fn whatever_happens_it_ends_balanced_and_every_partition_is_owned(
            steps in prop::collection::vec((0u8..5, 0u64..5), 1..60),
            waits in any::<bool>(),
        ) {
            let mut group = Group::new(16);
            if waits {
                group = group.wait_for_claims(T(5), |partition| partition % 3 > 0);
            }
            let mut now = 0;
            for (what, who) in steps {
                now += 1;
                let name = who.to_string();
                match what {
                    0 => group.join(&name, who, &[], T(now)),
                    4 => group.join(&name, who, &[who as u32, 7, 8, 99], T(now)),
                    1 => group.leave(&name, who, T(now)),
                    2 => { group.disconnect(who, T(now)); }
                    _ => {
                        let mine: Vec<u32> = group.owned(&name).into_iter().map(|(p, _)| p).collect();
                        group.release(&name, &mine, T(now));
                    }
                }
            }
            group.tick(T(now + 30));
            let sizes = sizes(&group);
            if let (Some(least), Some(most)) = (sizes.iter().min(), sizes.iter().max()) {
                prop_assert!(most - least <= 1, "{sizes:?}");
                prop_assert_eq!(sizes.iter().sum::<usize>(), 16);
            }
        }
    }
}
