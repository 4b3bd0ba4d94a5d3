//! How safe the packs are, looked at page by page in the background, for the status. Every node keeps its own answer, so
//! that one survives anything.

use super::Shared;
use crate::catalogue::{CatalogueError, Safety, SafetyScan};
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::limits::{PAGE_ROWS_MAX, STATUS_PACKS_AT_ONCE_MAX};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The last finished look.
#[derive(Default)]
pub struct Surveyed(Mutex<Option<Safety>>);

impl Surveyed {
    fn set(&self, safety: Safety) {
        *self.0.lock().expect("no holder of this lock panics") = Some(safety);
    }

    /// As of now while the catalogue is small, else as of the last look; `None` before the first has ended.
    pub async fn get(&self, shared: &Shared) -> Result<Option<Safety>, CatalogueError> {
        let view = shared.view()?;
        if view.counts().packs <= STATUS_PACKS_AT_ONCE_MAX {
            let mut scan = SafetyScan::begin(&view)?;
            loop {
                if let Some(safety) = scan.step(&view, PAGE_ROWS_MAX)? {
                    return Ok(Some(safety));
                }
                tokio::task::yield_now().await;
            }
        }
        Ok(self.0.lock().expect("no holder of this lock panics").clone())
    }
}

/// Looks at one page a unit, for catalogues that are too large to look at while an operator waits.
pub struct Survey {
    shared: Arc<Shared>,
    scan: Option<SafetyScan>,
}

impl Survey {
    /// Starts with the first pack.
    pub fn new(shared: Arc<Shared>) -> Self {
        Survey { shared, scan: None }
    }
}

/// Between pages, so that a look at millions of packs leaves the replica to others.
const PAGE_PAUSE: Duration = Duration::from_millis(50);
/// Between looks.
const LOOK_PAUSE: Duration = Duration::from_secs(10);

#[async_trait]
impl Worker for Survey {
    fn name(&self) -> &'static str {
        "survey"
    }

    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        let view = self.shared.view()?;
        if view.counts().packs <= STATUS_PACKS_AT_ONCE_MAX {
            self.scan = None;
            return Ok(Pace::Idle);
        }
        let mut scan = match self.scan.take() {
            Some(scan) => scan,
            None => SafetyScan::begin(&view)?,
        };
        match scan.step(&view, PAGE_ROWS_MAX)? {
            Some(safety) => self.shared.surveyed.set(safety),
            None => {
                self.scan = Some(scan);
                return Ok(Pace::Throttled(PAGE_PAUSE));
            }
        }
        Ok(Pace::Idle)
    }

    async fn wait(&mut self) {
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}
