//! Makes a plan that fails smaller: fewer steps, fewer clients, repositories and machines, shorter faults. Steps go by
//! delta debugging (Zeller and Hildebrandt 2002); a smaller plan is kept if it still fails the same way.

use super::{Fault, Plan, Step, What};

/// Runs a plan and says whether it fails as the first one did.
pub type Fails<'a> = &'a mut dyn FnMut(&Plan) -> bool;

/// The smallest plan found; at most `tries` are run.
pub fn shrink(plan: &Plan, tries: u64, fails: Fails<'_>) -> Plan {
    let mut search = Search { best: plan.clone(), left: tries, fails };
    loop {
        let before = (search.best.steps.len(), search.left);
        search.steps();
        search.clients();
        search.repositories();
        search.machines();
        search.times();
        if search.left == 0 || (search.best.steps.len(), search.left).0 == before.0 {
            return search.best;
        }
    }
}

struct Search<'a> {
    best: Plan,
    left: u64,
    fails: Fails<'a>,
}

impl Search<'_> {
    fn try_out(&mut self, plan: Plan) -> bool {
        if self.left == 0 || plan == self.best {
            return false;
        }
        self.left -= 1;
        let fails = (self.fails)(&plan);
        if fails {
            self.best = plan;
        }
        fails
    }

    /// Takes out halves, then quarters, down to single steps.
    fn steps(&mut self) {
        let mut pieces = 2;
        while self.left > 0 {
            let len = self.best.steps.len();
            let size = len.div_ceil(pieces).max(1);
            let mut start = 0;
            let mut removed = false;
            while start < self.best.steps.len() && self.left > 0 {
                let end = (start + size).min(self.best.steps.len());
                let mut plan = self.best.clone();
                plan.steps.drain(start..end);
                match self.try_out(plan) {
                    true => removed = true,
                    false => start = end,
                }
            }
            if size == 1 && !removed {
                return;
            }
            pieces = if removed { 2 } else { pieces * 2 };
        }
    }

    fn clients(&mut self) {
        while self.best.knobs.clients > 1 {
            let mut plan = self.best.clone();
            plan.knobs.clients -= 1;
            if !self.try_out(plan) {
                return;
            }
        }
    }

    fn repositories(&mut self) {
        while self.best.knobs.policies.len() > 1 {
            let mut plan = self.best.clone();
            plan.knobs.policies.pop();
            plan.knobs.pack_bytes.pop();
            if !self.try_out(plan) {
                return;
            }
        }
    }

    fn machines(&mut self) {
        for region in 0..self.best.layout.regions.len() {
            while self.best.layout.regions.get(region).is_some_and(|count| *count > 1) {
                let mut plan = self.best.clone();
                plan.layout.regions[region] -= 1;
                if !self.try_out(plan) {
                    break;
                }
            }
        }
        while self.best.layout.regions.len() > 3 {
            let mut plan = self.best.clone();
            plan.layout.regions.pop();
            if !self.try_out(plan) {
                return;
            }
        }
    }

    /// Everything at once somewhat sooner, faults that last half as long, and links without loss and repetition.
    fn times(&mut self) {
        let halved = |step: &Step| Step { at_ms: step.at_ms / 2, what: step.what.clone() };
        let mut plan = self.best.clone();
        plan.steps = plan.steps.iter().map(halved).collect();
        self.try_out(plan);
        let mut plan = self.best.clone();
        plan.steps.iter_mut().for_each(|step| {
            if let What::Fault(fault) = &mut step.what {
                fault.halve();
            }
        });
        self.try_out(plan);
        let mut plan = self.best.clone();
        (plan.knobs.loss_ppm, plan.knobs.duplicate_one_in) = (0, 0);
        self.try_out(plan);
        let mut plan = self.best.clone();
        plan.knobs.entries = plan.knobs.entries.div_ceil(2);
        self.try_out(plan);
    }
}

/// One line for each step, for people.
pub fn story(plan: &Plan) -> Vec<String> {
    let line = |step: &Step| match &step.what {
        What::Work { client, work } => format!("{:>7} ms  client {client}: {}", step.at_ms, work.word()),
        What::Fault(fault) => format!("{:>7} ms  {}", step.at_ms, told(fault)),
    };
    plan.steps.iter().map(line).collect()
}

fn told(fault: &Fault) -> String {
    fault.to_string()
}

#[cfg(test)]
mod tests {
    use super::super::{Profile, Work, draw::draw};
    use super::*;

    #[test]
    fn what_remains_is_what_the_failure_needs() {
        let mut plan = draw(7, Profile::Storm);
        plan.steps.insert(5, Step { at_ms: 1, what: What::Fault(Fault::Blackout { for_ms: 77 }) });
        let needs = |plan: &Plan| {
            let blackout = |s: &Step| matches!(s.what, What::Fault(Fault::Blackout { for_ms: 77 }));
            let full = |s: &Step| matches!(s.what, What::Work { work: Work::Full, .. });
            plan.steps.iter().any(blackout) && plan.steps.iter().any(full)
        };
        let mut runs = 0;
        let small = shrink(&plan, 1_000, &mut |plan| {
            runs += 1;
            needs(plan)
        });
        assert!(needs(&small));
        assert_eq!(small.steps.len(), 2, "{:#?}", story(&small));
        assert_eq!((small.knobs.clients, small.knobs.policies.len(), small.layout.nodes()), (1, 1, 3));
        assert!(runs < 300, "{runs} runs");
    }

    #[test]
    fn tries_are_bounded() {
        let plan = draw(7, Profile::Storm);
        let mut runs = 0;
        shrink(&plan, 10, &mut |_| {
            runs += 1;
            true
        });
        assert!(runs <= 10);
    }
}
