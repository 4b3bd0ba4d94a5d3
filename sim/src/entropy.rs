//! The Entropy and Compute seams: a seeded stream for each process, and processors that do the job at once.

use farshore_core::host::task::splitmix;
use farshore_core::host::{Compute, Entropy, Job};
use std::sync::Mutex;

/// SplitMix64 as a stream: small, seedable, the same everywhere.
#[derive(Clone, Debug)]
pub struct Rng(u64);

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rng {
    /// An independent stream for each (seed, purpose).
    pub fn new(seed: u64, purpose: u64) -> Self {
        Rng(splitmix(seed ^ purpose.wrapping_mul(0x517c_c1b7_2722_0a95), GAMMA))
    }
    /// The next value. Not an iterator: it never ends.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GAMMA);
        splitmix(self.0, 1)
    }
    /// In `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.draw() % bound }
    }
    /// In `low..=high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }
    /// True once in `n` times, never if `n` is 0.
    pub fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }
    /// Fills a buffer.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let value = self.draw().to_le_bytes();
            chunk.copy_from_slice(&value[..chunk.len()]);
        }
    }
}

/// Randomness of one simulated process.
pub struct SimEntropy(Mutex<Rng>);

impl SimEntropy {
    /// A stream of its own.
    pub fn new(rng: Rng) -> Self {
        SimEntropy(Mutex::new(rng))
    }
}
impl Entropy for SimEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().expect("no holder of this lock panics").fill(bytes);
    }
}

/// Runs each job where it is submitted, so that nothing depends on threads.
pub struct Inline;

impl Compute for Inline {
    fn submit(&self, job: Job) {
        job();
    }
    fn width(&self) -> usize {
        2
    }
}
