//! Who reads what: Kafka's assignors, run by the leader of a group. PURE.
//!
//! All of them give every partition of a topic that somebody subscribed to, to exactly one member that did; the cooperative
//! one may withhold a partition for one rebalance, until who has it has let it go.

use std::collections::{BTreeMap, BTreeSet};

use super::protocol::{Assignment, Subscription};

/// An assignor that every Kafka client knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Assignor {
    /// Of each topic a range of neighbours to each member: partitions of the same number stay together.
    Range,
    /// All partitions in a row, dealt out in turn.
    RoundRobin,
    /// Balanced, with as few moves as can be; what moves is first let go by who has it, so that the rest is read on meanwhile.
    CooperativeSticky,
}

type Members = BTreeMap<String, Subscription>;
type Topics = BTreeMap<String, u32>;
type Places = BTreeMap<String, BTreeSet<(String, i32)>>;

impl Assignor {
    /// Kafka's name of it, under which members vote.
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Range => "range",
            Assignor::RoundRobin => "roundrobin",
            Assignor::CooperativeSticky => "cooperative-sticky",
        }
    }

    /// The assignor of this name.
    pub fn by_name(name: &str) -> Option<Self> {
        let all = [Assignor::Range, Assignor::RoundRobin, Assignor::CooperativeSticky];
        all.into_iter().find(|assignor| assignor.name() == name)
    }

    /// What each member is to read. `partitions` has the number of partitions of each topic that exists; others are passed
    /// over. Every member gets an assignment, some of them an empty one.
    ///
    /// ```
    /// use topiclog::group::{Assignor, Subscription};
    /// let reads = |topics: &[&str]| Subscription {
    ///     topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
    ///     ..Subscription::default()
    /// };
    /// let members = [("a".to_owned(), reads(&["t"])), ("b".to_owned(), reads(&["t"]))].into();
    /// let assigned = Assignor::Range.assign(&members, &[("t".to_owned(), 3)].into());
    /// assert_eq!(assigned["a"].partitions["t"], [0, 1]);
    /// assert_eq!(assigned["b"].partitions["t"], [2]);
    /// ```
    pub fn assign(
        self,
        members: &BTreeMap<String, Subscription>,
        partitions: &BTreeMap<String, u32>,
    ) -> BTreeMap<String, Assignment> {
        let places = match self {
            Assignor::Range => range(members, partitions),
            Assignor::RoundRobin => round_robin(members, partitions),
            Assignor::CooperativeSticky => cooperative_sticky(members, partitions),
        };
        let assignment = |places: BTreeSet<(String, i32)>| {
            let mut by_topic: BTreeMap<String, Vec<i32>> = BTreeMap::new();
            for (topic, partition) in places {
                by_topic.entry(topic).or_default().push(partition);
            }
            Assignment::of(by_topic)
        };
        places.into_iter().map(|(member, places)| (member, assignment(places))).collect()
    }
}

fn nobody_has_anything(members: &Members) -> Places {
    members.keys().map(|member| (member.clone(), BTreeSet::new())).collect()
}

fn subscribers<'a>(members: &'a Members, topic: &str) -> Vec<&'a String> {
    members.iter().filter(|(_, said)| said.topics.iter().any(|asked| asked == topic)).map(|(id, _)| id).collect()
}

fn numbers(count: u32) -> impl Iterator<Item = i32> {
    0..i32::try_from(count).unwrap_or(i32::MAX)
}

fn give(places: &mut Places, member: &str, topic: &str, partition: i32) {
    if let Some(of_member) = places.get_mut(member) {
        of_member.insert((topic.to_owned(), partition));
    }
}

fn range(members: &Members, topics: &Topics) -> Places {
    let mut places = nobody_has_anything(members);
    for (topic, &count) in topics {
        let readers = subscribers(members, topic);
        let Ok(shares) = u32::try_from(readers.len()) else { continue };
        if shares == 0 {
            continue;
        }
        let mut next = numbers(count);
        for (nth, reader) in (0..).zip(&readers) {
            let share = count / shares + u32::from(nth < count % shares);
            next.by_ref().take(share as usize).for_each(|partition| give(&mut places, reader, topic, partition));
        }
    }
    places
}

fn round_robin(members: &Members, topics: &Topics) -> Places {
    let mut places = nobody_has_anything(members);
    let mut turn = members.iter().cycle();
    for (topic, &count) in topics {
        if subscribers(members, topic).is_empty() {
            continue;
        }
        for partition in numbers(count) {
            let takes = |(_, said): &(&String, &Subscription)| said.topics.iter().any(|asked| asked == topic);
            if let Some((reader, _)) = turn.find(takes) {
                give(&mut places, reader, topic, partition);
            }
        }
    }
    places
}

/// Whoever got a partition in the newest generation has it; of two that say so for the same generation neither is believed.
fn owners(members: &Members, topics: &Topics) -> BTreeMap<(String, i32), String> {
    let mut claims: BTreeMap<(String, i32), (i32, Option<String>)> = BTreeMap::new();
    for (id, said) in members {
        for (topic, partitions) in &said.owned {
            let is_asked_for = said.topics.contains(topic);
            for &partition in partitions {
                let exists = topics.get(topic).is_some_and(|&count| numbers(count).any(|one| one == partition));
                if !exists || !is_asked_for {
                    continue;
                }
                let claim = claims.entry((topic.clone(), partition)).or_insert((i32::MIN, None));
                if said.generation > claim.0 || claim.1.is_none() && claim.0 == i32::MIN {
                    *claim = (said.generation, Some(id.clone()));
                } else if said.generation == claim.0 {
                    claim.1 = None;
                }
            }
        }
    }
    claims.into_iter().filter_map(|(place, (_, owner))| Some((place, owner?))).collect()
}

fn cooperative_sticky(members: &Members, topics: &Topics) -> Places {
    let owners = owners(members, topics);
    let mut places = nobody_has_anything(members);
    let mut free = Vec::new();
    for (topic, &count) in topics {
        for partition in numbers(count) {
            match owners.get(&(topic.clone(), partition)) {
                Some(owner) => give(&mut places, owner, topic, partition),
                None => free.push((topic, partition)),
            }
        }
    }
    for (topic, partition) in free {
        let readers = subscribers(members, topic);
        let least = readers.into_iter().min_by_key(|id| places.get(*id).map_or(0, BTreeSet::len));
        if let Some(reader) = least.cloned() {
            give(&mut places, &reader, topic, partition);
        }
    }
    while let Some((from, to, place)) = a_move_that_balances(members, &places) {
        if let Some(giver) = places.get_mut(&from) {
            giver.remove(&place);
        }
        give(&mut places, &to, &place.0, place.1);
    }
    // What another still has is not given to anybody before it was let go.
    for (id, of_member) in &mut places {
        of_member.retain(|place| owners.get(place).is_none_or(|owner| owner == id));
    }
    places
}

/// A partition of one who has at least two more than another who may read it as well. Each such move makes the sum of squares
/// smaller, so that they come to an end.
fn a_move_that_balances(members: &Members, places: &Places) -> Option<(String, String, (String, i32))> {
    let mut by_load: Vec<(&String, &BTreeSet<(String, i32)>)> = places.iter().collect();
    by_load.sort_by_key(|(_, of_member)| std::cmp::Reverse(of_member.len()));
    for (from, of_giver) in &by_load {
        for (to, of_taker) in by_load.iter().rev() {
            if of_giver.len() < of_taker.len() + 2 {
                break;
            }
            let takes = |topic: &String| members.get(*to).is_some_and(|said| said.topics.contains(topic));
            if let Some(place) = of_giver.iter().rev().find(|(topic, _)| takes(topic)) {
                return Some(((*from).clone(), (*to).clone(), place.clone()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads(topics: &str) -> Subscription {
        Subscription { topics: topics.split_whitespace().map(str::to_owned).collect(), ..Subscription::default() }
    }

    fn members(of: &[(&str, &str)]) -> Members {
        of.iter().map(|&(id, topics)| (id.to_owned(), reads(topics))).collect()
    }

    fn topics(of: &[(&str, u32)]) -> Topics {
        of.iter().map(|&(topic, count)| (topic.to_owned(), count)).collect()
    }

    fn check(assignor: Assignor, members: &Members, topics: &Topics, expected: &[(&str, &str)]) {
        let assigned = assignor.assign(members, topics);
        let shown = |assignment: &Assignment| {
            let places =
                assignment.partitions.iter().flat_map(|(topic, of)| of.iter().map(move |one| format!("{topic}{one}")));
            places.collect::<Vec<_>>().join(" ")
        };
        let found: Vec<_> = assigned.iter().map(|(id, assignment)| (id.clone(), shown(assignment))).collect();
        let expected: Vec<_> = expected.iter().map(|&(id, places)| (id.to_owned(), places.to_owned())).collect();
        assert_eq!(found, expected, "{assignor:?}");
    }

    #[test]
    fn ranges_keep_partitions_of_one_number_together() {
        let both = members(&[("a", "t u"), ("b", "t u")]);
        check(Assignor::Range, &both, &topics(&[("t", 3), ("u", 3)]), &[("a", "t0 t1 u0 u1"), ("b", "t2 u2")]);
        check(Assignor::Range, &both, &topics(&[("t", 1)]), &[("a", "t0"), ("b", "")]);
        check(Assignor::Range, &members(&[("a", "t"), ("b", "u")]), &topics(&[("t", 2)]), &[("a", "t0 t1"), ("b", "")]);
        check(Assignor::Range, &members(&[("a", "none")]), &topics(&[("t", 2)]), &[("a", "")]);
    }

    #[test]
    fn dealing_in_turn_passes_over_who_did_not_ask() {
        let both = members(&[("a", "t u"), ("b", "t u")]);
        check(Assignor::RoundRobin, &both, &topics(&[("t", 3), ("u", 3)]), &[("a", "t0 t2 u1"), ("b", "t1 u0 u2")]);
        let unequal = members(&[("a", "t"), ("b", "t u"), ("c", "t u v")]);
        let all = topics(&[("t", 1), ("u", 2), ("v", 3)]);
        check(Assignor::RoundRobin, &unequal, &all, &[("a", "t0"), ("b", "u0"), ("c", "u1 v0 v1 v2")]);
    }

    fn owning(mut members: Members, generation: i32, owned: &[(&str, &[i32])]) -> Members {
        for (id, partitions) in owned {
            let member = members.get_mut(*id).unwrap();
            member.owned = [("t".to_owned(), partitions.to_vec())].into();
            member.generation = generation;
        }
        members
    }

    #[test]
    fn what_moves_is_first_let_go() {
        let t = topics(&[("t", 4)]);
        let three = || members(&[("a", "t"), ("b", "t"), ("c", "t")]);
        let before = owning(three(), 1, &[("a", &[0, 1]), ("b", &[2, 3])]);
        check(Assignor::CooperativeSticky, &before, &t, &[("a", "t0"), ("b", "t2 t3"), ("c", "")]);
        let two = owning(members(&[("a", "t"), ("b", "t")]), 1, &[("a", &[0, 1, 2, 3])]);
        check(Assignor::CooperativeSticky, &two, &t, &[("a", "t0 t1"), ("b", "")]);
        let released = owning(members(&[("a", "t"), ("b", "t")]), 2, &[("a", &[0, 1])]);
        check(Assignor::CooperativeSticky, &released, &t, &[("a", "t0 t1"), ("b", "t2 t3")]);
    }

    #[test]
    fn who_was_out_for_a_while_is_not_believed() {
        let t = topics(&[("t", 2)]);
        let mut both = owning(members(&[("a", "t"), ("b", "t")]), 5, &[("b", &[0, 1])]);
        both.get_mut("a").unwrap().owned = [("t".to_owned(), vec![0])].into();
        both.get_mut("a").unwrap().generation = 4;
        check(Assignor::CooperativeSticky, &both, &t, &[("a", ""), ("b", "t0")]);
        both.get_mut("a").unwrap().generation = 5;
        check(Assignor::CooperativeSticky, &both, &t, &[("a", "t0"), ("b", "t1")]);
    }
}
