//! Things that are dear to make, such as compressors, lent to one job after another instead of being made for each.
//! Which job gets which one never shows in a result.

use std::sync::{Mutex, MutexGuard};

/// As many things as were ever out at the same time; empty at first.
#[derive(Debug)]
pub struct Spare<T>(Mutex<Vec<T>>);

impl<T> Spare<T> {
    /// Does `work` with a thing that nobody else has meanwhile, made by `make` if there is none.
    pub fn lend<R>(&self, make: impl FnOnce() -> T, work: impl FnOnce(&mut T) -> R) -> R {
        let free = self.all().pop();
        let mut thing = free.unwrap_or_else(make);
        let done = work(&mut thing);
        self.all().push(thing);
        done
    }

    /// Takes a thing for good.
    pub fn take(&self) -> Option<T> {
        self.all().pop()
    }

    /// Adds one.
    pub fn give(&self, thing: T) {
        self.all().push(thing);
    }

    fn all(&self) -> MutexGuard<'_, Vec<T>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl<T> Default for Spare<T> {
    fn default() -> Self {
        Spare(Mutex::default())
    }
}
