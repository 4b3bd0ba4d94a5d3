//! Receiving a shard: into a temp file while its block sums are made, and under its name only when its hash is right
//! and all of it is durable.

use super::index::{self, Entry};
use super::space::Reservation;
use super::{ShardStore, StoreError, TEMP_DIR, file_name, uncut};
use bytes::Bytes;
use farshore_core::host::{DiskFile, DiskFull, Host, compute, publish, task};
use farshore_core::id::{SessionId, ShardHash, ShardId};
use farshore_core::limits::SHARD_BLOCK_BYTES;
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::shard::{ShardHeader, ShardSums, SumBuilder, file_len};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::time::Instant;

/// A shard on its way in. Dropping it removes what was written and gives the room back.
pub struct Put {
    store: Arc<ShardStore>,
    header: ShardHeader,
    session: Option<SessionId>,
    received: u64,
    /// `None` if the store has this very shard already: then the payload is taken in and thrown away.
    upload: Option<Upload>,
}

/// What is written so far.
struct Upload {
    file: Box<dyn DiskFile>,
    sums: SumBuilder,
    temp: Temp,
}

/// The name of a temp file and the room for it; dropping removes the first and then gives back the second.
struct Temp {
    host: Host,
    name: String,
    room: Option<Reservation>,
}

impl Drop for Temp {
    fn drop(&mut self) {
        let Some(room) = self.room.take() else { return };
        // Without a runtime the process is ending, and the next start removes the file.
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (host, name) = (self.host.clone(), std::mem::take(&mut self.name));
        task::spawn(async move {
            if let Err(why) = host.disk.remove(&name).await {
                tracing::warn!(%why, name, "a temp file stays until the next start");
            }
            drop(room);
        });
    }
}

impl ShardStore {
    /// Begins to receive a shard: checks the header and sets room aside. `session` is `None` when the cluster
    /// repairs. Several puts of one shard may run at once; each is whole or absent, and the last one wins.
    pub async fn begin_put(
        self: &Arc<Self>,
        header: ShardHeader,
        session: Option<SessionId>,
    ) -> Result<Put, StoreError> {
        header.check().map_err(|e| StoreError::Refused(e.to_string()))?;
        if header.cluster != self.cluster {
            return Err(StoreError::Refused(format!("the shard belongs to cluster {}", header.cluster)));
        }
        let upload = match self.index.get(header.id)?.filter(|entry| !entry.bad) {
            Some(entry) if entry.hash == header.hash => None,
            Some(_) => {
                return Err(StoreError::Refused(format!("shard {} is here with another hash", header.id)));
            }
            None => Some(self.begin_upload(&header).await?),
        };
        Ok(Put { store: self.clone(), header, session, received: 0, upload })
    }

    /// The sound entry of this very shard, if there is one. A sound shard is never replaced by one with another hash.
    fn held(&self, header: &ShardHeader) -> Result<Option<Entry>, StoreError> {
        match self.index.get(header.id)?.filter(|entry| !entry.bad) {
            Some(entry) if entry.hash != header.hash => {
                Err(StoreError::Refused(format!("shard {} is here with another hash", header.id)))
            }
            held => Ok(held),
        }
    }

    /// A receipt for a shard that is here already, after all of it was read; `None` if it is not, or no longer whole.
    pub async fn vouch(self: &Arc<Self>, header: &ShardHeader) -> Result<Option<ShardHash>, StoreError> {
        if self.held(header)?.is_none() {
            return Ok(None);
        }
        match finish_duplicate(self, header.clone(), None).await {
            Ok(hash) => Ok(Some(hash)),
            Err(StoreError::Raced(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn begin_upload(&self, header: &ShardHeader) -> Result<Upload, StoreError> {
        let free = self.host.disk.space().await?.free.saturating_sub(self.options.reserve);
        let room = self.account.reserve(file_len(header.payload_len), self.options.capacity, free)?;
        let number = self.next_temp.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEMP_DIR}/{}-{number}", header.id);
        let temp = Temp { host: self.host.clone(), name, room: Some(room) };
        let mut file = self.host.disk.create(&temp.name).await.map_err(full)?;
        file.append(Bytes::copy_from_slice(&header.encode())).await.map_err(full)?;
        Ok(Upload { file, sums: SumBuilder::new(), temp })
    }
}

/// A disk that runs full in spite of the reservation is still a full disk.
fn full(error: std::io::Error) -> StoreError {
    match DiskFull::is(&error) {
        true => StoreError::Full { need: 1, left: 0 },
        false => StoreError::Io(error),
    }
}

impl Put {
    /// Takes the next bytes of the payload. After an error, or when cancelled, the put must be dropped.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StoreError> {
        self.received = self.received.saturating_add(bytes.len() as u64);
        if self.received > self.header.payload_len {
            return Err(StoreError::Refused(format!(
                "more than the {} bytes announced",
                self.header.payload_len
            )));
        }
        let Some(upload) = &mut self.upload else { return Ok(()) };
        upload.file.append(bytes.clone()).await.map_err(full)?;
        if bytes.len() < SHARD_BLOCK_BYTES {
            upload.sums.update(&bytes);
            return Ok(());
        }
        let mut sums = std::mem::take(&mut upload.sums);
        let hashed = compute(self.store.host.compute.as_ref(), move || {
            sums.update(&bytes);
            sums
        });
        upload.sums = hashed.await;
        Ok(())
    }

    /// Checks length and hash, makes the shard durable under its name, and gives its hash: a receipt. Cancel-safe:
    /// once the hash is right the rest is carried through.
    pub async fn finish(self) -> Result<ShardHash, StoreError> {
        if self.received != self.header.payload_len {
            let (have, need) = (self.received, self.header.payload_len);
            return Err(StoreError::Refused(format!("{have} bytes came of the {need} announced")));
        }
        uncut(async move {
            match self.upload {
                Some(upload) => finish_upload(&self.store, self.header, self.session, upload).await,
                None => finish_duplicate(&self.store, self.header, self.session).await,
            }
        })
        .await
    }
}

async fn finish_upload(
    store: &ShardStore,
    header: ShardHeader,
    session: Option<SessionId>,
    upload: Upload,
) -> Result<ShardHash, StoreError> {
    let Upload { mut file, sums, mut temp } = upload;
    let sums: ShardSums = sums.finish();
    let id = header.id;
    let hash = sums.root(id);
    if hash != header.hash && !mutant(Mutant::KeepUnchecked) {
        return Err(StoreError::WrongHash(id));
    }
    file.append(sums.encode().into()).await.map_err(full)?;

    let lock = store.lock_of(id);
    let _held = lock.lock().await;
    store.held(&header)?;
    let old = store.index.get(id)?;
    let begun = Instant::now();
    let published = publish(store.host.disk.as_ref(), file, &temp.name, &file_name(id)).await;
    store.pace.note(header.payload_len, begun);
    let entry = Entry::of(&header, session, store.host.clock.now_ms());
    if let Err(error) = published {
        note_half_published(store, id, entry, old.is_some()).await;
        return Err(full(error));
    }
    // From here on there is no temp file, and the room is taken.
    let room = temp.room.take();
    store.account.replace(old.map(|old| old.file_len), Some(entry.file_len));
    drop(room);
    store.index.write(vec![index::set(id, &entry)])?;
    store.index.flush().await?;
    Ok(hash)
}

/// A shard that got its name and may lose it in a power cut was not promised to anybody. Unless the index knows of it, as
/// one that is not to be relied on, it would stay for nothing until the next start.
async fn note_half_published(store: &ShardStore, id: ShardId, entry: Entry, known: bool) {
    if known || !matches!(store.host.disk.len(&file_name(id)).await, Ok(Some(_))) {
        return;
    }
    store.account.replace(None, Some(entry.file_len));
    let noted = store.index.write(vec![index::set(id, &Entry { bad: true, ..entry })]);
    if let Err(error) = noted {
        tracing::warn!(%id, %error, "a shard without a place in the index stays until the next start");
    }
}

/// The shard was here when the put began. A receipt says that it is here, whole, now: so it is read once more.
async fn finish_duplicate(
    store: &Arc<ShardStore>,
    header: ShardHeader,
    session: Option<SessionId>,
) -> Result<ShardHash, StoreError> {
    let id = header.id;
    store.verify(id, header.hash).await.map_err(|_| StoreError::Raced(id))?;
    let lock = store.lock_of(id);
    let _held = lock.lock().await;
    let mut entry = store.held(&header)?.ok_or(StoreError::Raced(id))?;
    // Repair sends for no session, and must not take the shard away from one.
    if session.is_some() && entry.session != session {
        entry.session = session;
        store.index.write(vec![index::set(id, &entry)])?;
        store.index.flush().await?;
    }
    Ok(header.hash)
}
