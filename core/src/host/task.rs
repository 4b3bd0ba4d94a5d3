//! Spawning. Every task belongs to the scope of the task that spawned it, so that a simulated crash can end a whole
//! node at once; in production there is no scope and this is `tokio::spawn`.

use std::cell::Cell;
use std::future::Future;
use std::sync::{Arc, Mutex};
use tokio::task::{AbortHandle, JoinHandle};

/// The tasks of one simulated process, and the root of its randomness.
#[derive(Clone)]
pub struct Scope(Arc<Inner>);

struct Inner {
    label: u64,
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    dead: bool,
    handles: Vec<AbortHandle>,
}

tokio::task_local! {
    static SCOPE: Scope;
    static SEED: Cell<u64>;
}

thread_local! {
    static STRICT: Cell<bool> = const { Cell::new(false) };
}

/// Finished tasks are forgotten once this many handles have piled up.
const HANDLES_BEFORE_TIDY: usize = 512;

/// One step of SplitMix64 (Steele, Lea, Flood 2014): a well-mixed value from a counter.
pub fn splitmix(seed: u64, gamma: u64) -> u64 {
    let z = seed.wrapping_add(gamma);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const GAMMA_CHILD: u64 = 0x9e37_79b9_7f4a_7c15;
const GAMMA_NEXT: u64 = 0x6a09_e667_f3bc_c909;

/// The next value of the running task's own random stream, or `None` outside any scope.
pub fn task_random() -> Option<u64> {
    SEED.try_with(|cell| {
        let seed = cell.get();
        cell.set(splitmix(seed, GAMMA_NEXT));
        splitmix(seed, 1)
    })
    .ok()
}

/// The label of the running scope; 0 outside.
pub fn scope_label() -> u64 {
    SCOPE.try_with(|scope| scope.0.label).unwrap_or(0)
}

/// In strict mode (simulation) a spawn outside a scope is a bug and panics. Applies to the calling thread.
pub fn set_strict(strict: bool) {
    STRICT.with(|cell| cell.set(strict));
}

impl Scope {
    /// A new, live scope.
    pub fn new(label: u64) -> Self {
        Scope(Arc::new(Inner { label, tasks: Mutex::default() }))
    }

    /// Starts a root task of this scope with its own random stream.
    pub fn spawn<F>(&self, seed: u64, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let mut tasks = self.0.tasks.lock().expect("no holder of this lock panics");
        #[expect(clippy::disallowed_methods, reason = "this is the one home of spawning")]
        let handle = tokio::spawn(SCOPE.scope(self.clone(), SEED.scope(Cell::new(seed), future)));
        if tasks.dead {
            handle.abort();
            return handle;
        }
        if tasks.handles.len() >= HANDLES_BEFORE_TIDY {
            tasks.handles.retain(|h| !h.is_finished());
        }
        tasks.handles.push(handle.abort_handle());
        handle
    }

    /// Ends every task of the scope; none runs again, and later spawns are stillborn.
    pub fn kill(&self) {
        let mut tasks = self.0.tasks.lock().expect("no holder of this lock panics");
        tasks.dead = true;
        tasks.handles.drain(..).for_each(|h| h.abort());
    }
}

/// Starts a task in the current scope.
///
/// # Panics
/// In strict mode, outside any scope.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let Ok(scope) = SCOPE.try_with(Scope::clone) else {
        assert!(!STRICT.with(Cell::get), "a task was spawned outside any scope");
        #[expect(clippy::disallowed_methods, reason = "this is the one home of spawning")]
        return tokio::spawn(future);
    };
    let seed = SEED.with(|cell| {
        let seed = cell.get();
        cell.set(splitmix(seed, GAMMA_NEXT));
        splitmix(seed, GAMMA_CHILD)
    });
    scope.spawn(seed, future)
}

/// A task that ends when its handle is dropped, for work that must not outlive its owner.
#[derive(Debug)]
pub struct Owned(JoinHandle<()>);

impl Owned {
    /// Spawns a task owned by the returned handle.
    pub fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Owned(spawn(future))
    }
}
impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}
