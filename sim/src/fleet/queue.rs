//! What is due, in the order of time; equal times in the order of their coming. Nothing is ever taken out early: an
//! event that no longer holds is recognised by whoever receives it.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Events to come.
#[derive(Clone, Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Due<E>>,
    count: u64,
}

#[derive(Clone, Debug)]
struct Due<E> {
    at: f64,
    number: u64,
    event: E,
}

impl<E> Ord for Due<E> {
    /// The heap gives the greatest first, and that shall be the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.number.cmp(&self.number))
    }
}
impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl<E> Eq for Due<E> {}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Queue { heap: BinaryHeap::new(), count: 0 }
    }
}

impl<E> Queue<E> {
    /// Adds an event.
    pub fn push(&mut self, at: f64, event: E) {
        debug_assert!(at.is_finite(), "events are due at some time");
        self.heap.push(Due { at, number: self.count, event });
        self.count += 1;
    }

    /// When the next one is due.
    pub fn next_at(&self) -> f64 {
        self.heap.peek().map_or(f64::INFINITY, |due| due.at)
    }

    /// Takes the next one.
    pub fn pop(&mut self) -> Option<(f64, E)> {
        self.heap.pop().map(|due| (due.at, due.event))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against a list that is sorted anew each time; pops in between.
        #[test]
        fn it_is_a_stable_sort_by_time(steps in prop::collection::vec(prop::option::weighted(0.7, 0u8..6), 0..80)) {
            let (mut queue, mut model) = (Queue::default(), Vec::<(f64, usize)>::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Some(at) => {
                        queue.push(at.into(), number);
                        model.push((at.into(), number));
                        model.sort_by(|a, b| a.0.total_cmp(&b.0));
                    }
                    None => {
                        let first = (!model.is_empty()).then(|| model.remove(0));
                        prop_assert_eq!(queue.pop(), first);
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
                prop_assert_eq!(queue.next_at(), model.first().map_or(f64::INFINITY, |first| first.0));
                prop_assert_eq!(queue.is_empty(), model.is_empty());
            }
        }
    }
}
