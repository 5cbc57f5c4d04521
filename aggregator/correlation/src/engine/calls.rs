//! Who calls whom around a verdict, so that a chain can be shown. It decides nothing.

use std::collections::{BTreeSet, VecDeque};

use tapio_schemas::{
    entity::EntityKey,
    intent::LinkKind,
    units::Micros,
    verdict::{Role, Verdict},
};

use super::Engine;

/// How far up it is looked: a chain that is longer is no picture any more.
const HOPS_MAX: u32 = 6;
/// Calls that are told of one verdict; those of entities in its evidence come first.
const CALLS_MAX: usize = 24;
/// Calls so long before the fault still belong to the picture.
const LOOK_BACK: Micros = Micros::from_secs(300);

/// Somebody called somebody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Who called.
    pub from: EntityKey,
    /// Who was called.
    pub to: EntityKey,
    /// Whether it was seen who listened there, or derived.
    pub link: LinkKind,
}

/// The calls that lead to a verdict's fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// The nearest to the fault first.
    pub calls: Vec<Call>,
    /// How many more are known at the places that were looked at.
    pub left_out: u64,
}

impl Engine {
    /// Who called the entity that failed around the fault's time, and who called those, as far as events told.
    #[must_use]
    pub fn calls_around(&self, verdict: &Verdict) -> Calls {
        let Some(fault) = verdict.first(Role::Fault) else { return Calls::default() };
        let (from, until) = (fault.first.earliest.minus(LOOK_BACK), self.watermark.max(fault.last.latest));
        let known: BTreeSet<&EntityKey> = verdict.evidence.iter().map(|line| &line.subject).collect();
        let mut told = Calls::default();
        let mut queue: VecDeque<(EntityKey, u32)> =
            self.topology.members_of(&fault.subject).into_iter().map(|member| (member, 0)).collect();
        let mut met: BTreeSet<EntityKey> = queue.iter().map(|(member, _hops)| member.clone()).collect();
        while let Some((to, hops)) = queue.pop_front() {
            let mut callers: Vec<_> =
                self.topology.callers_of(&to, &fault.first, from, until).into_iter().collect();
            let is_known = |caller: &EntityKey| {
                known.contains(caller) || known.contains(self.topology.home_of(caller, until))
            };
            callers.sort_by_key(|(caller, _link)| !is_known(caller));
            for (caller, link) in callers {
                if told.calls.len() >= CALLS_MAX {
                    told.left_out += 1;
                    continue;
                }
                if hops + 1 < HOPS_MAX && met.insert(caller.clone()) {
                    queue.push_back((caller.clone(), hops + 1));
                }
                told.calls.push(Call { from: caller, to: to.clone(), link });
            }
        }
        told
    }
}
