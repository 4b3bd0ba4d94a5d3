//! How long bytes are under way from one process to another: latency, bandwidth shared by the connections of a link,
//! loss, stalls; and how many there were.

use super::{Hub, Label};
use crate::entropy::Rng;
use crate::event;
use std::collections::BTreeMap;
use std::time::Duration;

/// First retransmission delay; doubles with each further loss of the same segment.
pub(super) const RETRANSMIT_US: u64 = 200_000;
const RETRANSMIT_MAX_US: u64 = 4_000_000;

/// One direction between two processes.
type Way = (Label, Label);

/// All links of a world.
pub(super) struct Links {
    common: Pace,
    own: BTreeMap<Way, Own>,
    traffic: BTreeMap<Way, Traffic>,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Pace {
    latency_us: (u64, u64),
    loss_ppm: u64,
    bytes_per_ms: u64,
}

/// What a link has of its own; the rest is as everywhere.
#[derive(Clone, Copy, Default)]
struct Own {
    latency_us: Option<(u64, u64)>,
    loss_ppm: Option<u64>,
    bytes_per_ms: Option<u64>,
    stalled_until_us: u64,
}

#[derive(Default)]
struct Traffic {
    bytes: u64,
    /// Connections with something under way; they share the bandwidth evenly.
    busy: u64,
}

impl Default for Links {
    fn default() -> Self {
        let common = Pace { latency_us: (2_000, 30_000), loss_ppm: 0, bytes_per_ms: 50_000 };
        Links { common, own: BTreeMap::new(), traffic: BTreeMap::new(), bytes: 0 }
    }
}

impl Links {
    fn pace(&self, way: Way) -> (Pace, u64) {
        let Pace { latency_us, loss_ppm, bytes_per_ms } = self.common;
        let own = self.own.get(&way).copied().unwrap_or_default();
        let pace = Pace {
            latency_us: own.latency_us.unwrap_or(latency_us),
            loss_ppm: own.loss_ppm.unwrap_or(loss_ppm),
            bytes_per_ms: own.bytes_per_ms.unwrap_or(bytes_per_ms),
        };
        (pace, own.stalled_until_us)
    }
    /// How long something without weight is under way.
    pub(super) fn latency(&self, rng: &mut Rng, way: Way) -> u64 {
        let (Pace { latency_us: (low, high), loss_ppm, .. }, _) = self.pace(way);
        let mut delay = rng.range(low, high);
        let mut again = RETRANSMIT_US;
        while loss_ppm > 0 && again < RETRANSMIT_MAX_US && rng.below(1_000_000) < loss_ppm {
            delay += again;
            again *= 2;
        }
        delay
    }
    /// When a segment arrives and when its connection has sent it. `free_us` is when it had sent the last one.
    pub(super) fn send(&mut self, rng: &mut Rng, way: Way, len: usize, now: u64, free_us: u64) -> (u64, u64) {
        let (pace, stalled_until) = self.pace(way);
        let traffic = self.traffic.entry(way).or_default();
        traffic.bytes += len as u64;
        self.bytes += len as u64;
        let weight = len as u64 * 1_000 * traffic.busy.max(1) / pace.bytes_per_ms.max(1);
        let sent = now.max(free_us) + weight;
        (sent.max(stalled_until) + self.latency(rng, way), sent)
    }
    /// A connection has something under way, or nothing any more.
    pub(super) fn set_busy(&mut self, way: Way, busy: bool) {
        let traffic = self.traffic.entry(way).or_default();
        traffic.busy = traffic.busy.saturating_add_signed(if busy { 1 } else { -1 });
    }
}

impl Hub {
    /// Sets the range of one-way latencies, in microseconds, of every link that has none of its own.
    pub fn set_latency(&self, low_us: u64, high_us: u64) {
        self.lock().links.common.latency_us = (low_us, high_us.max(low_us));
    }
    /// Sets how many segments in a million are lost (and sent again) on every link that has no rate of its own.
    pub fn set_loss(&self, ppm: u64) {
        self.lock().links.common.loss_ppm = ppm;
        event!(self.world, 0, "net loses {ppm} ppm");
    }
    /// Gives one direction a range of latencies of its own, in microseconds; `None` ends it.
    pub fn set_link(&self, from: Label, to: Label, latency_us: Option<(u64, u64)>) {
        let latency_us = latency_us.map(|(low, high)| (low, high.max(low)));
        self.lock().links.own.entry((from, to)).or_default().latency_us = latency_us;
        event!(self.world, from, "net takes {latency_us:?} us to p{to}");
    }
    /// Gives one direction a rate of loss of its own; `None` ends it.
    pub fn set_link_loss(&self, from: Label, to: Label, ppm: Option<u64>) {
        self.lock().links.own.entry((from, to)).or_default().loss_ppm = ppm;
        event!(self.world, from, "net loses {ppm:?} ppm to p{to}");
    }
    /// Gives one direction a bandwidth of its own, in bytes per millisecond, shared by its connections; `None` ends it.
    pub fn set_link_speed(&self, from: Label, to: Label, bytes_per_ms: Option<u64>) {
        self.lock().links.own.entry((from, to)).or_default().bytes_per_ms = bytes_per_ms;
        event!(self.world, from, "net carries {bytes_per_ms:?} bytes/ms to p{to}");
    }
    /// Whatever is sent in one direction from now on arrives only after this time.
    pub fn stall(&self, from: Label, to: Label, duration: Duration) {
        let until = self.world.now_us() + duration.as_micros() as u64;
        self.lock().links.own.entry((from, to)).or_default().stalled_until_us = until;
        event!(self.world, from, "net stalls for {duration:?} to p{to}");
    }
    /// Ends everything that links have of their own: latency, loss, speed, stalls.
    pub fn level(&self) {
        self.lock().links.own.clear();
        event!(self.world, 0, "net is the same everywhere");
    }
    /// Bytes sent by everybody so far.
    pub fn bytes(&self) -> u64 {
        self.lock().links.bytes
    }
    /// Bytes sent so far, by direction.
    pub fn link_bytes(&self) -> BTreeMap<(Label, Label), u64> {
        self.lock().links.traffic.iter().map(|(way, traffic)| (*way, traffic.bytes)).collect()
    }
}
