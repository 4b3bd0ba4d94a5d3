//! Makes a history that has no order small enough to be read. Only ever weakens it: a read is left out, a change
//! loses its answer. So what is left without an order is a fault of the same history.

use super::search::{Spec, Timed, Verdict, search};

/// States one reduction may visit. What is left then is left.
const STATES_MAX: u64 = 30_000;
/// States one search of it may visit; one that needs more does not count as impossible.
const STATES_EACH_MAX: u64 = 1_000;

/// The least of an impossible history that is still impossible, as far as a greedy search finds it.
///
/// What a specification takes from a history beforehand it must take from the smaller one again: `spec_of` does.
pub fn reduce<S: Spec<Op: Clone>>(
    spec_of: impl Fn(&[Timed<S::Op>]) -> S,
    history: &[Timed<S::Op>],
) -> Vec<Timed<S::Op>> {
    let mut search = Reducer { spec: spec_of(history), spec_of, left: STATES_MAX };
    let history = search.shortest(history);
    search.thin(history)
}

struct Reducer<S, F> {
    spec: S,
    spec_of: F,
    left: u64,
}

impl<S: Spec<Op: Clone>, F: Fn(&[Timed<S::Op>]) -> S> Reducer<S, F> {
    fn impossible(&mut self, history: &[Timed<S::Op>]) -> bool {
        let found = search(&(self.spec_of)(history), history, self.left.min(STATES_EACH_MAX));
        self.left = self.left.saturating_sub(found.states);
        found.verdict == Verdict::Impossible
    }

    /// Everything up to the first answer that no order explains.
    fn shortest(&mut self, history: &[Timed<S::Op>]) -> Vec<Timed<S::Op>> {
        let mut ends: Vec<u64> = history.iter().filter_map(|timed| timed.ended).collect();
        ends.sort_unstable();
        // Beginnings of a history with an order have one too, so the first bad answer can be found by halving.
        let (mut good, mut bad) = (0, ends.len());
        while bad - good > 1 {
            let middle = (good + bad) / 2;
            match self.impossible(&self.until(history, ends[middle - 1])) {
                true => bad = middle,
                false => good = middle,
            }
        }
        let Some(end) = bad.checked_sub(1).and_then(|at| ends.get(at)) else { return history.to_vec() };
        let short = self.until(history, *end);
        if self.impossible(&short) { short } else { history.to_vec() }
    }

    /// The history as it stood at a rank.
    fn until(&self, history: &[Timed<S::Op>], rank: u64) -> Vec<Timed<S::Op>> {
        let whole = |timed: &Timed<S::Op>| timed.ended.is_none_or(|ended| ended <= rank);
        let begun = history.iter().filter(|timed| timed.began <= rank);
        begun
            .filter_map(|timed| if whole(timed) { Some(timed.clone()) } else { self.weaker(timed) })
            .collect()
    }

    fn weaker(&self, timed: &Timed<S::Op>) -> Option<Timed<S::Op>> {
        self.spec.forget(&timed.op).map(|op| Timed { began: timed.began, ended: None, op })
    }

    /// Weakens as many operations as it can, many at a time at first.
    fn thin(&mut self, mut history: Vec<Timed<S::Op>>) -> Vec<Timed<S::Op>> {
        let mut step = history.len().next_power_of_two();
        while step > 0 {
            let mut at = 0;
            while at < history.len() {
                let end = (at + step).min(history.len());
                let weak = history[at..end].iter().filter(|timed| timed.ended.is_some());
                if weak.count() > 0 {
                    let kept = history[at..end].iter().filter_map(|timed| self.weaker(timed));
                    let fewer: Vec<_> = history[..at]
                        .iter()
                        .cloned()
                        .chain(kept)
                        .chain(history[end..].iter().cloned())
                        .collect();
                    if self.impossible(&fewer) {
                        at = end - (history.len() - fewer.len());
                        history = fewer;
                        continue;
                    }
                }
                at = end;
            }
            step /= 2;
        }
        history
    }
}
