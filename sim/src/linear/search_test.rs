//! The search against a search that tries everything, on histories small enough for it.

use super::reduce::reduce;
use super::search::*;
use proptest::prelude::*;
use std::cell::Cell;

/// A register: simple to reason about, and as hard to check as anything.
struct Register;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Op {
    /// Always succeeds.
    Write(u8),
    /// Saw this.
    Read(u8),
    /// Replaces the first by the second; whether it did, if anybody knows.
    Swap(u8, u8, Option<bool>),
}

impl Spec for Register {
    type State = u8;
    type Op = Op;
    fn begin(&self) -> u8 {
        0
    }
    fn step(&self, state: &u8, op: &Op) -> Option<u8> {
        match *op {
            Op::Write(value) => Some(value),
            Op::Read(value) => (value == *state).then_some(value),
            Op::Swap(old, new, done) => {
                let fits = *state == old;
                (done.unwrap_or(fits) == fits).then_some(if fits { new } else { *state })
            }
        }
    }
    /// A write of what is there already is none of these: later it may undo another.
    fn settles(&self, op: &Op) -> bool {
        matches!(op, Op::Read(_))
    }
    fn matters(&self, _: &Op, _: &Op) -> bool {
        true
    }
    fn forget(&self, op: &Op) -> Option<Op> {
        match *op {
            Op::Write(_) => Some(*op),
            Op::Read(_) => None,
            Op::Swap(old, new, _) => Some(Op::Swap(old, new, None)),
        }
    }
}

/// Every order of every choice of unanswered operations.
fn by_force(history: &[Timed<Op>], done: u32, state: u8) -> bool {
    let left = |at: usize| done & (1 << at) == 0;
    if history.iter().enumerate().all(|(at, timed)| !left(at) || timed.ended.is_none()) {
        return true;
    }
    (0..history.len()).filter(|at| left(*at)).any(|at| {
        let timed = &history[at];
        let late = |other: usize| left(other) && history[other].ended.is_some_and(|end| end < timed.began);
        !(0..history.len()).any(late)
            && Register.step(&state, &timed.op).is_some_and(|state| by_force(history, done | 1 << at, state))
    })
}

fn op() -> impl Strategy<Value = Op> {
    let value = || 0..3u8;
    prop_oneof![
        value().prop_map(Op::Write),
        value().prop_map(Op::Read),
        (value(), value(), any::<bool>()).prop_map(|(old, new, done)| Op::Swap(old, new, Some(done))),
    ]
}

fn history() -> impl Strategy<Value = Vec<Timed<Op>>> {
    let timed = (op(), 0..12u64, prop::option::weighted(0.8, 0..6u64)).prop_filter_map(
        "a read that nobody has seen is none",
        |(op, began, took)| match took {
            Some(took) => Some(Timed { began, ended: Some(began + took), op }),
            None => Register.forget(&op).map(|op| Timed { began, ended: None, op }),
        },
    );
    prop::collection::vec(timed, 0..8)
}

fn verdict(history: &[Timed<Op>]) -> Verdict {
    search(&Register, history, u64::MAX).verdict
}

#[test]
fn it_finds_what_trying_everything_finds() {
    let (yes, no) = (Cell::new(0), Cell::new(0));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3_000));
    let ran = runner.run(&history(), |history| {
        let possible = by_force(&history, 0, Register.begin());
        let count = if possible { &yes } else { &no };
        count.set(count.get() + 1);
        let expected = if possible { Verdict::Linearizable } else { Verdict::Impossible };
        prop_assert_eq!(verdict(&history), expected);
        Ok(())
    });
    ran.unwrap();
    assert!(yes.get() > 300 && no.get() > 300, "both kinds were tried: {} and {}", yes.get(), no.get());
}

#[test]
fn what_is_reduced_is_still_impossible_and_no_answer_can_be_spared() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(1_000));
    let ran = runner.run(&history(), |history| {
        if verdict(&history) != Verdict::Impossible {
            return Ok(());
        }
        let least = reduce(|_| Register, &history);
        prop_assert_eq!(verdict(&least), Verdict::Impossible);
        for at in (0..least.len()).filter(|at| least[*at].ended.is_some()) {
            let mut fewer = least.clone();
            match Register.forget(&fewer[at].op) {
                Some(op) => fewer[at] = Timed { began: fewer[at].began, ended: None, op },
                None => drop(fewer.remove(at)),
            }
            prop_assert_eq!(verdict(&fewer), Verdict::Linearizable);
        }
        Ok(())
    });
    ran.unwrap();
}

fn timed(began: u64, ended: impl Into<Option<u64>>, op: Op) -> Timed<Op> {
    Timed { began, ended: ended.into(), op }
}

#[test]
fn a_write_nobody_saw_answered_may_have_happened_at_any_time_or_never() {
    let lost = timed(1, None, Op::Write(1));
    let read = |at, value| timed(at, at + 1, Op::Read(value));
    assert_eq!(verdict(&[lost.clone(), read(2, 0), read(4, 0)]), Verdict::Linearizable);
    assert_eq!(verdict(&[lost.clone(), read(2, 0), read(4, 1)]), Verdict::Linearizable);
    assert_eq!(verdict(&[lost.clone(), read(2, 1), read(4, 0)]), Verdict::Impossible);
    assert_eq!(verdict(&[read(2, 1), read(4, 1)]), Verdict::Impossible);
}

#[test]
fn a_spent_budget_is_undecided() {
    // Many writes at the same time and a read of what nobody wrote.
    let mut history: Vec<_> = (1..3).cycle().take(24).map(|value| timed(1, 2, Op::Write(value))).collect();
    history.push(timed(3, 4, Op::Read(3)));
    assert_eq!(search(&Register, &history, 50).verdict, Verdict::Undecided);
    // Without memory it would be 24! orders.
    history.truncate(10);
    history.push(timed(3, 4, Op::Read(3)));
    let all = search(&Register, &history, 100_000);
    assert_eq!(all.verdict, Verdict::Impossible);
    assert!(all.states < 25_000, "{} states", all.states);
}
