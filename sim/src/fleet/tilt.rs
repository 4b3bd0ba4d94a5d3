//! Importance sampling: rare losses made frequent, and the likelihood ratio that takes it back.
//!
//! One group is under study. Failures that touch it (of its nodes, of regions, bursts, of providers) are *forced*
//! (Lewis and Böhm 1984) and their kinds *balanced* (Shahabuddin 1994): while the group is whole, the first failure of
//! the run is made likely; while it is strained, that a failure comes before the next relief is. Where repair has no
//! memory, failures and reliefs are one race whose times stay as they are, and only who wins is tilted: the likelihood
//! ratio then does not depend on times at all. Where repair takes what it takes, there are windows instead. A window
//! has a length that is fixed when it opens, and within it the first failure keeps its own distribution given that
//! there is one: only whether there is one is decided by another probability. So the ratio of a failure is natural /
//! forced however early it comes, exponential factors never pile up, and repair may have any distribution: the method
//! needs failures to be Poisson and nothing else. Half of each choice stays as it would be (a defensive mixture,
//! Hesterberg 1995), so that no choice ever weighs more than twice.
//!
//! Splitting was the other candidate. It needs stages that are reached now and then; here a loss is few steps, each
//! one in thousands, with nothing between them to split at.

use super::dice::Dice;
use super::groups::GroupIx;
use super::life::Fleet;

/// What can be forced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One shard's node or disk.
    Shard,
    /// A region.
    Region,
    /// Several nodes of a region.
    Burst,
    /// All regions of a provider.
    Provider,
    /// Not a failure: memoryless repair of one shard.
    Mend,
    /// Not a failure: a dead region is whole again, without a memory either.
    RegionBack,
}

/// By kind: events a year.
pub type Rates = [f64; 6];

/// Kinds that are failures; they come first.
const FAILURES: usize = 4;

impl Kind {
    /// In the order of rates.
    pub const ALL: [Kind; 6] =
        [Kind::Shard, Kind::Region, Kind::Burst, Kind::Provider, Kind::Mend, Kind::RegionBack];
}

/// Probability that the first failure of a run is made to happen.
const FIRST: f64 = 0.9;
/// Probability that a failure comes before the next relief.
const STRAINED: f64 = 0.8;
/// The same once the group has been strained and was mended: what is spent on one time is missing on another.
const STRAINED_AGAIN: f64 = 0.5;
/// The same where the time of the next relief is a guess.
const GUESSED: f64 = 0.6;
/// Probability of death of each node under study in a burst that is made worse.
const BURST_KILL: f64 = 0.5;

/// The group under study.
#[derive(Clone, Debug)]
pub struct Tilt {
    /// Which.
    pub group: GroupIx,
    /// How many times likelier this run so far is in truth than here.
    pub weight: f64,
    window: Option<Window>,
    /// End of the present race between failures and reliefs.
    race_at: f64,
    /// Times the group was whole.
    whole: u32,
    /// Guessed windows since the group last changed.
    guesses: i32,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    start: f64,
    end: f64,
    rate: f64,
    /// Probability of a failure in it: in truth, and here.
    natural: f64,
    forced: f64,
    fires_at: f64,
}

impl Tilt {
    /// A run yet to begin.
    pub fn new(group: GroupIx) -> Self {
        Tilt { group, weight: 1.0, window: None, race_at: f64::INFINITY, whole: 0, guesses: 0 }
    }

    /// Opens a window if none is open.
    pub fn look(&mut self, fleet: &mut Fleet, special: &Rates, until: f64) {
        if self.window.is_some_and(|window| window.end <= fleet.now) {
            self.close(fleet.now);
        }
        self.race_at = f64::INFINITY;
        if self.window.is_some() {
            return;
        }
        if special[FAILURES..].iter().any(|relief| *relief > 0.0) {
            self.race_at = fleet.now + fleet.dice.wait(special.iter().sum());
            return;
        }
        let (now, rate) = (fleet.now, special.iter().sum::<f64>());
        let (end, wish) = self.plan(fleet, until);
        let natural = -(-rate * (end - now)).exp_m1();
        let forced = if natural > 0.0 { natural.max(wish) } else { 0.0 };
        // Given that there is one, it comes as the first of a Poisson process would.
        let fires_at = match fleet.dice.chance(forced) {
            true => now - (-natural * fleet.dice.uniform()).ln_1p() / rate,
            false => f64::INFINITY,
        };
        self.window = Some(Window { start: now, end, rate, natural, forced, fires_at });
    }

    /// How long the next window is, and how likely a failure shall be in it.
    fn plan(&mut self, fleet: &Fleet, until: f64) -> (f64, f64) {
        let intact = usize::from(fleet.groups.intact[self.group as usize]);
        if fleet.stats.ever_lost.contains(&self.group) {
            return (until, 0.0);
        }
        let dead = (0..fleet.spec.places.len()).filter_map(|region| fleet.back_at(region));
        let dead = dead.fold(f64::INFINITY, f64::min);
        if intact == fleet.spec.scheme.n() {
            self.whole += 1;
            // A dead region that the group does not need any more ends the window, since it changes the rates.
            return (until.min(dead), if self.whole == 1 { FIRST } else { 0.0 });
        }
        let known = dead.min(fleet.crew.next_done(self.group)).min(until);
        // Without a relief to race against, the region that died is the last one.
        let Some(shared) = fleet.shared() else { return (known, 0.0) };
        // Nobody knows when a task that waits will run: guess, and guess twice as long each time.
        let task = fleet.shard_bytes / shared.node_bytes_s / super::crew::YEAR_SECONDS;
        let guess = fleet.now + (shared.patience() + task) * 2f64.powi(self.guesses.min(60));
        self.guesses += 1;
        (known.min(guess), GUESSED)
    }

    /// When the forced failure comes, if it does, or the race ends.
    pub fn fires_at(&self) -> f64 {
        self.window.map_or(self.race_at, |window| window.fires_at)
    }

    /// When the present window ends.
    pub fn window_end(&self) -> f64 {
        self.window.map_or(f64::INFINITY, |window| window.end)
    }

    /// The window ends at this time without a failure.
    pub fn close(&mut self, now: f64) {
        let Some(window) = self.window.take() else { return };
        let passed = (now.min(window.end) - window.start) * window.rate;
        let survived = if passed > 0.0 && window.natural > 0.0 {
            1.0 - window.forced * (-(-passed).exp_m1() / window.natural).min(1.0)
        } else {
            1.0
        };
        if survived > 0.0 {
            self.weight *= (-passed).exp() / survived;
        }
    }

    /// The group, or what threatens it, has changed.
    pub fn touch(&mut self, now: f64) {
        self.close(now);
        self.guesses = 0;
    }

    /// The forced failure comes, or the race ends: by which kind. `force` tilts the race.
    pub fn fire(&mut self, dice: &mut Dice, special: &Rates, force: bool) -> usize {
        let (failures, reliefs) = special.split_at(FAILURES);
        let (failure, relief): (f64, f64) = (failures.iter().sum(), reliefs.iter().sum());
        if let Some(window) = self.window.take() {
            self.weight *= window.natural / window.forced;
        } else {
            let natural = failure / (failure + relief);
            let wish = if self.whole <= 1 { STRAINED } else { STRAINED_AGAIN };
            let forced = if force && failure > 0.0 { natural.max(wish) } else { natural };
            if !dice.chance(forced) {
                self.weight *= (1.0 - natural) / (1.0 - forced);
                return FAILURES + dice.pick(reliefs);
            }
            self.weight *= natural / forced;
        }
        let kinds = failures.iter().filter(|rate| **rate > 0.0).count() as f64;
        let mixed = |rate: &f64| if *rate > 0.0 { 0.5 * rate / failure + 0.5 / kinds } else { 0.0 };
        let mixed: Vec<f64> = failures.iter().map(mixed).collect();
        let kind = dice.pick(&mixed);
        self.weight *= failures[kind] / failure / mixed[kind];
        kind
    }

    /// Which of `count` nodes under study a burst destroys that destroys at least one.
    pub fn burst(&mut self, dice: &mut Dice, own: f64, count: usize) -> Vec<bool> {
        let worse = own.max(BURST_KILL);
        let used = if dice.chance(0.5) { worse } else { own };
        // The first that is hit, then each of the others as it comes.
        let none_before =
            |p: f64| (0..count).map(move |at| (1.0 - p).powi(at as i32) * p).collect::<Vec<_>>();
        let first = dice.pick(&none_before(used));
        let hit: Vec<bool> = (0..count).map(|at| at == first || at > first && dice.chance(used)).collect();
        let likelihood = |p: f64| {
            let any = -(count as f64 * (-p).ln_1p()).exp_m1();
            hit.iter().map(|hit| if *hit { p } else { 1.0 - p }).product::<f64>() / any
        };
        let (natural, mixed) = (likelihood(own), 0.5 * likelihood(own) + 0.5 * likelihood(worse));
        self.weight *= natural / mixed;
        hit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Over all ways a window can end, each with the probability it has here, the weights must average to 1.
        #[test]
        fn windows_lose_no_probability(rate in 1e-6f64..5.0, length in 0.01f64..3.0, wish in 0.0f64..0.95, cut in 0.0f64..1.0) {
            let natural = -(-rate * length).exp_m1();
            let forced = natural.max(wish);
            let open = Window { start: 0.0, end: length, rate, natural, forced, fires_at: f64::INFINITY };
            let tilt = || Tilt { window: Some(open), ..Tilt::new(0) };
            // The window is cut off at some time before its end, or not.
            let end = length * cut;
            let fired = forced * -(-rate * end).exp_m1() / natural;
            let mut closed = tilt();
            closed.close(end);
            let sum = fired * natural / forced + (1.0 - fired) * closed.weight;
            prop_assert!((sum - 1.0).abs() < 1e-9, "{sum}");
            prop_assert!((fired * natural / forced - -(-rate * end).exp_m1()).abs() < 1e-9);
        }

        #[test]
        fn choices_weigh_at_most_twice_and_one_on_average(
            rates in prop::array::uniform6(0.0f64..9.0), own in 0.001f64..0.4, count in 1usize..6, seed: u64
        ) {
            prop_assume!(rates[..FAILURES].iter().sum::<f64>() > 0.0);
            let mut dice = Dice::new(seed, 0);
            let (mut kinds, mut bursts) = (0.0, 0.0);
            const TRIALS: u32 = 4_000;
            for _ in 0..TRIALS {
                let mut tilt = Tilt::new(0);
                tilt.fire(&mut dice, &rates, true);
                // A relief may weigh 1 / (1 − STRAINED).
                prop_assert!(tilt.weight <= 5.0 + 1e-9);
                kinds += tilt.weight / f64::from(TRIALS);
                let mut tilt = Tilt::new(0);
                prop_assert!(tilt.burst(&mut dice, own, count).contains(&true));
                prop_assert!(tilt.weight <= 2.0 + 1e-9);
                bursts += tilt.weight / f64::from(TRIALS);
            }
            // Weights lie in 0 to 5 and 0 to 2: their means are off by so much once in e^(2·4000·0.05²)/2 = 2e8 runs
            // (Hoeffding).
            prop_assert!((kinds - 1.0).abs() < 0.25 && (bursts - 1.0).abs() < 0.1, "{kinds} {bursts}");
        }
    }
}
