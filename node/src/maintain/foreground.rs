//! Clients come first: while a node serves some, each piece of a shard that it makes for the cluster, or adds up for another
//! node that does, is followed by a rest as long as it took.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The longest rest at a time: whoever is served at the moment may be done by then.
const REST_MAX: Duration = Duration::from_millis(500);

/// How many clients are being served.
#[derive(Default)]
pub struct Foreground(AtomicUsize);

/// One of them, while it is.
pub struct Served(Arc<Foreground>);

impl Foreground {
    /// A client is served until what this returns is dropped.
    pub fn serve(self: &Arc<Self>) -> Served {
        self.0.fetch_add(1, Ordering::Relaxed);
        Served(self.clone())
    }

    /// Whether any client is.
    pub fn is_busy(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    /// Called between two pieces of work, of which the last one took so long. Cancel-safe.
    pub async fn give_way(&self, took: Duration) {
        if self.is_busy() {
            tokio::time::sleep(took.min(REST_MAX)).await;
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn work_rests_while_a_client_is_served_and_only_then() {
        let foreground = Arc::new(Foreground::default());
        let rest = async |took| {
            let begun = Instant::now();
            foreground.give_way(Duration::from_millis(took)).await;
            begun.elapsed().as_millis() as u64
        };
        assert_eq!(rest(300).await, 0);
        let (one, two) = (foreground.serve(), foreground.serve());
        drop(one);
        assert_eq!((rest(300).await, rest(60_000).await), (300, 500));
        drop(two);
        assert_eq!(rest(300).await, 0);
    }
}
