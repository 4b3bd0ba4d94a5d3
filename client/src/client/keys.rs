//! Keys of a repository: which slots there are, and changing them. Every change is a compare-and-set on the whole list, and
//! whatever was written is opened before and after it, so that nobody is locked out by a slot that does not open.

use super::{Client, Repository, SealedRepository};
use crate::crypto::{
    Epochs, KdfParams, MasterKey, RepoKeys, Secret, SlotInfo, SlotNote, Unlocked, WrongSecret, describe,
    is_ring, open_slots, reopen, rewrap, slot_id, wrap,
};
use crate::error::{Error, Result};
use crate::format::RepoConfig;
use crate::keyring::epochs_of;
use farshore_core::catalogue::{RepoChange, RepoRecord};
use farshore_core::host::compute;
use farshore_core::id::RepoId;
use farshore_core::limits::KEY_SLOTS_MAX;

/// A secret that is to become a key, what it costs to try one, and what its slot says of itself.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// What will open the repository.
    pub secret: Secret,
    /// Costs; they concern passphrases alone.
    pub kdf: KdfParams,
    /// Who, where and when.
    pub note: SlotNote,
}

/// A key of a repository.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its slot.
    pub slot: SlotInfo,
    /// Whether the repository was opened with it.
    pub current: bool,
}

impl Client {
    /// Opens a repository that was found, with whatever secret there is.
    pub async fn unlock_with(&self, sealed: SealedRepository, secret: Secret) -> Result<Repository> {
        let SealedRepository(record) = sealed;
        let unlocked = self.open_with(&record, secret).await?;
        let keys = RepoKeys::of(record.id, &epochs_of(&record, &unlocked)?);
        let config = RepoConfig::open(&keys, &record.sealed_config)?;
        Ok(self.repository(record, unlocked, keys, config))
    }

    /// Tries the slots of a record, where it is not in the way of anything else.
    async fn open_with(&self, record: &RepoRecord, secret: Secret) -> Result<Unlocked> {
        let (repo, slots) = (record.id, record.key_slots.clone());
        let opened = move || open_slots(repo, &slots, &secret);
        let opened = compute(self.0.host.compute.as_ref(), opened).await;
        opened.map_err(|WrongSecret| Error::WrongPassword(record.name.to_string()))
    }

    /// A slot for a new key, which was opened once.
    pub(super) async fn new_slot(
        &self,
        repo: RepoId,
        root: &MasterKey,
        new: &NewKey,
    ) -> Result<(Vec<u8>, Unlocked)> {
        let (root, new, entropy) = (root.clone(), new.clone(), self.0.host.entropy.clone());
        let made = move || {
            let slot =
                wrap(repo, &root, &new.secret, new.kdf, &new.note, entropy.as_ref()).ok_or_else(|| {
                    Error::Invalid("the costs, the user or the host of this key are out of bounds".into())
                })?;
            let opened = open_slots(repo, std::slice::from_ref(&slot), &new.secret);
            match opened.ok().filter(|opened| opened.root == root) {
                Some(opened) => Ok((slot, opened)),
                None => Err(unopened("right after it was made")),
            }
        };
        compute(self.0.host.compute.as_ref(), made).await
    }
}

/// A slot that holds back what it should give.
fn unopened(when: &str) -> Error {
    Error::corrupt(
        "the new key slot",
        format!("it does not open {when}: this machine or the cluster is failing"),
    )
}

impl Repository {
    /// Its keys.
    pub async fn keys(&self) -> Result<Vec<Key>> {
        let (record, unlocked) = self.0.ring.present().await?;
        let slots = describe(record.id, &unlocked.root, &record.key_slots);
        Ok(slots.into_iter().map(|slot| Key { current: slot.id == unlocked.slot, slot }).collect())
    }

    /// Adds a key.
    pub async fn add_key(&self, new: &NewKey) -> Result<SlotInfo> {
        let (record, unlocked) = self.0.ring.present().await?;
        if record.key_slots.len() >= KEY_SLOTS_MAX {
            let why =
                format!("the repository has {} keys already; remove one first", self.keys().await?.len());
            return Err(Error::Invalid(why));
        }
        let (slot, _) = self.client().new_slot(record.id, &unlocked.root, new).await?;
        let slots = [record.key_slots.as_slice(), &[slot]].concat();
        let (info, _) = self.write_slots(&record, slots, &unlocked.root, new).await?;
        Ok(info)
    }

    /// Puts a new key in the place of the one that the repository was opened with, in one step, and goes on with it.
    pub async fn change_key(&self, new: &NewKey) -> Result<SlotInfo> {
        let (record, unlocked) = self.0.ring.present().await?;
        let (slot, _) = self.client().new_slot(record.id, &unlocked.root, new).await?;
        let mut slots = record.key_slots.clone();
        let own = slots.iter_mut().find(|bytes| slot_id(bytes) == unlocked.slot);
        *own.expect("it was opened just now") = slot;
        let (info, opened) = self.write_slots(&record, slots, &unlocked.root, new).await?;
        self.0.ring.use_slot(opened);
        Ok(info)
    }

    /// Removes the key whose id begins so. The one in use is refused, and with it the last one.
    pub async fn remove_key(&self, id: &str) -> Result<SlotInfo> {
        let (record, unlocked) = self.0.ring.present().await?;
        let known = describe(record.id, &unlocked.root, &record.key_slots);
        let fits: Vec<&SlotInfo> = known.iter().filter(|slot| slot.id.to_string().starts_with(id)).collect();
        let gone = match fits.as_slice() {
            [one] if !id.is_empty() => (*one).clone(),
            [] => {
                return Err(Error::Invalid(format!(
                    "no key has the id {id:?}; list them with `farshore key list`"
                )));
            }
            _ => return Err(Error::Invalid(format!("key id {id:?} fits several; give more digits"))),
        };
        if gone.id == unlocked.slot {
            return Err(Error::Invalid(format!(
                "key {} is the one in use: open the repository with another one to remove it",
                gone.id
            )));
        }
        let slots = record.key_slots.iter().filter(|bytes| slot_id(bytes) != gone.id).cloned().collect();
        self.set_slots(&record, slots).await?;
        Ok(gone)
    }

    /// Begins a new epoch: what is sealed from now on is sealed with keys that nobody has who had no key of now, whatever he has
    /// kept. Nothing that is stored is written anew, and all of it stays readable. Returns the number of the epoch, from 0,
    /// and the keys that open it: exactly those there were.
    pub async fn rotate_keys(&self, note: &SlotNote) -> Result<(u16, Vec<SlotInfo>)> {
        let (record, unlocked) = self.0.ring.present().await?;
        let (repo, entropy) = (record.id, self.host().entropy.as_ref());
        let (root, secret) = (MasterKey::new(entropy), MasterKey::new(entropy));
        let epochs = epochs_of(&record, &unlocked)?.and_another(secret);
        let epochs = epochs.ok_or_else(|| {
            Error::Invalid("the keys of this repository were rotated as often as they may be".into())
        })?;
        let old: Vec<_> = record.key_slots.iter().filter(|bytes| !is_ring(bytes)).cloned().collect();
        if old.len() >= KEY_SLOTS_MAX {
            return Err(Error::Invalid(format!("the repository has {KEY_SLOTS_MAX} keys; remove one first")));
        }
        let slots = rewrap(repo, &old, &unlocked, &root, note, entropy);
        let mut slots = slots.map_err(|why| Error::Invalid(why.to_string()))?;
        slots.push(epochs.seal(repo, &root, entropy));
        let opens = |slots: &[Vec<u8>]| {
            let again = reopen(repo, slots, &unlocked).ok().filter(|again| again.root == root);
            again.filter(|again| Epochs::open(repo, &again.root, slots).as_ref() == Ok(&epochs))
        };
        if opens(&slots).is_none() {
            return Err(unopened("right after it was made"));
        }
        self.set_slots(&record, slots).await?;
        let (written, _) = self.0.ring.present().await?;
        let now = opens(&written.key_slots).ok_or_else(|| unopened("as it was stored"))?;
        self.0.ring.use_slot(now);
        Ok((epochs.newest(), describe(repo, &root, &written.key_slots)))
    }

    async fn set_slots(&self, seen: &RepoRecord, slots: Vec<Vec<u8>>) -> Result<()> {
        self.change(RepoChange::SetKeySlots { expected: seen.slots_hash(), slots }).await.map(drop)
    }

    /// Writes slots among which there is one for `new`, and opens it as it then lies in the catalogue.
    async fn write_slots(
        &self,
        seen: &RepoRecord,
        slots: Vec<Vec<u8>>,
        root: &MasterKey,
        new: &NewKey,
    ) -> Result<(SlotInfo, Unlocked)> {
        self.set_slots(seen, slots).await?;
        let written = self.client().0.api.get_repository(self.name()).await?;
        let opened = self.client().open_with(&written, new.secret.clone()).await;
        let opened =
            opened.ok().filter(|opened| opened.root == *root).ok_or_else(|| unopened("as it was stored"))?;
        let known = describe(written.id, root, &written.key_slots);
        let info = known.into_iter().find(|slot| slot.id == opened.slot);
        Ok((info.ok_or_else(|| unopened("as it was stored"))?, opened))
    }
}

#[cfg(test)]
#[path = "keys_test.rs"]
mod tests;
