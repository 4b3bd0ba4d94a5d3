//! The simulated network against what TCP does.

use super::link::RETRANSMIT_US;
use super::pipe::WINDOW_BYTES;
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

const A: Label = 1;
const B: Label = 2;
const SOON: Duration = Duration::from_secs(1);

async fn pair(hub: &Hub) -> (Box<dyn ByteStream>, Box<dyn ByteStream>) {
    let mut listener = hub.of(B).listen("b:1").await.unwrap();
    let mine = hub.of(A).dial("b:1").await.unwrap();
    let (theirs, from) = listener.accept().await.unwrap();
    assert_eq!(from, "p1");
    (mine, theirs)
}

async fn get(stream: &mut Box<dyn ByteStream>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64];
    let len = stream.read(&mut buffer).await?;
    buffer.truncate(len);
    Ok(buffer)
}

#[tokio::test(start_paused = true)]
async fn bytes_keep_their_order_under_loss_and_take_their_time() {
    let hub = Hub::new(World::new(1, None));
    hub.set_loss(300_000);
    let (mut mine, mut theirs) = pair(&hub).await;
    let sent: Vec<u8> = (0..200_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
    let expected = sent.clone();
    let start = Instant::now();
    let writing = async move {
        for piece in sent.chunks(999) {
            mine.write_all(piece).await.unwrap();
        }
        mine.shutdown().await.unwrap();
        mine
    };
    let mut found = Vec::new();
    let (_open, read) = futures_util::join!(writing, theirs.read_to_end(&mut found));
    read.unwrap();
    assert_eq!(found, expected);
    assert!(start.elapsed() >= Duration::from_micros(RETRANSMIT_US), "something was lost and sent again");
}

#[tokio::test(start_paused = true)]
async fn a_full_window_waits_for_the_reader() {
    let hub = Hub::new(World::new(1, None));
    let (mut mine, mut theirs) = pair(&hub).await;
    assert!(timeout(SOON, mine.write_all(&vec![1; WINDOW_BYTES + 1])).await.is_err());
    let mut found = vec![0; WINDOW_BYTES];
    theirs.read_exact(&mut found).await.unwrap();
    timeout(SOON, mine.write_all(b"x")).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_cut_holds_one_direction_until_it_heals() {
    let hub = Hub::new(World::new(1, None));
    let (mut mine, mut theirs) = pair(&hub).await;
    hub.cut(A, B);
    mine.write_all(b"held").await.unwrap();
    theirs.write_all(b"through").await.unwrap();
    assert_eq!(get(&mut mine).await.unwrap(), b"through");
    assert!(timeout(SOON, get(&mut theirs)).await.is_err());
    assert!(timeout(SOON, hub.of(A).dial("b:1")).await.is_err());
    hub.heal();
    assert_eq!(get(&mut theirs).await.unwrap(), b"held");
}

#[tokio::test(start_paused = true)]
async fn a_dead_process_resets_its_connections_and_refuses_dials() {
    let hub = Hub::new(World::new(1, None));
    let (mut mine, theirs) = pair(&hub).await;
    hub.crash(B, false);
    drop(theirs);
    let error = timeout(SOON, get(&mut mine)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(mine.write_all(b"x").await.is_err());
    let refused = timeout(SOON, hub.of(A).dial("b:1")).await.unwrap().err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
}

#[tokio::test(start_paused = true)]
async fn a_machine_without_power_is_silent_until_it_boots() {
    let hub = Hub::new(World::new(1, None));
    let (mut mine, mut theirs) = pair(&hub).await;
    theirs.write_all(b"last words").await.unwrap();
    hub.crash(B, true);
    drop(theirs);
    assert_eq!(get(&mut mine).await.unwrap(), b"last words");
    mine.write_all(b"into the void").await.unwrap();
    assert!(timeout(SOON * 100, get(&mut mine)).await.is_err());
    let start = Instant::now();
    assert_eq!(hub.of(A).dial("b:1").await.err().unwrap().kind(), io::ErrorKind::TimedOut);
    assert!(start.elapsed() > SOON * 10);
    hub.boot(B);
    let error = timeout(SOON, get(&mut mine)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let refused = hub.of(A).dial("b:1").await.err().unwrap();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    hub.of(B).listen("b:1").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_dropped_end_is_an_end_of_file() {
    let hub = Hub::new(World::new(1, None));
    let (mut mine, theirs) = pair(&hub).await;
    drop(theirs);
    assert_eq!(get(&mut mine).await.unwrap(), b"");
    assert!(mine.write_all(b"x").await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_reset_takes_both_ends_and_what_was_under_way() {
    let hub = Hub::new(World::new(1, None));
    let (mut mine, mut theirs) = pair(&hub).await;
    mine.write_all(b"never arrives").await.unwrap();
    assert_eq!(hub.reset(B, A), 1);
    assert_eq!(get(&mut theirs).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(get(&mut mine).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert!(mine.write_all(b"x").await.is_err() && theirs.write_all(b"x").await.is_err());
    drop((mine, theirs));
    assert_eq!(hub.reset(A, B), 0);
    let mut listener = hub.of(B).listen("b:2").await.unwrap();
    let (mine, theirs) = (hub.of(A).dial("b:2").await.unwrap(), listener.accept().await.unwrap());
    assert_eq!(hub.reset_some(A, 99, 1), 0, "others are not concerned");
    assert!((0..100).any(|_| hub.reset_some(A, B, 5) == 1));
    drop((mine, theirs));
}

#[tokio::test(start_paused = true)]
async fn links_have_a_pace_of_their_own() {
    let hub = Hub::new(World::new(1, None));
    hub.set_latency(1_000, 1_000);
    let (mut mine, mut theirs) = pair(&hub).await;
    let mut took = async |mine: &mut Box<dyn ByteStream>, len: usize| {
        let start = Instant::now();
        mine.write_all(&vec![1; len]).await.unwrap();
        theirs.read_exact(&mut vec![0; len]).await.unwrap();
        start.elapsed().as_millis()
    };
    assert_eq!(took(&mut mine, 1).await, 1);
    hub.set_link(A, B, Some((70_000, 70_000)));
    assert_eq!(took(&mut mine, 1).await, 70);
    hub.set_link(B, A, Some((9_000_000, 9_000_000)));
    assert_eq!(took(&mut mine, 1).await, 70, "the other direction is another link");
    hub.set_link_speed(A, B, Some(100));
    assert_eq!(took(&mut mine, 10_000).await, 170);
    hub.stall(A, B, SOON);
    assert!(took(&mut mine, 1).await >= 1_000);
    hub.level();
    assert_eq!(took(&mut mine, 1).await, 1);
    let bytes = hub.link_bytes();
    assert_eq!((bytes[&(A, B)], hub.bytes()), (10_005, 10_005));
    hub.set_link_loss(A, B, Some(1_000_000));
    assert!(took(&mut mine, 1).await >= 200);
}

#[tokio::test(start_paused = true)]
async fn connections_of_a_link_share_its_bandwidth() {
    let hub = Hub::new(World::new(1, None));
    hub.set_latency(0, 0);
    hub.set_link_speed(A, B, Some(10));
    let mut listener = hub.of(B).listen("b:1").await.unwrap();
    let (mut one, mut two) = (hub.of(A).dial("b:1").await.unwrap(), hub.of(A).dial("b:1").await.unwrap());
    let (mut from_one, mut from_two) =
        (listener.accept().await.unwrap().0, listener.accept().await.unwrap().0);
    let start = Instant::now();
    one.write_all(&[1; 10_000]).await.unwrap();
    two.write_all(&[2; 1_000]).await.unwrap();
    from_two.read_exact(&mut [0; 1_000]).await.unwrap();
    assert_eq!(start.elapsed().as_millis(), 200, "half the speed, and not behind the other's bytes");
    from_one.read_exact(&mut [0; 10_000]).await.unwrap();
    one.write_all(&[1; 1_000]).await.unwrap();
    let start = Instant::now();
    from_one.read_exact(&mut [0; 1_000]).await.unwrap();
    assert_eq!(start.elapsed().as_millis(), 100, "alone again");
}

#[tokio::test(start_paused = true)]
async fn one_cut_heals_alone() {
    let hub = Hub::new(World::new(1, None));
    let (mut mine, mut theirs) = pair(&hub).await;
    hub.cut_both(A, B);
    mine.write_all(b"there").await.unwrap();
    theirs.write_all(b"back").await.unwrap();
    hub.uncut(A, B);
    assert_eq!(get(&mut theirs).await.unwrap(), b"there");
    assert!(timeout(SOON, get(&mut mine)).await.is_err() && hub.is_cut(B, A));
    hub.uncut(B, A);
    assert_eq!(get(&mut mine).await.unwrap(), b"back");
}

#[tokio::test(start_paused = true)]
async fn a_paused_process_reads_nothing_and_its_window_fills() {
    use farshore_core::host::task::Scope;
    let hub = Hub::new(World::new(1, None));
    let (mut mine, mut theirs) = pair(&hub).await;
    let scope = Scope::new(B);
    let reading = scope.spawn(1, async move { theirs.read_exact(&mut vec![0; WINDOW_BYTES + 1]).await });
    scope.pause();
    assert!(timeout(SOON * 100, mine.write_all(&vec![1; WINDOW_BYTES + 1])).await.is_err());
    scope.resume();
    timeout(SOON, mine.write_all(b"x")).await.unwrap().unwrap();
    assert!(timeout(SOON, reading).await.unwrap().unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stopped_process_sends_nothing_more_not_even_an_end() {
    use crate::calls::Moment;
    let world = World::new(1, None);
    let hub = Hub::new(world.clone());
    let (mut mine, mut theirs) = pair(&hub).await;
    let next = world.calls().of(A) + 2;
    world.calls().crash_at(A, next, Moment::Before);
    mine.write_all(b"one").await.unwrap();
    assert!(timeout(SOON, mine.write_all(b"two")).await.is_err());
    assert_eq!(world.calls().tripped().await, A);
    drop(mine);
    hub.crash(A, true);
    assert_eq!(get(&mut theirs).await.unwrap(), b"one");
    assert!(timeout(SOON * 100, get(&mut theirs)).await.is_err(), "silence");
    hub.boot(A);
    assert_eq!(get(&mut theirs).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}
