//! Chunks that are looked at, kept as plaintext up to a bound, those used last. Whoever wants a chunk that somebody else is
//! fetching waits for it. Trees come from here too: listing a directory opens each of its nodes once, and not once a name.

use crate::error::{Error, Result};
use crate::fetch::{ChunkReader, unknown};
use crate::format::content::ContentIter;
use crate::format::{ChunkSource, Content, Placed};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::catalogue::PackKind;
use farshore_core::host::task;
use farshore_core::id::ChunkId;
use farshore_core::limits::{CHUNK_BYTES_MAX, VIEW_CACHE_BYTES};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// Chunks fetched ahead at most, however small they are.
const AHEAD_MAX: usize = 64;

type Fetched = std::result::Result<Bytes, Arc<Error>>;
/// What becomes of a chunk that is being fetched; `None` until it is known.
type Coming = watch::Receiver<Option<Fetched>>;

/// Reads chunks through a bounded cache.
pub struct Chunks {
    reader: Arc<ChunkReader>,
    trees: Arc<dyn ChunkSource>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// With the time each was used last, in uses of the cache.
    kept: BTreeMap<ChunkId, (Bytes, u64)>,
    by_use: BTreeMap<u64, ChunkId>,
    uses: u64,
    bytes: usize,
    coming: BTreeMap<ChunkId, Coming>,
}

impl Chunks {
    /// Nothing kept yet. Trees are read through `trees`, contents of files through `reader`.
    pub fn new(reader: Arc<ChunkReader>, trees: Arc<dyn ChunkSource>) -> Self {
        Chunks { reader, trees, state: Arc::default() }
    }

    /// Bytes `range` of a file of this length. What follows, up to `to`, is fetched if something has to be fetched anyway.
    pub async fn read(
        self: &Arc<Self>,
        content: &Content,
        size: u64,
        range: Range<u64>,
        to: u64,
    ) -> Result<Vec<Bytes>> {
        let wrong = || Error::corrupt("file", "its chunks do not make up its length");
        let mut iter = ContentIter::at(self.clone(), content, range.start).await?;
        let (mut wanted, mut ahead) = (Vec::<Placed>::new(), Vec::new());
        while iter.offset() < to {
            let placed = iter.next().await?.ok_or_else(wrong)?;
            let end = placed.offset + u64::from(placed.len);
            if placed.len == 0 || placed.len as usize > CHUNK_BYTES_MAX || end > size {
                return Err(wrong());
            }
            match placed.offset < range.end {
                true => wanted.push(placed),
                false if ahead.len() < AHEAD_MAX => ahead.push(placed.id),
                false => break,
            }
        }
        let coming = self.ask(&wanted, &ahead);
        let mut pieces = Vec::new();
        for (placed, coming) in wanted.iter().zip(coming) {
            let bytes = arrived(coming, &placed.id).await.map_err(|e| Error::at(&"contents", e))?;
            if bytes.len() != placed.len as usize {
                return Err(wrong());
            }
            let from = range.start.saturating_sub(placed.offset) as usize;
            let to = (range.end - placed.offset).min(u64::from(placed.len)) as usize;
            pieces.push(bytes.slice(from.min(to)..to));
        }
        Ok(pieces)
    }

    /// What is kept or coming for each wanted chunk. What is neither is fetched from here on, all together. What is ahead is
    /// fetched once half of it is not there yet, so that it comes in large pieces.
    fn ask(&self, wanted: &[Placed], ahead: &[ChunkId]) -> Vec<Coming> {
        let mut begun = Fetching { state: self.state.clone(), order: Vec::new(), tell: BTreeMap::new() };
        let mut state = self.state();
        let all = wanted.iter().map(|placed| state.answer(&placed.id, &mut begun)).collect();
        let lacking: Vec<&ChunkId> = ahead.iter().filter(|id| !state.has(id)).collect();
        if lacking.len() * 2 >= ahead.len() {
            lacking.into_iter().for_each(|id| drop(state.answer(id, &mut begun)));
        }
        drop(state);
        if !begun.order.is_empty() {
            task::spawn(begun.run(self.reader.clone()));
        }
        all
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Bytes kept, and chunks on their way.
    #[cfg(test)]
    pub fn filled(&self) -> (usize, usize) {
        let state = self.state();
        (state.bytes, state.coming.len())
    }
}

#[async_trait]
impl ChunkSource for Chunks {
    async fn chunk(&self, id: &ChunkId) -> Result<Bytes> {
        if let Some(bytes) = self.state().used(id) {
            return Ok(bytes);
        }
        let bytes = self.trees.chunk(id).await?;
        self.state().keep(*id, bytes.clone());
        Ok(bytes)
    }
}

impl State {
    fn has(&self, id: &ChunkId) -> bool {
        self.kept.contains_key(id) || self.coming.contains_key(id)
    }

    fn used(&mut self, id: &ChunkId) -> Option<Bytes> {
        let (bytes, last) = self.kept.get_mut(id)?;
        self.by_use.remove(last);
        self.uses += 1;
        *last = self.uses;
        self.by_use.insert(self.uses, *id);
        Some(bytes.clone())
    }

    fn keep(&mut self, id: ChunkId, bytes: Bytes) {
        if self.used(&id).is_some() {
            return;
        }
        self.uses += 1;
        self.bytes += bytes.len();
        self.by_use.insert(self.uses, id);
        self.kept.insert(id, (bytes, self.uses));
        while self.bytes > VIEW_CACHE_BYTES
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            let gone = self.kept.remove(&oldest);
            self.bytes -= gone.map_or(0, |(bytes, _)| bytes.len());
        }
    }

    fn answer(&mut self, id: &ChunkId, begun: &mut Fetching) -> Coming {
        if let Some(bytes) = self.used(id) {
            return watch::channel(Some(Ok(bytes))).1;
        }
        if let Some(coming) = self.coming.get(id) {
            return coming.clone();
        }
        let (tell, coming) = watch::channel(None);
        self.coming.insert(*id, coming.clone());
        begun.order.push(*id);
        begun.tell.insert(*id, tell);
        coming
    }
}

/// Chunks that are being fetched. It goes on when nobody waits any more: what was asked for is asked for again soon.
struct Fetching {
    state: Arc<Mutex<State>>,
    order: Vec<ChunkId>,
    tell: BTreeMap<ChunkId, watch::Sender<Option<Fetched>>>,
}

impl Fetching {
    async fn run(mut self, reader: Arc<ChunkReader>) {
        let why = match reader.plan(&self.order).await {
            Ok(plan) => {
                let mut reading = reader.start(PackKind::Data, plan);
                while let Some(fetched) = reading.next().await {
                    fetched.into_iter().for_each(|(id, fetched)| self.told(id, fetched));
                }
                None
            }
            Err(error) => Some(Arc::new(error)),
        };
        // Without an error the plan has left them out.
        for id in std::mem::take(&mut self.order) {
            let why = why.clone().unwrap_or_else(|| Arc::new(unknown(&id)));
            self.told(id, Err(why));
        }
    }

    /// Only the first word about a chunk counts.
    fn told(&mut self, id: ChunkId, fetched: Fetched) {
        let Some(tell) = self.tell.remove(&id) else { return };
        let mut state = self.state.lock().expect("no holder of this lock panics");
        state.coming.remove(&id);
        if let Ok(bytes) = &fetched {
            state.keep(id, bytes.clone());
        }
        drop(state);
        tell.send_replace(Some(fetched));
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        // Cut off: whoever waits hears it, and whoever comes later asks anew.
        if let Ok(mut state) = self.state.lock() {
            self.tell.keys().for_each(|id| {
                state.coming.remove(id);
            });
        }
    }
}

async fn arrived(mut coming: Coming, id: &ChunkId) -> Fetched {
    let fetched = coming.wait_for(Option::is_some).await.map(|fetched| fetched.clone());
    fetched.ok().flatten().unwrap_or_else(|| Err(Arc::new(unknown(id))))
}
