//! A picture of a run in the trace format of Chrome and Perfetto: a lane for each node and client, one for the world's
//! faults, and what each process sent by second. Spans that overlap without nesting get lanes of their own below.

use farshore_sim::world::{Mark, MarkKind, Timeline};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufWriter, Write};

/// Lanes of one process; more spans than that at a time share the last.
const LANES: u64 = 100;

/// Writes the picture of a run that ended at `end_us`.
pub fn write(file: impl Write, timeline: &Timeline, title: &str, end_us: u64) -> io::Result<()> {
    let (spans, points) = pair(&timeline.marks, end_us);
    let placed = place(spans);
    let mut events = names(timeline, &placed, &points, title);
    events.extend(placed.iter().map(|(lane, span)| span.event(*lane)));
    events.extend(points.iter().map(|mark| {
        let lane = mark.label * LANES;
        json!({"ph": "i", "s": "t", "pid": 1, "tid": lane, "ts": mark.at_us, "name": mark.name})
    }));
    events.extend(volume(timeline));
    // The format asks for no order, but people and tests read from the top.
    events.sort_by_key(|event| event["ts"].as_u64());
    let mut out = BufWriter::new(file);
    serde_json::to_writer(&mut out, &json!({"displayTimeUnit": "ms", "traceEvents": events}))?;
    out.flush()
}

/// Something that lasted.
#[derive(Clone, PartialEq, Debug)]
struct Span {
    label: u64,
    from_us: u64,
    to_us: u64,
    name: String,
    /// The run ended first.
    open: bool,
}

impl Span {
    fn event(&self, lane: u64) -> Value {
        let Span { from_us, to_us, name, open, .. } = self;
        let mut event =
            json!({"ph": "X", "pid": 1, "tid": lane, "ts": from_us, "dur": to_us - from_us, "name": name});
        if *open {
            event["args"] = json!({"not over when the run ended": true});
        }
        event
    }
}

/// Beginnings with their ends. What has no end lasts until the run's; an end without a beginning is dropped.
fn pair(marks: &[Mark], end_us: u64) -> (Vec<Span>, Vec<Mark>) {
    let (mut spans, mut points) = (Vec::<Span>::new(), Vec::new());
    let mut open: BTreeMap<(u64, &str), VecDeque<usize>> = BTreeMap::new();
    for mark in marks {
        let key = (mark.label, mark.name.as_str());
        match mark.kind {
            MarkKind::Point => points.push(mark.clone()),
            MarkKind::Begin => {
                open.entry(key).or_default().push_back(spans.len());
                let (label, from_us, name) = (mark.label, mark.at_us, mark.name.clone());
                spans.push(Span { label, from_us, to_us: end_us.max(from_us), name, open: true });
            }
            MarkKind::End => {
                let oldest = open.get_mut(&key).and_then(VecDeque::pop_front);
                if let Some(span) = oldest.and_then(|at| spans.get_mut(at)) {
                    (span.to_us, span.open) = (mark.at_us, false);
                }
            }
        }
    }
    (spans, points)
}

/// Gives each span the first lane of its process where it lies inside all that are open, as the format wants it.
fn place(mut spans: Vec<Span>) -> Vec<(u64, Span)> {
    // At the same time the longer one first, which the shorter then lies in.
    spans.sort_by_key(|span| (span.from_us, std::cmp::Reverse(span.to_us)));
    let mut lanes: BTreeMap<u64, Vec<Vec<u64>>> = BTreeMap::new();
    let mut placed = Vec::new();
    for span in spans {
        let lanes = lanes.entry(span.label).or_default();
        for ends in lanes.iter_mut() {
            while ends.last().is_some_and(|end| *end <= span.from_us) {
                ends.pop();
            }
        }
        let fits = |ends: &Vec<u64>| ends.last().is_none_or(|end| *end >= span.to_us);
        let lane = lanes.iter().position(fits).unwrap_or_else(|| {
            lanes.push(Vec::new());
            lanes.len() - 1
        });
        lanes[lane].push(span.to_us);
        placed.push((span.label * LANES + (lane as u64).min(LANES - 1), span));
    }
    placed
}

/// What lanes are called, and their order: the world, nodes, clients.
fn names(timeline: &Timeline, placed: &[(u64, Span)], points: &[Mark], title: &str) -> Vec<Value> {
    let mut lanes: Vec<u64> = placed.iter().map(|(lane, _)| *lane).collect();
    lanes.extend(points.iter().map(|mark| mark.label * LANES));
    lanes.extend(timeline.lanes.keys().map(|label| label * LANES));
    lanes.sort_unstable();
    lanes.dedup();
    let meta = |lane: u64, what: &str, args: Value| json!({"ph": "M", "pid": 1, "tid": lane, "name": what, "args": args});
    let mut events = vec![meta(0, "process_name", json!({"name": title}))];
    for lane in lanes {
        let called = called(timeline, lane / LANES);
        let name = if lane % LANES == 0 { called } else { format!("{called} +{}", lane % LANES) };
        events.push(meta(lane, "thread_name", json!({"name": name})));
        events.push(meta(lane, "thread_sort_index", json!({"sort_index": lane})));
    }
    events
}

fn called(timeline: &Timeline, label: u64) -> String {
    match timeline.lanes.get(&label) {
        Some(name) => name.clone(),
        None if label == 0 => "faults".into(),
        None => format!("p{label}"),
    }
}

/// KiB sent in each second, by process; a second in which one sent nothing is drawn as nothing.
fn volume(timeline: &Timeline) -> Vec<Value> {
    let mut counters = BTreeMap::new();
    for (&(second, label), &bytes) in &timeline.sent {
        counters.insert((label, second), bytes.div_ceil(1024));
        counters.entry((label, second + 1)).or_insert(0);
    }
    let event = |((label, second), kib): ((u64, u64), u64)| {
        let name = format!("sent by {}", called(timeline, label));
        json!({"ph": "C", "pid": 1, "ts": second * 1_000_000, "name": name, "args": {"KiB/s": kib}})
    };
    counters.into_iter().map(event).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(at_us: u64, label: u64, kind: MarkKind, name: &str) -> Mark {
        Mark { at_us, label, kind, name: name.into() }
    }

    /// Loads a written picture and checks it as a viewer would read it.
    fn load(timeline: &Timeline, end_us: u64) -> Vec<Value> {
        let mut bytes = Vec::new();
        write(&mut bytes, timeline, "storm seed 1", end_us).unwrap();
        let loaded: Value = serde_json::from_slice(&bytes).unwrap();
        let events = loaded["traceEvents"].as_array().unwrap().clone();
        let times: Vec<_> = events.iter().map(|event| event["ts"].as_u64()).collect();
        assert!(times.is_sorted(), "time goes forward");
        let mut open: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut spans: Vec<&Value> = events.iter().filter(|event| event["ph"] == "X").collect();
        spans.sort_by_key(|span| (span["ts"].as_u64(), std::cmp::Reverse(span["dur"].as_u64())));
        for span in spans {
            let (from, dur) = (span["ts"].as_u64().unwrap(), span["dur"].as_u64().unwrap());
            let ends = open.entry(span["tid"].as_u64().unwrap()).or_default();
            ends.retain(|end| *end > from);
            assert!(ends.iter().all(|end| *end >= from + dur), "spans of a lane nest: {span}");
            assert!(from + dur <= end_us);
            ends.push(from + dur);
        }
        events
    }

    #[test]
    fn a_picture_loads_and_its_spans_nest() {
        use MarkKind::{Begin, End, Point};
        let marks = vec![
            mark(0, 1, Begin, "backup"),
            mark(5, 0, Begin, "cut"),
            mark(7, 0, Begin, "pause"),
            mark(8, 1, Point, "acknowledged"),
            mark(8, 0, Begin, "cut"),
            mark(9, 0, End, "cut"),
            mark(9, 3, End, "never begun"),
            mark(20, 0, End, "pause"),
            mark(21, 1, End, "backup"),
        ];
        let sent = BTreeMap::from([((0, 1), 5_000), ((3, 1), 100)]);
        let lanes = BTreeMap::from([(1, "node 1 (cloud0/r)".to_string())]);
        let events = load(&Timeline { marks, sent, lanes }, 30);
        let spans: Vec<_> = events.iter().filter(|e| e["ph"] == "X").collect();
        let durations = |name: &str| -> Vec<u64> {
            let of = spans.iter().filter(|span| span["name"] == name);
            of.map(|span| span["dur"].as_u64().unwrap()).collect()
        };
        assert_eq!((durations("backup"), durations("pause")), (vec![21], vec![13]));
        assert_eq!(durations("cut"), [4, 22], "the oldest ends first, the other when the run ends");
        assert_eq!(events.iter().filter(|e| e["ph"] == "i").count(), 1);
        let threads = events.iter().filter(|e| e["name"] == "thread_name").map(|e| &e["args"]["name"]);
        let named: Vec<_> = threads.map(|name| name.as_str().unwrap()).collect();
        assert_eq!(named, ["faults", "faults +1", "faults +2", "node 1 (cloud0/r)"]);
        assert_eq!(events.iter().filter(|e| e["ph"] == "C").count(), 4);
    }

    #[test]
    fn any_marks_make_a_picture_that_loads() {
        let mut rng = farshore_sim::entropy::Rng::new(1, 1);
        for _ in 0..50 {
            let mut at_us = 0;
            let kinds = [MarkKind::Begin, MarkKind::Begin, MarkKind::End, MarkKind::Point];
            let marks = (0..200).map(|_| {
                at_us += rng.below(5);
                let name = ["a", "b", "c"][rng.below(3) as usize];
                mark(at_us, rng.below(3), kinds[rng.below(4) as usize], name)
            });
            let timeline = Timeline { marks: marks.collect(), ..Timeline::default() };
            load(&timeline, at_us);
        }
    }
}
