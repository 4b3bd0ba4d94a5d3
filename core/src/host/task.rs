//! Spawning. Every task belongs to the scope of the task that spawned it, so that a simulated crash can end a whole
//! node at once, or pause it; in production there is no scope and this is `tokio::spawn`.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
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
    paused: bool,
    handles: Vec<AbortHandle>,
    /// Tasks that were woken while the scope was paused, in that order.
    parked: Vec<Waker>,
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
        let mut tasks = self.tasks();
        #[expect(clippy::disallowed_methods, reason = "this is the one home of spawning")]
        let handle = tokio::spawn(Pausable {
            scope: self.clone(),
            parked: false,
            task: Box::pin(SCOPE.scope(self.clone(), SEED.scope(Cell::new(seed), future))),
        });
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
        let mut tasks = self.tasks();
        tasks.dead = true;
        tasks.handles.drain(..).for_each(|h| h.abort());
        tasks.parked.clear();
    }

    /// Stops every task of the scope where it stands, as a stopped process or a paused machine does. Its timers go
    /// off and its wake-ups are remembered, but nothing runs before [`Scope::resume`].
    pub fn pause(&self) {
        self.tasks().paused = true;
    }

    /// Lets a paused scope go on: whatever should have run meanwhile runs now.
    pub fn resume(&self) {
        let parked = {
            let mut tasks = self.tasks();
            tasks.paused = false;
            std::mem::take(&mut tasks.parked)
        };
        parked.into_iter().for_each(Waker::wake);
    }

    /// Whether the scope is paused.
    pub fn is_paused(&self) -> bool {
        self.tasks().paused
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, Tasks> {
        self.0.tasks.lock().expect("no holder of this lock panics")
    }
}

/// A task that is not polled while its scope is paused.
struct Pausable<F> {
    scope: Scope,
    parked: bool,
    task: Pin<Box<F>>,
}

impl<F: Future> Future for Pausable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        {
            let mut tasks = this.scope.tasks();
            if tasks.paused {
                if !this.parked {
                    this.parked = true;
                    tasks.parked.push(cx.waker().clone());
                }
                return Poll::Pending;
            }
        }
        this.parked = false;
        this.task.as_mut().poll(cx)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    #[tokio::test]
    async fn a_paused_scope_stands_still_and_then_catches_up() {
        const TICK: Duration = Duration::from_millis(5);
        let (scope, ticks) = (Scope::new(1), Arc::new(AtomicU64::new(0)));
        let counted = ticks.clone();
        let task = scope.spawn(7, async move {
            for _ in 0..3 {
                sleep(TICK).await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
            Instant::now()
        });
        while ticks.load(Ordering::Relaxed) == 0 {
            sleep(TICK / 5).await;
        }
        scope.pause();
        let inner = scope.clone();
        let late = scope.spawn(8, async move { inner.is_paused() });
        sleep(TICK * 10).await;
        assert!(scope.is_paused() && !late.is_finished());
        assert_eq!(ticks.load(Ordering::Relaxed), 1, "nothing ran meanwhile");
        let resumed = Instant::now();
        scope.resume();
        assert!(!late.await.unwrap(), "a task born in the pause runs after it");
        let end = task.await.unwrap();
        assert!(
            end >= resumed + TICK,
            "the timer after the one that went off meanwhile starts at the resumption"
        );
    }

    #[tokio::test]
    async fn a_paused_scope_can_be_killed_and_resumed_again_and_again() {
        let scope = Scope::new(1);
        let (send, mut receive) = tokio::sync::mpsc::unbounded_channel();
        let task = scope.spawn(7, async move {
            let mut sum = 0;
            while let Some(n) = receive.recv().await {
                sum += n;
            }
            sum
        });
        for _ in 0..3 {
            scope.pause();
            send.send(1).unwrap();
            tokio::task::yield_now().await;
            send.send(10).unwrap();
            scope.resume();
            tokio::task::yield_now().await;
        }
        drop(send);
        assert_eq!(task.await.unwrap(), 33, "no wake-up is lost");
        let stuck = scope.spawn(7, std::future::pending::<()>());
        scope.pause();
        scope.kill();
        assert!(stuck.await.unwrap_err().is_cancelled());
        scope.resume();
    }
}
