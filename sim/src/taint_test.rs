//! What is planted is found.

use super::*;
use crate::entropy::Rng;
use crate::tree;

#[test]
fn what_is_planted_is_found_wherever_it_lies_and_nothing_else_is() {
    let (taint, mut rng) = (Taint::default(), Rng::new(1, 2));
    let mut tree = tree::grow(&mut rng, 30, 1_000_000);
    let before = tree.clone();
    tree::plant(&mut rng, &mut tree, &taint);
    taint.keep("a passphrase", b"open sesame, please");
    taint.keep("too short", b"abc");
    let (path, planted) = tree.iter().find(|(path, _)| !before.contains_key(*path)).unwrap();
    for entry in before.values() {
        assert_eq!(taint.scan(&entry.bytes), None);
    }
    let mut noise = vec![0; 50_000];
    rng.fill(&mut noise);
    assert_eq!(taint.scan(&noise), None);
    for at in [0, 1, 7, 8, 31_337, noise.len() - 40] {
        let hide = |secret: &[u8]| {
            let mut bytes = noise.clone();
            bytes.splice(at..at, secret.iter().copied());
            taint.scan(&bytes)
        };
        assert_eq!(hide(b"open sesame, please"), Some(("a passphrase".into(), at)));
        assert_eq!(hide(&path[4..]), Some(("a file's name".into(), at)));
        assert_eq!(hide(&planted.bytes[500..524]), Some(("a file's contents".into(), at)));
        assert_eq!(hide(b"open sesame, plea"), None);
        assert!(hide(&planted.bytes[100..900]).is_some(), "any long piece holds one");
    }
    assert!(taint.leak().is_none());
    taint.watch(&planted.bytes, || "a test".into());
    assert_eq!(taint.leak().unwrap(), "blind: a file's contents is in a test at byte 0");
    assert!(taint.scanned() > 1_000_000);
}
