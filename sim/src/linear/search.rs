//! The search for an order: Wing and Gong's (1993), with Lowe's memory of where it has been (2017; Horn and Kroening
//! 2015 keep the same pairs). Knows nothing of catalogues. Bounded: a history too tangled is undecided, never passed.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash};

/// What operations do when they come one after the other.
pub trait Spec {
    /// Everything that earlier operations can have changed.
    type State: Clone + Eq + Hash;
    /// A call together with what it answered, if anybody saw that.
    type Op;
    /// Before the first operation.
    fn begin(&self) -> Self::State;
    /// The state after the operation; `None` if it cannot answer like this here. An operation without an answer is
    /// possible everywhere.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;
    /// Whether the operation, where it changes nothing, would change nothing anywhere later either.
    fn settles(&self, op: &Self::Op) -> bool;
    /// Whether an unanswered operation, put in order, may matter to one that comes right after it: whether that one
    /// would answer otherwise without it, or leave it another effect.
    fn matters(&self, open: &Self::Op, next: &Self::Op) -> bool;
    /// What is left of an operation if its answer is forgotten: `None` if it cannot have changed anything.
    fn forget(&self, op: &Self::Op) -> Option<Self::Op>;
}

/// An operation and when it ran. Ranks are positions in the order of all events; what ended before another began comes
/// before it.
#[derive(Clone, Debug)]
pub struct Timed<T> {
    /// Rank of the call.
    pub began: u64,
    /// Rank of the answer. Without one, the operation may take effect at any time later, or never.
    pub ended: Option<u64>,
    /// Call and answer.
    pub op: T,
}

/// What a search has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none.
    Impossible,
    /// The budget was used up.
    Undecided,
}

/// A verdict and what it cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Search {
    /// What was found.
    pub verdict: Verdict,
    /// States visited.
    pub states: u64,
}

/// Looks for an order that explains every answer, visiting at most `states_max` states.
pub fn search<S: Spec>(spec: &S, history: &[Timed<S::Op>], states_max: u64) -> Search {
    let mut walk = Walk::new(spec, history);
    let verdict = walk.run(states_max);
    Search { verdict, states: walk.states }
}

/// A point of the search: some operations are in order, these may come next.
struct Point<State> {
    state: State,
    /// Operations put in order on arrival, since they answer so here and settle: whatever order works with such an
    /// operation later works with it here, so there is nothing to go back to.
    settled: Vec<usize>,
    /// What may come next: answered operations first, since what nobody has seen need not have happened.
    next: Vec<usize>,
    tried: usize,
    /// Unanswered operations just put in order that have not mattered yet. An answered operation to which one of them
    /// does not matter is not taken before they have: the same order with that one moved back is as good.
    idle: Vec<usize>,
}

/// Which operations are in order, what came of them, and what has not mattered yet.
type Place<State> = (Box<[u64]>, State, Vec<usize>);

struct Walk<'a, S: Spec> {
    spec: &'a S,
    history: &'a [Timed<S::Op>],
    line: Line,
    done: Vec<u64>,
    /// Answered operations that are not in order yet.
    owed: usize,
    been: HashSet<Place<S::State>, BuildHasherDefault<DefaultHasher>>,
    states: u64,
}

impl<'a, S: Spec> Walk<'a, S> {
    fn new(spec: &'a S, history: &'a [Timed<S::Op>]) -> Self {
        Walk {
            spec,
            history,
            line: Line::new(history),
            done: vec![0; history.len().div_ceil(64)],
            owed: history.iter().filter(|timed| timed.ended.is_some()).count(),
            been: HashSet::default(),
            states: 0,
        }
    }

    fn run(&mut self, states_max: u64) -> Verdict {
        let mut path = vec![self.arrive(self.spec.begin(), Vec::new())];
        // The operation between each point of the path and the next.
        let mut steps = Vec::new();
        while let Some(point) = path.last_mut() {
            if self.owed == 0 {
                return Verdict::Linearizable;
            }
            if self.states > states_max {
                return Verdict::Undecided;
            }
            match self.go_on(point) {
                Some((op, state)) => {
                    let idle = self.idle_after(&point.idle, op);
                    self.put(op);
                    steps.push(op);
                    let point = self.arrive(state, idle);
                    path.push(point);
                }
                None => {
                    let settled = std::mem::take(&mut point.settled);
                    settled.into_iter().rev().for_each(|op| self.take_back(op));
                    path.pop();
                    if let Some(op) = steps.pop() {
                        self.take_back(op);
                    }
                }
            }
        }
        Verdict::Impossible
    }

    /// A new point, or a dead end if the search has been there.
    fn arrive(&mut self, state: S::State, mut idle: Vec<usize>) -> Point<S::State> {
        self.states += 1;
        let settled = self.settle(&state);
        let mut open = true;
        if let Some(first) = settled.first() {
            idle = self.idle_after(&idle, *first);
            open = idle.is_empty();
        }
        let fresh = open && self.been.insert((self.done.clone().into(), state.clone(), idle.clone()));
        let mut next = if fresh { self.line.first() } else { Vec::new() };
        next.sort_by_key(|op| self.history[*op].ended.unwrap_or(u64::MAX));
        Point { state, settled, next, tried: 0, idle }
    }

    fn idle_after(&self, idle: &[usize], next: usize) -> Vec<usize> {
        let timed = &self.history[next];
        let still = |open: &usize| !self.spec.matters(&self.history[*open].op, &timed.op);
        let fresh = timed.ended.is_none().then_some(next);
        idle.iter().copied().filter(still).chain(fresh).collect()
    }

    fn settle(&mut self, state: &S::State) -> Vec<usize> {
        let mut settled = Vec::new();
        loop {
            let history = self.history;
            let calm = |op: &usize| {
                let timed = &history[*op];
                timed.ended.is_some()
                    && self.spec.settles(&timed.op)
                    && self.spec.step(state, &timed.op).as_ref() == Some(state)
            };
            let found: Vec<usize> = self.line.first().into_iter().filter(calm).collect();
            if found.is_empty() {
                return settled;
            }
            found.iter().for_each(|op| self.put(*op));
            settled.extend(found);
        }
    }

    fn go_on(&self, point: &mut Point<S::State>) -> Option<(usize, S::State)> {
        while let Some(op) = point.next.get(point.tried).copied() {
            point.tried += 1;
            let timed = &self.history[op];
            if timed.ended.is_some() && !self.idle_after(&point.idle, op).is_empty() {
                continue;
            }
            if let Some(state) = self.spec.step(&point.state, &timed.op)
                && (timed.ended.is_some() || state != point.state)
            {
                return Some((op, state));
            }
        }
        None
    }

    fn put(&mut self, op: usize) {
        self.line.lift(op);
        self.done[op / 64] |= 1 << (op % 64);
        self.owed -= usize::from(self.history[op].ended.is_some());
    }

    fn take_back(&mut self, op: usize) {
        self.line.lower(op);
        self.done[op / 64] &= !(1 << (op % 64));
        self.owed += usize::from(self.history[op].ended.is_some());
    }
}

/// Calls and answers in their order, as a list that operations can be taken out of and put back into, last out first
/// in. Entry 0 is both ends.
struct Line {
    next: Vec<usize>,
    previous: Vec<usize>,
    /// Whose call (`Ok`) or answer (`Err`) an entry is.
    whose: Vec<Result<usize, usize>>,
    call: Vec<usize>,
    answer: Vec<Option<usize>>,
}

impl Line {
    fn new<T>(history: &[Timed<T>]) -> Self {
        let calls = history.iter().enumerate().map(|(op, timed)| (timed.began, false, op));
        let answers = history.iter().enumerate().filter_map(|(op, timed)| Some((timed.ended?, true, op)));
        let mut entries: Vec<(u64, bool, usize)> = calls.chain(answers).collect();
        // At the same rank a call comes first: the two overlap.
        entries.sort_unstable();
        let len = entries.len() + 1;
        let mut line = Line {
            next: (1..=len).map(|at| at % len).collect(),
            previous: (0..len).map(|at| (at + len - 1) % len).collect(),
            whose: vec![Err(usize::MAX)],
            call: vec![0; history.len()],
            answer: vec![None; history.len()],
        };
        for (at, (_, is_answer, op)) in (1..).zip(entries) {
            line.whose.push(if is_answer { Err(op) } else { Ok(op) });
            match is_answer {
                true => line.answer[op] = Some(at),
                false => line.call[op] = at,
            }
        }
        line
    }

    /// Operations that began before any other ended.
    fn first(&self) -> Vec<usize> {
        let mut first = Vec::new();
        let mut at = self.next[0];
        while let Ok(op) = self.whose[at] {
            first.push(op);
            at = self.next[at];
        }
        first
    }

    fn lift(&mut self, op: usize) {
        let entries = [Some(self.call[op]), self.answer[op]];
        for at in entries.into_iter().flatten() {
            let (previous, next) = (self.previous[at], self.next[at]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
    }

    fn lower(&mut self, op: usize) {
        let entries = [self.answer[op], Some(self.call[op])];
        for at in entries.into_iter().flatten() {
            let (previous, next) = (self.previous[at], self.next[at]);
            self.next[previous] = at;
            self.previous[next] = at;
        }
    }
}
