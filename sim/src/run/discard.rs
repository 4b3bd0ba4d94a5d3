//! What clients do with snapshots they no longer want, and with those they want to keep: forget, take out of the trash,
//! purge, collect, lock. A snapshot is promised no longer from the moment somebody begins to forget it.

use super::{Did, Forgotten, GRAVES_MAX, LOCKED_CALL_MS, LOCKED_MS_MAX, LOCKED_UNTIL_MS, Run};
use crate::agent::{Agent, Failure, Promise};
use crate::clock::now_ms;
use crate::plan::Work;
use farshore_client::{Error, Repository};
use farshore_core::catalogue::{Lock, LockMode};
use farshore_core::id::SnapshotId;
use futures_util::future::BoxFuture;
use std::sync::Arc;

type Doing = BoxFuture<'static, Result<Did, Failure>>;

impl Run<'_> {
    pub(super) fn discard(&mut self, seat: usize, agent: &Arc<Agent>, work: Work) -> Doing {
        let own = seat % self.plan.knobs.policies.len();
        let repository = agent.repository(own);
        match work {
            Work::Forget => self.forget(own, agent, repository),
            Work::Undelete => self.undelete(own, agent, repository),
            Work::Lock => match self.any_promise(own) {
                Some(id) => {
                    self.seats[seat].busy.iter_mut().for_each(|busy| busy.about.push(id));
                    let until_ms = match self.rng.one_in(2) {
                        true => LOCKED_UNTIL_MS,
                        false => now_ms(&self.world) + self.rng.range(LOCKED_CALL_MS, LOCKED_MS_MAX),
                    };
                    // A lock is only ever extended.
                    lock(agent, repository, id, until_ms.max(self.locked.get(&id).copied().unwrap_or(0)))
                }
                None => nothing(),
            },
            _ => self.prune(own, agent, repository),
        }
    }

    fn any_promise(&mut self, own: usize) -> Option<SnapshotId> {
        let ids: Vec<SnapshotId> =
            self.promises.iter().filter(|p| p.repository == own).filter_map(id).collect();
        ids.get(self.rng.below(ids.len() as u64) as usize).copied()
    }

    /// One of the older snapshots, or a handful. If one of them is locked, none may go.
    fn forget(&mut self, own: usize, agent: &Arc<Agent>, repository: Repository) -> Doing {
        let newest = self.promises.iter().rev().find(|p| p.repository == own).map(|p| p.id.clone());
        // Without the newest some of its chunks are needed by nobody.
        let newest = newest.filter(|_| self.rng.one_in(2));
        let handful = self.rng.one_in(3);
        let mut ids = Vec::new();
        for promise in self.promises.iter().filter(|p| p.repository == own && Some(&p.id) != newest.as_ref())
        {
            if (handful || ids.is_empty()) && self.rng.one_in(2) {
                ids.extend(id(promise));
            }
        }
        if ids.is_empty() {
            return nothing();
        }
        if ids.iter().any(|id| self.must_be_locked(id)) {
            let tried = agent.begin_call(async move { Ok(repository.forget(&ids, true).await) });
            return Box::pin(async move {
                match tried.await? {
                    Ok(0) | Err(Error::Refused(_)) => Ok(Did::Done),
                    Ok(_) => Err(Failure::Broken("locked: a locked snapshot was forgotten".into())),
                    Err(other) => Err(Failure::Refused(other.to_string())),
                }
            });
        }
        self.discarded_us = self.world.now_us();
        let chosen = |promise: &mut Arc<Promise>| id(promise).is_some_and(|id| ids.contains(&id));
        let gone: Vec<_> = self.promises.extract_if(.., chosen).collect();
        for promise in &gone {
            self.graves.push_front(promise.tree.clone());
        }
        self.graves.truncate(GRAVES_MAX);
        self.forgotten.extend(gone.into_iter().map(|promise| Forgotten { promise, settled: false }));
        let asked = ids.clone();
        let forgets = agent.begin_call(async move { Ok(repository.forget(&asked, false).await) });
        // Somebody else may have locked one of them a moment ago.
        Box::pin(async move {
            match forgets.await? {
                Ok(_) => Ok(Did::Forgotten(ids)),
                Err(Error::Refused(why)) if why.contains("locked") => Ok(Did::Done),
                Err(other) => Err(Failure::Refused(other.to_string())),
            }
        })
    }

    /// It was locked, no call takes long enough for the lock to end, and no wrong calendars can have ended it.
    fn must_be_locked(&self, id: &SnapshotId) -> bool {
        self.locked.get(id).is_some_and(|until_ms| {
            let soon = now_ms(&self.world) + LOCKED_CALL_MS;
            *until_ms == LOCKED_UNTIL_MS || (self.cluster.time_is_right() && *until_ms > soon)
        })
    }

    fn undelete(&mut self, own: usize, agent: &Arc<Agent>, repository: Repository) -> Doing {
        let ids = self.forgotten.iter().map(|gone| &gone.promise).filter(|p| p.repository == own);
        let ids: Vec<SnapshotId> = ids.filter_map(id).collect();
        let Some(id) = ids.get(self.rng.below(ids.len() as u64) as usize).copied() else { return nothing() };
        let back = agent.begin_call(async move { Ok(repository.undelete(&[id]).await) });
        Box::pin(async move {
            match back.await? {
                Ok(_) => Ok(Did::Undeleted(id)),
                // Its time in the trash was over.
                Err(Error::Invalid(_)) => Ok(Did::Done),
                Err(other) => Err(Failure::Refused(other.to_string())),
            }
        })
    }

    /// Purges some of what is forgotten, which is then gone for good, and has what can be collected collected.
    fn prune(&mut self, own: usize, agent: &Arc<Agent>, repository: Repository) -> Doing {
        self.discarded_us = self.world.now_us();
        let rng = &mut self.rng;
        let purged = |gone: &mut Forgotten| gone.promise.repository == own && !rng.one_in(3);
        let gone: Vec<_> = self.forgotten.extract_if(.., purged).collect();
        let ids: Vec<SnapshotId> = gone.iter().filter_map(|gone| id(&gone.promise)).collect();
        let prunes = agent.begin_call(async move {
            repository.purge(&ids, true).await?;
            repository.prune(false).await
        });
        Box::pin(async move { prunes.await.map(|_| Did::Done) })
    }
}

fn lock(agent: &Arc<Agent>, repository: Repository, id: SnapshotId, until_ms: u64) -> Doing {
    let lock = Lock { mode: LockMode::Compliance, until_ms };
    let locks = agent.begin_call(async move { Ok(repository.lock_snapshot(id, lock, false).await) });
    Box::pin(async move {
        match locks.await? {
            Ok(()) => Ok(Did::Locked(id, until_ms)),
            // Forgotten a moment ago; or locked for longer by a call whose answer nobody heard.
            Err(Error::Invalid(_)) => Ok(Did::Done),
            Err(Error::Refused(why)) if why.contains("locked") => Ok(Did::Done),
            Err(other) => Err(Failure::Refused(other.to_string())),
        }
    })
}

fn id(promise: &Arc<Promise>) -> Option<SnapshotId> {
    promise.id.parse().ok()
}

fn nothing() -> Doing {
    Box::pin(async { Ok(Did::Done) })
}
