//! One conversation with a cluster that any of its nodes may carry on: sticks to a node that works, moves on from one
//! that does not, and gives up on the whole cluster only when its budget is spent. Repeating is harmless because
//! every request carries its own ids.

use crate::api::Topology;
use crate::error::Error;
use farshore_core::host::{Entropy, Net};
use farshore_core::limits::{CATALOGUE_CALL_MS, CONTACT_STEP_MS, FIRST_CONTACT_MS, RETRY_BUDGET_MS};
use farshore_core::retry::{Budget, Retry};
use farshore_proto::channel::connect;
use farshore_proto::status::ApiError;
use farshore_proto::tls::{Expect, Tls, TlsError};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// Addresses of a cluster and which of them to ask.
pub struct Conversation {
    net: Arc<dyn Net>,
    tls: Arc<Tls>,
    entropy: Arc<dyn Entropy>,
    ring: Mutex<Ring>,
    /// Some node has answered, at some time.
    answered: AtomicBool,
}

/// Addresses in the order they are asked, starting at `current`.
struct Ring {
    stops: Vec<Stop>,
    current: usize,
}

struct Stop {
    addr: String,
    channel: Option<Channel>,
}

impl Conversation {
    /// Starts from the addresses of a profile. `Invalid` if there are none.
    pub fn new(
        net: Arc<dyn Net>,
        tls: Arc<Tls>,
        entropy: Arc<dyn Entropy>,
        endpoints: &[String],
    ) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(Error::Invalid("the profile names no endpoint; add the address of a node".into()));
        }
        let stops = endpoints.iter().map(|addr| Stop { addr: addr.clone(), channel: None }).collect();
        let ring = Mutex::new(Ring { stops, current: 0 });
        Ok(Conversation { net, tls, entropy, ring, answered: AtomicBool::new(false) })
    }

    /// Adds the nodes a topology names, so that the conversation survives the loss of every endpoint of the profile.
    pub fn learn(&self, topology: &Topology) {
        let mut ring = self.ring();
        for node in topology.nodes.iter().filter(|n| n.state.counts() && !n.addr.is_empty()) {
            if ring.stops.iter().all(|stop| stop.addr != node.addr) {
                ring.stops.push(Stop { addr: node.addr.clone(), channel: None });
            }
        }
    }

    /// Carries one call through. Asks the next node at once and pauses after each full round. As long as nobody has ever
    /// answered, whoever is silent for a moment is waited for beside the next, so that a region that is gone costs no timeout
    /// (as in RFC 8305). Cancel-safe.
    pub async fn call<T, F>(&self, ask: impl Fn(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        // A cluster that has answered before is worth waiting for; an address that never has is probably wrong.
        let patience_ms =
            if self.answered.load(Ordering::Relaxed) { RETRY_BUDGET_MS } else { FIRST_CONTACT_MS };
        let mut budget = Budget::new(Duration::from_millis(patience_ms));
        let mut tried = Vec::<String>::new();
        let mut distrusted = Vec::<String>::new();
        let mut failed_in_round = 0;
        let (mut asked, mut another) = (FuturesUnordered::new(), true);
        loop {
            if another {
                let (at, addr, channel) = self.stop();
                let call = attempt(ask(channel));
                asked.push(async move { (at, addr, call.await) });
            }
            let silence = tokio::time::sleep(Duration::from_millis(CONTACT_STEP_MS));
            let (at, addr, outcome) = tokio::select! {
                biased;
                Some(ended) = asked.next() => ended,
                () = silence, if self.may_ask_beside(failed_in_round + asked.len()) => {
                    self.turn();
                    another = true;
                    continue;
                }
            };
            let error = match outcome {
                Ok(reply) => {
                    self.stay(at);
                    return Ok(reply);
                }
                Err(error) => error,
            };
            if let Attempt::Error(error) = &error
                && error.retry() == Retry::Never
            {
                return Err(Failure::Answer(error.clone()));
            }
            note(&mut tried, &addr);
            if let Attempt::Distrust(why) = &error {
                note(&mut distrusted, &addr);
                tracing::debug!(%addr, why, "identity refused");
            }
            failed_in_round += 1;
            let stops = self.move_on(at, &error);
            another = asked.is_empty() || failed_in_round + asked.len() < stops;
            if failed_in_round < stops {
                continue;
            }
            failed_in_round = 0;
            // Waiting does not mend a certificate.
            let hopeless = matches!(error, Attempt::Distrust(_)) && distrusted.len() >= stops;
            if hopeless || !budget.pause(self.entropy.as_ref()).await {
                return Err(Failure::GaveUp { tried, last: error });
            }
        }
    }

    /// Where to ask now.
    fn stop(&self) -> (usize, String, Channel) {
        let mut ring = self.ring();
        let at = ring.current;
        let stop = &mut ring.stops[at];
        let fresh = || connect(self.net.clone(), self.tls.clone(), stop.addr.clone(), Expect::AnyNode);
        (at, stop.addr.clone(), stop.channel.get_or_insert_with(fresh).clone())
    }

    /// Nobody has answered yet, and not all are being asked.
    fn may_ask_beside(&self, tried: usize) -> bool {
        !self.answered.load(Ordering::Relaxed) && tried < self.ring().stops.len()
    }

    /// Turns to the next address.
    fn turn(&self) {
        let mut ring = self.ring();
        ring.current = (ring.current + 1) % ring.stops.len();
    }

    /// This one answers: it is asked from now on.
    fn stay(&self, at: usize) {
        self.ring().current = at;
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Turns to the next address, unless another call has done so already or the node only asked for a pause. Returns
    /// how many addresses a round has.
    fn move_on(&self, from: usize, error: &Attempt) -> usize {
        let mut ring = self.ring();
        let busy = matches!(error, Attempt::Error(error) if error.retry() == Retry::Later);
        if busy {
            return 1;
        }
        if ring.current == from {
            ring.current = (from + 1) % ring.stops.len();
        }
        ring.stops.len()
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().expect("no holder of this lock panics")
    }
}

fn note(list: &mut Vec<String>, addr: &str) {
    if !list.iter().any(|known| known == addr) {
        list.push(addr.into());
    }
}

/// How one attempt ended.
#[derive(Debug)]
pub enum Attempt {
    /// With an error of ours or of the transport.
    Error(ApiError),
    /// The other end is not who it should be, or our own credentials are unusable.
    Distrust(String),
}

/// How a whole call ended without success.
#[derive(Debug)]
pub enum Failure {
    /// A node answered, and asking again would not change the answer.
    Answer(ApiError),
    /// Nobody answered usefully in time.
    GaveUp {
        /// Addresses asked.
        tried: Vec<String>,
        /// How the last attempt ended.
        last: Attempt,
    },
}

async fn attempt<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Attempt> {
    match tokio::time::timeout(Duration::from_millis(CATALOGUE_CALL_MS), call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(distrust(&status).unwrap_or_else(|| Attempt::Error(status.into()))),
        Err(_) => Err(Attempt::Error(ApiError::Unreachable(format!("no answer in {CATALOGUE_CALL_MS} ms")))),
    }
}

/// The channel leaves the TLS error below the status. A broken handshake may be a broken line; the rest is not.
fn distrust(status: &Status) -> Option<Attempt> {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        match error.downcast_ref::<TlsError>() {
            Some(TlsError::Handshake(_)) => return None,
            Some(refused) => return Some(Attempt::Distrust(refused.to_string())),
            None => cause = error.source(),
        }
    }
    None
}

impl From<Failure> for Error {
    /// What a failure means where a call has no better word for it.
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Answer(answer) => answered(answer),
            Failure::GaveUp { last: Attempt::Distrust(why), .. } => Error::Credential(why),
            Failure::GaveUp { tried, last: Attempt::Error(ApiError::NoQuorum(last)) } => {
                Error::NoQuorum { tried, last }
            }
            Failure::GaveUp { tried, last: Attempt::Error(last) } => {
                Error::Unreachable { tried, last: last.to_string() }
            }
        }
    }
}

fn answered(answer: ApiError) -> Error {
    match answer {
        ApiError::ChunksGone(ordinals) => Error::ChunksGone(ordinals),
        ApiError::BelowFloor(why) => Error::BelowFloor(why),
        ApiError::Denied(why) | ApiError::Locked(why) => Error::Refused(why),
        ApiError::Exists(why) | ApiError::NotFound(why) | ApiError::Invalid(why) => Error::Invalid(why),
        ApiError::NoSession(why) => Error::Invalid(why),
        other => Error::Protocol(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::host::WallClock;
    use farshore_core::host::real::{OsEntropy, SystemClock, TcpNet};
    use farshore_core::id::{ClusterId, NodeId};
    use farshore_core::topology::{NodeRecord, NodeState};
    use farshore_proto::pki::{Authority, Validity};
    use farshore_proto::tls::Credentials;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn conversation(endpoints: &[&str]) -> Conversation {
        let validity = Validity::days(SystemClock.now_ms(), 1);
        let authority = Authority::create(ClusterId([1; 16]), validity).unwrap();
        let own = authority.issue_client(&"me".parse().unwrap(), validity).unwrap();
        let credentials = Credentials {
            cluster: ClusterId([1; 16]),
            ca_pem: authority.ca_cert_pem().into(),
            cert_pem: own.cert_pem,
            key_pem: own.key_pem,
        };
        let tls = Arc::new(Tls::new(&credentials, Arc::new(SystemClock)).unwrap());
        let endpoints: Vec<String> = endpoints.iter().map(|e| e.to_string()).collect();
        Conversation::new(Arc::new(TcpNet), tls, Arc::new(OsEntropy), &endpoints).unwrap()
    }

    /// Answers by the address that is being asked.
    async fn ask(
        c: &Conversation,
        calls: &AtomicUsize,
        answer: impl Fn(&str) -> Result<u8, Status>,
    ) -> Result<u8, Failure> {
        c.call(|_| {
            calls.fetch_add(1, Ordering::Relaxed);
            let answer = answer(&c.stop().1).map(Response::new);
            async move { answer }
        })
        .await
    }

    #[tokio::test]
    async fn moves_on_from_dead_nodes_and_stays_with_a_good_one() {
        let (c, calls) = (conversation(&["a:1", "b:1", "c:1"]), AtomicUsize::new(0));
        let only_c = |addr: &str| if addr == "c:1" { Ok(7) } else { Err(Status::unavailable("dead")) };
        assert_eq!(ask(&c, &calls, only_c).await.unwrap(), 7);
        assert_eq!(calls.swap(0, Ordering::Relaxed), 3, "no pause, one attempt each");
        assert_eq!(ask(&c, &calls, only_c).await.unwrap(), 7);
        assert_eq!(calls.swap(0, Ordering::Relaxed), 1, "it stays with what works");
        // A node that knows of no quorum may be cut off: the others are asked too.
        let only_b = |addr: &str| {
            if addr == "b:1" { Ok(8) } else { Err(Status::from(ApiError::NoQuorum("no leader".into()))) }
        };
        assert_eq!(ask(&c, &calls, only_b).await.unwrap(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_at_first_contact_is_waited_for_beside_the_next() {
        let c = conversation(&["a:1", "b:1", "c:1"]);
        let (began, silent) = (tokio::time::Instant::now(), AtomicUsize::new(0));
        // The first two never answer.
        let first_to_answer = || async {
            c.call(|_| {
                let addr = c.stop().1;
                silent.fetch_add(usize::from(addr != "c:1"), Ordering::Relaxed);
                async move {
                    if addr != "c:1" {
                        std::future::pending::<()>().await;
                    }
                    Ok(Response::new(addr))
                }
            })
            .await
            .unwrap()
        };
        assert_eq!(first_to_answer().await, "c:1");
        assert_eq!(began.elapsed(), Duration::from_millis(2 * CONTACT_STEP_MS));
        assert_eq!(first_to_answer().await, "c:1");
        assert_eq!(silent.load(Ordering::Relaxed), 2, "it stays with who answered");
    }

    #[tokio::test]
    async fn a_refusal_is_final_and_a_busy_node_is_asked_again() {
        let (c, calls) = (conversation(&["a:1", "b:1"]), AtomicUsize::new(0));
        let denied = ask(&c, &calls, |_| Err(ApiError::Denied("no grant".into()).into())).await;
        assert!(matches!(denied, Err(Failure::Answer(ApiError::Denied(_)))));
        assert_eq!(calls.swap(0, Ordering::Relaxed), 1);
        let busy_once = |addr: &str| match (addr, calls.load(Ordering::Relaxed)) {
            ("a:1", 1) => Err(Status::from(ApiError::TooBusy("later".into()))),
            ("a:1", _) => Ok(1),
            _ => Ok(2),
        };
        assert_eq!(ask(&c, &calls, busy_once).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn nodes_of_the_topology_outlive_the_profile() {
        let (c, calls) = (conversation(&["a:1"]), AtomicUsize::new(0));
        let node = |id: u64, addr: &str, state| NodeRecord {
            id: NodeId(id),
            name: format!("n{id}").parse().unwrap(),
            region: "x/y".parse().unwrap(),
            zone: None,
            addr: addr.into(),
            capacity: 1,
            state,
        };
        let nodes = vec![
            node(1, "a:1", NodeState::Up),
            node(2, "gone:1", NodeState::Retired),
            node(3, "new:1", NodeState::Down),
        ];
        let topology =
            Topology { cluster: ClusterId([1; 16]), nodes, leader: None, applied: 1, slow: vec![] };
        c.learn(&topology);
        c.learn(&topology);
        let only_new = |addr: &str| if addr == "new:1" { Ok(3) } else { Err(Status::unavailable("dead")) };
        assert_eq!(ask(&c, &calls, only_new).await.unwrap(), 3);
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn failures_become_the_right_exit_codes() {
        let gave_up = |last| Failure::GaveUp { tried: vec!["a:1".into()], last };
        let code = |failure| Error::from(failure).exit_code();
        assert_eq!(code(gave_up(Attempt::Error(ApiError::NoQuorum("x".into())))), 13);
        assert_eq!(code(gave_up(Attempt::Error(ApiError::Unreachable("x".into())))), 13);
        assert_eq!(code(gave_up(Attempt::Distrust("x".into()))), 12);
        assert_eq!(code(Failure::Answer(ApiError::Denied("x".into()))), 16);
        assert_eq!(code(Failure::Answer(ApiError::BelowFloor("x".into()))), 13);
    }
}
