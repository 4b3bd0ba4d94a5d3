//! What a fleet is made of and how it fails: every input of the model, with a unit and a default. Rates are per year,
//! times are years unless the name says otherwise.

use farshore_core::erasure::Scheme;
use farshore_core::reliability::Rates;
use farshore_core::reliability::region::YEAR_HOURS;
use farshore_core::topology::Region;

/// Most nodes of a simulated fleet.
pub const NODES_MAX: usize = 100_000;
/// Most placement groups; more copysets than this are sampled.
pub const GROUPS_MAX: usize = 262_144;

/// A fleet.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its regions, and how many nodes each has.
    pub places: Vec<(Region, usize)>,
    /// How stripes are cut.
    pub scheme: Scheme,
    /// Placement groups to follow: one for each copyset if there are no more of those.
    pub groups_max: usize,
    /// Bytes of shards on each node.
    pub node_bytes: f64,
    /// Bytes of user data in a stripe.
    pub stripe_bytes: f64,
    /// What goes wrong.
    pub failures: Failures,
    /// How it is mended.
    pub mend: Mend,
}

/// What goes wrong, in events a year.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Failures {
    /// Permanent loss of one node.
    pub node_loss: f64,
    /// Disks of a node; each shard is on one of them.
    pub disks: u32,
    /// Permanent loss of one disk.
    pub disk_loss: f64,
    /// A node falls silent and comes back with its data.
    pub outage: f64,
    /// Mean hours of such silence, exponential.
    pub outage_hours: f64,
    /// A region falls silent and comes back.
    pub region_outage: f64,
    /// Mean hours of that, exponential.
    pub region_outage_hours: f64,
    /// Permanent loss of one region.
    pub region_loss: f64,
    /// Mean years until new nodes stand in its place, exponential.
    pub region_rebuild: f64,
    /// Bursts in one region.
    pub burst: f64,
    /// Probability that a burst destroys a certain node.
    pub burst_kill: f64,
    /// Permanent loss of a provider with all its regions.
    pub provider_loss: f64,
}

/// How losses are mended.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Mend {
    /// As the closed forms assume: noticed at once, one exponential repair at a time in each region for each stripe
    /// whatever else goes on, and the shards of a dead region wait for it.
    Memoryless {
        /// Repairs a year.
        repair: f64,
    },
    /// As the product does it: silence, grace, then rebuilding elsewhere in the order of urgency over links that all
    /// share.
    Shared(Shared),
}

/// Delays and bandwidths of real repair.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Shared {
    /// Hours until a silent node is called down, or a broken disk is noticed.
    pub detect_hours: f64,
    /// Hours after which a node that is down is called lost.
    pub grace_hours: f64,
    /// Hours until a new machine stands in for a dead one.
    pub replace_hours: f64,
    /// Bytes a second that a node takes in for repair.
    pub node_bytes_s: f64,
    /// Bytes a second that a region takes in from other regions for repair.
    pub link_bytes_s: f64,
    /// Rebuilds under way at a time in the whole fleet, 0 for no bound.
    pub in_flight: usize,
}

/// Inputs that make no fleet.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadFleet {
    /// A number out of its range.
    #[error("{0} = {1} is not usable")]
    Number(&'static str, f64),
    /// Too few nodes, or too many.
    #[error("{0}")]
    Shape(String),
    /// The closed form refused it.
    #[error(transparent)]
    Model(#[from] farshore_core::reliability::BadModel),
}

impl Failures {
    /// The rates of the closed forms.
    pub fn of(rates: &Rates) -> Self {
        Failures {
            node_loss: rates.node_loss,
            disks: 1,
            disk_loss: 0.0,
            outage: 0.0,
            outage_hours: 1.0,
            region_outage: 0.0,
            region_outage_hours: 1.0,
            region_loss: rates.region_loss,
            region_rebuild: 1.0 / rates.region_rebuild,
            burst: rates.burst,
            burst_kill: rates.burst_kill,
            provider_loss: rates.provider_loss,
        }
    }

    fn check(&self) -> Result<(), BadFleet> {
        let rates = [
            ("node loss", self.node_loss),
            ("disk loss", self.disk_loss),
            ("outage", self.outage),
            ("region outage", self.region_outage),
            ("region loss", self.region_loss),
            ("burst", self.burst),
            ("provider loss", self.provider_loss),
        ];
        rates.into_iter().try_for_each(|(name, value)| number(name, value, 0.0, 1e4))?;
        let times = [
            ("outage hours", self.outage_hours),
            ("region outage hours", self.region_outage_hours),
            ("region rebuild", self.region_rebuild),
        ];
        times.into_iter().try_for_each(|(name, value)| number(name, value, 1e-6, 1e6))?;
        number("disks", self.disks.into(), 1.0, 1_000.0)?;
        number("burst kill", self.burst_kill, 0.0, 1.0)
    }
}

fn number(name: &'static str, value: f64, least: f64, most: f64) -> Result<(), BadFleet> {
    if (least..=most).contains(&value) { Ok(()) } else { Err(BadFleet::Number(name, value)) }
}

impl Shared {
    /// Years from a node's last sign of life to the start of its repair.
    pub fn patience(&self) -> f64 {
        (self.detect_hours + self.grace_hours) / YEAR_HOURS
    }
}

impl Default for Shared {
    /// The product's own delays (30 s + 15 min of grace), and 100 MB/s a node.
    fn default() -> Self {
        Shared {
            detect_hours: 30.0 / 3_600.0,
            grace_hours: 0.25,
            replace_hours: 24.0,
            node_bytes_s: 100e6,
            link_bytes_s: 10e9,
            in_flight: 0,
        }
    }
}

impl Default for Failures {
    /// Assumptions, not measurements: nominal rates of the closed forms, six disks a node at Backblaze's 1.5 % a year,
    /// one silence a year of 10 minutes, a region dark every two years for two hours.
    fn default() -> Self {
        Failures {
            disks: 6,
            disk_loss: 0.015,
            outage: 1.0,
            outage_hours: 1.0 / 6.0,
            region_outage: 0.5,
            region_outage_hours: 2.0,
            ..Failures::of(&Rates::NOMINAL)
        }
    }
}

impl Spec {
    /// `nodes` nodes over the regions, as evenly as possible.
    pub fn even(nodes: usize, regions: &[&str], scheme: Scheme) -> Result<Spec, BadFleet> {
        if regions.is_empty() {
            return Err(BadFleet::Shape("a fleet has a region".into()));
        }
        let share = |i: usize| nodes / regions.len() + usize::from(i < nodes % regions.len());
        let region = |label: &str| label.parse().map_err(|e| BadFleet::Shape(format!("{e}")));
        let places = regions.iter().enumerate().map(|(i, label)| Ok((region(label)?, share(i))));
        let spec = Spec {
            places: places.collect::<Result<_, BadFleet>>()?,
            scheme,
            groups_max: GROUPS_MAX,
            node_bytes: 4e12,
            stripe_bytes: farshore_core::limits::PACK_BYTES_DEFAULT as f64,
            failures: Failures::default(),
            mend: Mend::Shared(Shared::default()),
        };
        spec.check()?;
        Ok(spec)
    }

    /// Whether it can be simulated.
    pub fn check(&self) -> Result<(), BadFleet> {
        self.failures.check()?;
        number("bytes on a node", self.node_bytes, 1.0, 1e18)?;
        number("bytes in a stripe", self.stripe_bytes, 1.0, 1e12)?;
        number("groups", self.groups_max as f64, 1.0, GROUPS_MAX as f64)?;
        match self.mend {
            Mend::Memoryless { repair } => number("repairs a year", repair, 1e-6, 1e9)?,
            Mend::Shared(shared) => {
                number("detection hours", shared.detect_hours, 0.0, 1e4)?;
                number("grace hours", shared.grace_hours, 0.0, 1e5)?;
                number("replacement hours", shared.replace_hours, 0.0, 1e5)?;
                number("bytes a second of a node", shared.node_bytes_s, 1.0, 1e15)?;
                number("bytes a second of a link", shared.link_bytes_s, 1.0, 1e15)?;
            }
        }
        let nodes = self.nodes();
        if self.places.len() > 64 || !(self.scheme.n()..=NODES_MAX).contains(&nodes) {
            let n = self.scheme.n();
            return Err(BadFleet::Shape(format!(
                "{nodes} nodes: {n} to {NODES_MAX}, in at most 64 regions, are possible"
            )));
        }
        let spread = usize::from(self.scheme.spread());
        let room: usize = self.places.iter().map(|(_, nodes)| (*nodes).min(spread)).sum();
        if room < self.scheme.n() {
            return Err(BadFleet::Shape(format!(
                "the regions have room for {room} of the {} shards",
                self.scheme.n()
            )));
        }
        Ok(())
    }

    /// Nodes in all regions.
    pub fn nodes(&self) -> usize {
        self.places.iter().map(|(_, nodes)| nodes).sum()
    }

    /// Stripes in the whole fleet.
    pub fn stripes(&self) -> f64 {
        self.user_bytes() / self.stripe_bytes
    }

    /// Bytes of user data.
    pub fn user_bytes(&self) -> f64 {
        self.node_bytes * self.nodes() as f64 * self.scheme.k() as f64 / self.scheme.n() as f64
    }

    /// By region: the number of its provider.
    pub fn providers(&self) -> Vec<usize> {
        let mut names: Vec<&str> = Vec::new();
        let mut found = Vec::new();
        for provider in self.places.iter().map(|(region, _)| region.provider()) {
            let known = names.iter().position(|name| *name == provider);
            found.push(known.unwrap_or(names.len()));
            if known.is_none() {
                names.push(provider);
            }
        }
        found
    }
}
