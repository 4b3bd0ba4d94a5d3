//! Thousands of sessions at once, against real nodes: all are open at the same time, each is renewed, served and closed,
//! and the one too many is told so.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use farshore_client::api::CatalogueApi;
use farshore_client::session::GrpcCatalogue;
use farshore_client::session::conversation::Conversation;
use farshore_client::session::grpc::Freshness;
use farshore_core::host::{random, real};
use farshore_core::id::{ChunkId, RepoId, SessionId};
use farshore_core::limits::SESSIONS_OPEN_MAX;
use farshore_proto::peers::Peers;
use farshore_proto::profile::Profile;
use farshore_proto::tls::Tls;
use futures_util::stream::{self, StreamExt};
use harness::Dev;
use std::path::Path;
use std::sync::Arc;

/// Calls of one step that are under way at the same time.
const TOGETHER: usize = 512;

#[test]
fn four_thousand_sessions_are_open_at_once() {
    let work = tempfile::tempdir().unwrap();
    let dev = Dev::start(work.path());
    dev.ok(&["init"]);
    let profile = dev.env()["FARSHORE_PROFILE"].clone();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(all_at_once(Path::new(&profile)));
    dev.stop();
}

async fn all_at_once(profile: &Path) {
    let (api, host) = (connect(profile), real::client_host());
    let seen = api.topology().await.unwrap().applied;
    let repo = api.get_repository(&"dev".parse().unwrap()).await.unwrap().id;
    let ids: Vec<_> = (0..SESSIONS_OPEN_MAX).map(|_| SessionId(random(host.entropy.as_ref()))).collect();

    let mut opened = Vec::new();
    let mut answers = each(&ids, |id| api.open_session(id, repo, seen));
    while let Some((id, answer)) = answers.next().await {
        opened.push((id, answer.unwrap().opened));
    }
    drop(answers);
    let one_more = SessionId(random(host.entropy.as_ref()));
    let refused = api.open_session(one_more, repo, seen).await.map(|open| open.id);
    let refused = refused.expect_err("there is room for no more").to_string();
    assert!(refused.contains("sessions are open; wait"), "{refused}");

    // Each is its own: the last that was opened lives as the first does.
    done(&ids, |id| api.renew_session(id)).await;
    done(&ids, |id| nothing_is_there(&api, repo, id)).await;
    let again = api.open_session(ids[0], repo, seen).await.unwrap().opened;
    assert!(opened.contains(&(ids[0], again)), "opened twice is opened once");
    done(&ids, |id| api.close_session(id)).await;

    let late = api.open_session(ids[0], repo, seen).await.map(|open| open.id);
    late.expect_err("an id that has ended is not opened again");
    let renewed = api.renew_session(ids[1]).await;
    renewed.expect_err("a session that has ended is not renewed");
    api.open_session(one_more, repo, seen).await.expect("there is room again");
}

async fn nothing_is_there(
    api: &Arc<dyn CatalogueApi>,
    repo: RepoId,
    id: SessionId,
) -> farshore_client::Result<()> {
    let chunk = ChunkId([7; 32]);
    assert_eq!(api.lookup(id, repo, &[chunk]).await?, [None]);
    Ok(())
}

fn connect(profile: &Path) -> Arc<dyn CatalogueApi> {
    let profile = Profile::parse(&std::fs::read_to_string(profile).unwrap()).unwrap();
    let host = real::client_host();
    let tls = Arc::new(Tls::new(&profile.credentials(), host.clock.clone()).unwrap());
    let conversation =
        Conversation::new(host.net.clone(), tls.clone(), host.entropy.clone(), &profile.endpoints).unwrap();
    let peers = Arc::new(Peers::new(host.net.clone(), tls));
    Arc::new(GrpcCatalogue::new(Arc::new(conversation), peers, Freshness::Confirmed))
}

/// A call for each session, many at a time.
fn each<'a, T, F: Future<Output = T> + 'a>(
    ids: &'a [SessionId],
    call: impl Fn(SessionId) -> F + 'a,
) -> impl futures_util::Stream<Item = (SessionId, T)> + 'a {
    let calls = ids.iter().map(move |id| {
        let answer = call(*id);
        async move { (*id, answer.await) }
    });
    stream::iter(calls).buffer_unordered(TOGETHER)
}

async fn done<F: Future<Output = farshore_client::Result<()>>>(
    ids: &[SessionId],
    call: impl Fn(SessionId) -> F,
) {
    let mut answers = std::pin::pin!(each(ids, call));
    while let Some((id, answer)) = answers.next().await {
        answer.unwrap_or_else(|error| panic!("session {id:?}: {error}"));
    }
}
