//! Makes a history that has no order small enough to be read. Only ever weakens it: a read is left out, a change
//! loses its answer. So what is left without an order is a fault of the same history.

use super::search::{Spec, Timed, Verdict, search};

/// Most searches one reduction makes.
const SEARCHES_MAX: usize = 2_000;

/// The least of an impossible history that is still impossible, as far as a greedy search finds it.
pub fn reduce<S: Spec>(spec: &S, history: &[Timed<S::Op>], states_max: u64) -> Vec<Timed<S::Op>>
where
    S::Op: Clone,
{
    let mut search = Reducer { spec, states_max, left: SEARCHES_MAX };
    let history = search.shortest(history);
    search.thin(history)
}

struct Reducer<'a, S> {
    spec: &'a S,
    states_max: u64,
    left: usize,
}

impl<S: Spec<Op: Clone>> Reducer<'_, S> {
    fn impossible(&mut self, history: &[Timed<S::Op>]) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left > 0 && search(self.spec, history, self.states_max).verdict == Verdict::Impossible
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
        let begun = history.iter().filter(|timed| timed.began <= rank);
        begun
            .filter_map(
                |timed| if timed.ended <= Some(rank) { Some(timed.clone()) } else { self.weaker(timed) },
            )
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
