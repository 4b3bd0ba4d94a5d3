//! Two snapshots planted by hand, compared and searched.

use super::*;
use crate::files::FileTime;
use crate::find::Wanted;
use crate::list::Filter;
use crate::pattern::{Case, Pattern};
use crate::select::Select;
use crate::testing::{Planter, entry};

async fn file(p: &mut Planter, name: &[u8], bytes: &[u8]) -> Entry {
    let content = p.content(bytes, 4_096).await;
    entry(name, Node::File { size: bytes.len() as u64, content })
}

/// Two snapshots, the second with every kind of difference.
async fn planted() -> Planter {
    let mut p = Planter::new(100_000).await;
    let (same, a, b) =
        (file(&mut p, b"same", b"1").await, file(&mut p, b"a", b"old").await, file(&mut p, b"b", b"2").await);
    let sum = file(&mut p, b"sum.TXT", b"3").await;
    let below = p.dir(vec![same, sum]).await;
    let lost = file(&mut p, b"lost", b"12345").await;
    let gone = p.dir(vec![lost]).await;
    let link = |target: &[u8]| entry(b"link", Node::Symlink { target: target.to_vec() });
    let top = vec![
        a.clone(),
        b.clone(),
        entry(b"below", Node::Dir { root: below }),
        entry(b"gone", Node::Dir { root: gone }),
        link(b"here"),
        file(&mut p, b"rot", b"good").await,
        file(&mut p, b"turns", b"file").await,
    ];
    let root = p.dir(top).await;
    p.snapshot(1, "h", root).await;

    let mut newer = file(&mut p, b"a", b"news").await;
    newer.meta.mtime = FileTime { secs: 1_800_000_000, nanos: 0 };
    let mut other_mode = b;
    other_mode.meta.mode ^= 0o111;
    let bare = p.dir(vec![]).await;
    let in_it = file(&mut p, b"in it", b"x").await;
    let turned = p.dir(vec![in_it]).await;
    let top = vec![
        newer,
        other_mode,
        entry(b"below", Node::Dir { root: below }),
        entry(b"fresh", Node::Dir { root: bare }),
        link(b"there"),
        file(&mut p, b"rot", b"gond").await,
        entry(b"turns", Node::Dir { root: turned }),
    ];
    let root = p.dir(top).await;
    p.snapshot(2, "h", root).await;
    p
}

#[tokio::test]
async fn every_kind_of_difference_has_its_letter() {
    let p = planted().await;
    let repo = p.repository().await;
    let all = repo.snapshots(&Filter::default()).await.unwrap();
    let of = async |one: usize, other: usize, attributes: bool| {
        let side = |at: usize| Side { snapshot: &all[at], path: None };
        let mut seen = Vec::new();
        let mut each = |d: Difference| {
            seen.push(format!("{} {}", d.change.letter(), String::from_utf8(d.path).unwrap()))
        };
        let totals = repo.diff((side(one), side(other)), attributes, &mut each).await.unwrap();
        (seen, totals)
    };
    let (seen, totals) = of(0, 1, true).await;
    let wanted = [
        "M /a",
        "U /b",
        "+ /fresh/",
        "- /gone/",
        "- /gone/lost",
        "M /link",
        "? /rot",
        "T /turns/",
        "+ /turns/in it",
    ];
    assert_eq!(seen, wanted);
    assert_eq!(totals.changed_files, 2);
    assert_eq!(totals.added, Tally { files: 1, dirs: 2, others: 0, bytes: 1 });
    assert_eq!(totals.removed, Tally { files: 2, dirs: 1, others: 0, bytes: 9 });
    let without: Vec<_> = wanted.iter().filter(|line| !line.starts_with('U')).collect();
    assert!(of(0, 1, false).await.0.iter().eq(without));
    let (back, reversed) = of(1, 0, true).await;
    assert_eq!(back.len(), wanted.len());
    assert_eq!((reversed.added, reversed.removed), (totals.removed, totals.added));
    assert_eq!(of(1, 1, true).await, (vec![], Totals::default()));
    let part = |at: usize, path: &'static [u8]| Side { snapshot: &all[at], path: Some(path) };
    assert_eq!(
        repo.diff((part(0, b"/below"), part(1, b"/below")), true, &mut |_| ()).await.unwrap(),
        Totals::default()
    );
    let wrong = repo.diff((part(0, b"/a"), part(1, b"/a")), true, &mut |_| ()).await;
    assert!(matches!(wrong, Err(Error::Invalid(_))), "{wrong:?}");
}

#[tokio::test]
async fn paths_are_found_by_pattern_case_and_time() {
    let p = planted().await;
    let repo = p.repository().await;
    let all = repo.snapshots(&Filter::default()).await.unwrap();
    let found = async |pattern: &str, ignore_case: bool, since_ms: Option<i64>| {
        let case = if ignore_case { Case::Ignored } else { Case::Kept };
        let include = vec![Pattern::parse(pattern.as_bytes(), case).unwrap()];
        let select = Select { include, exclude: vec![] };
        let mut finder = repo.finder(Wanted { select, since_ms, until_ms: None });
        let mut paths = Vec::new();
        for snapshot in all.iter().rev() {
            let mut each =
                |found: crate::list::ListedEntry| paths.push(String::from_utf8(found.path).unwrap());
            finder.look(snapshot, &mut each).await.unwrap();
        }
        paths
    };
    assert_eq!(
        found("s*m*", false, None).await,
        ["/below/same", "/below/sum.TXT", "/below/same", "/below/sum.TXT"]
    );
    assert_eq!(found("*.txt", false, None).await, [""; 0]);
    assert_eq!(found("*.txt", true, None).await, ["/below/sum.TXT"; 2]);
    assert_eq!(found("/gone", false, None).await, ["/gone", "/gone/lost"]);
    assert_eq!(found("lost", false, None).await, ["/gone/lost"]);
    assert_eq!(found("*", false, Some(1_750_000_000_000)).await, ["/a"]);
}
