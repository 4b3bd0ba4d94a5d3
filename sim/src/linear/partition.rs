//! Cuts a history into parts that share no repository, name or session. Linearizability is local to such parts
//! (Herlihy and Wing 1990), and a search of several small parts is far shorter than one of the whole.
//! Also says in the history what the cluster does not promise; see the module.

use super::call::{Answer, Call, Op, Origin, SLOW_US};
use super::search::Timed;
use farshore_core::id::{RepoId, SessionId};
use farshore_core::topology::Name;
use std::collections::BTreeMap;

/// The parts, ready to be searched.
pub fn parts(mut history: Vec<Timed<Op>>) -> Vec<Vec<Timed<Op>>> {
    widen_lookups(&mut history);
    let mut groups = Groups::default();
    let keys: Vec<Vec<Key>> = history.iter().map(|timed| keys(&timed.op)).collect();
    keys.iter().for_each(|keys| groups.join(keys));
    let mut parts = BTreeMap::<usize, Vec<Timed<Op>>>::new();
    for (timed, keys) in history.into_iter().zip(&keys) {
        let group = keys.first().map_or(0, |key| groups.root_of(key));
        parts.entry(group).or_default().push(timed);
    }
    parts.into_values().map(prepare).collect()
}

/// Adds echoes and leaves out what nobody can notice. A part without any answer needs no order.
fn prepare(mut part: Vec<Timed<Op>>) -> Vec<Timed<Op>> {
    let echoes: Vec<_> = part.iter().filter_map(echo).collect();
    part.extend(echoes);
    let mut observed = BTreeMap::<SessionId, u64>::new();
    for timed in part.iter().filter(|timed| !matches!(timed.op.call, Call::CloseSession { .. })) {
        if let (Some(session), Some(ended)) = (timed.op.call.session(), timed.ended) {
            let last = observed.entry(session).or_default();
            *last = ended.max(*last);
        }
    }
    let matters = |timed: &Timed<Op>| match timed.op.call {
        _ if timed.ended.is_some() => true,
        // Nobody asks about the session any more.
        Call::OpenSession { session, .. } | Call::CloseSession { session } => {
            observed.get(&session).is_some_and(|last| *last > timed.began)
        }
        _ => timed.op.call.changes(),
    };
    part.retain(matters);
    part
}

/// What may be left of an attempt before the one that was answered.
fn echo(timed: &Timed<Op>) -> Option<Timed<Op>> {
    let op = &timed.op;
    let (began, ended) = op.at_us;
    let slow = ended.is_some_and(|ended| ended - began >= SLOW_US);
    let again = match (&op.call, op.answer.as_ref()?) {
        (Call::OpenSession { .. } | Call::CloseSession { .. } | Call::Change { .. }, _) => true,
        (call, answer) => call.changes() && answer.is_refusal(),
    };
    let op = Op { at_us: (began, None), answer: None, origin: Origin::Echo, ..op.clone() };
    (slow && again).then_some(Timed { began: timed.began, ended: None, op })
}

/// A lookup that was answered may have been answered from any state since its session was opened.
fn widen_lookups(history: &mut [Timed<Op>]) {
    let mut opened = BTreeMap::<SessionId, u64>::new();
    for timed in history.iter() {
        if let Call::OpenSession { session, .. } = timed.op.call {
            let first = opened.entry(session).or_insert(timed.began);
            *first = timed.began.min(*first);
        }
    }
    for timed in history.iter_mut() {
        if let (Call::Lookup { session, .. }, Some(Answer::Ordinals(_))) = (&timed.op.call, &timed.op.answer)
            && let Some(first) = opened.get(session)
        {
            timed.began = timed.began.min(*first);
        }
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Repo(RepoId),
    Name(Name),
    Session(SessionId),
}

/// Everything an operation speaks of.
fn keys(op: &Op) -> Vec<Key> {
    let answered = match &op.answer {
        Some(Answer::Repository(repo)) => Some(Key::Repo(repo.id)),
        _ => None,
    };
    let call = &op.call;
    let named = [
        call.session().map(Key::Session),
        call.repo().map(Key::Repo),
        call.name().cloned().map(Key::Name),
        answered,
    ];
    named.into_iter().flatten().collect()
}

/// Keys that were spoken of together, directly or by way of others.
#[derive(Default)]
struct Groups {
    of: BTreeMap<Key, usize>,
    parent: Vec<usize>,
}

impl Groups {
    fn join(&mut self, keys: &[Key]) {
        let roots: Vec<usize> = keys.iter().map(|key| self.root_of(key)).collect();
        for pair in roots.windows(2) {
            let (a, b) = (self.find(pair[0]), self.find(pair[1]));
            self.parent[a.max(b)] = a.min(b);
        }
    }

    fn root_of(&mut self, key: &Key) -> usize {
        let fresh = self.parent.len();
        let at = *self.of.entry(key.clone()).or_insert(fresh);
        if at == fresh {
            self.parent.push(fresh);
        }
        self.find(at)
    }

    fn find(&mut self, mut at: usize) -> usize {
        while self.parent[at] != at {
            self.parent[at] = self.parent[self.parent[at]];
            at = self.parent[at];
        }
        at
    }
}
