//! Hyper's tasks belong to the scope of the node or client that talks: one executor for both directions. It never
//! starts a task of its own.

use farshore_core::host::task;
use std::future::Future;

/// Spawns through the task seam, so that a simulated crash also ends connection and stream tasks.
#[derive(Clone, Copy, Debug)]
pub struct Scoped;

impl<F> hyper::rt::Executor<F> for Scoped
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        drop(task::spawn(future));
    }
}
