//! Who is refused: the emptied, the twice founded; and who may come: the newcomer, the old release.

use super::super::testkit::SlotDisk;
use super::*;
use crate::identity::Identity;
use proptest::prelude::*;

fn passport(node: u64, incarnation: u64, formation: u64) -> Passport {
    let owner = Identity { cluster: ClusterId([1; 16]), node: NodeId(node) };
    Passport::new(Claim { owner, incarnation, formation }, Arc::new(SlotDisk::default()))
}

async fn asked(to: &Passport, from: &Passport, purpose: Purpose) -> Result<(), ApiError> {
    let (own, other) = (from.claim().owner.node, to.claim().owner.node);
    to.check(own, from.stamp(other, ()).metadata(), purpose).await
}

fn refused(answer: Result<(), ApiError>) -> bool {
    matches!(answer, Err(ApiError::Denied(_)))
}

#[tokio::test]
async fn whoever_lost_its_memory_is_refused_and_told() {
    let (a, b, emptied) = (passport(1, 11, 7), passport(2, 21, 7), passport(2, 22, 0));
    a.note(BTreeMap::from([(NodeId(1), 11), (NodeId(2), 21)]), BTreeSet::new());
    for purpose in [Purpose::Lead, Purpose::Ask] {
        asked(&a, &b, purpose).await.unwrap();
        assert!(refused(asked(&a, &emptied, purpose).await));
    }
    assert!(refused(asked(&emptied, &a, Purpose::Lead).await));
    assert!(emptied.ousted().await.contains("another data directory"));
    assert_eq!(emptied.formation(), 0, "it takes up nothing any more");
    let told = passport(2, 22, 0);
    told.told(22);
    assert!(told.0.ousted.borrow().is_none());
    told.told(21);
    assert!(!told.ousted().await.is_empty());
}

#[tokio::test]
async fn what_was_founded_apart_stays_apart() {
    let (a, other, newcomer) = (passport(1, 11, 7), passport(2, 21, 8), passport(3, 31, 0));
    for purpose in [Purpose::Lead, Purpose::Ask] {
        assert!(refused(asked(&a, &other, purpose).await) && refused(asked(&other, &a, purpose).await));
    }
    asked(&a, &newcomer, Purpose::Ask).await.unwrap();
    assert!(refused(asked(&a, &newcomer, Purpose::Lead).await), "nobody leads who was never founded");
    asked(&newcomer, &a, Purpose::Ask).await.unwrap();
    assert_eq!(newcomer.formation(), 0, "whoever only asks founds nobody");
    a.check(NodeId(9), &MetadataMap::new(), Purpose::Lead).await.unwrap();
}

#[tokio::test]
async fn the_retired_are_refused_and_end() {
    let (a, b) = (passport(1, 11, 7), passport(2, 21, 7));
    a.note(BTreeMap::new(), BTreeSet::from([NodeId(2)]));
    b.note(BTreeMap::new(), BTreeSet::from([NodeId(2)]));
    assert!(refused(asked(&a, &b, Purpose::Lead).await));
    b.leave_if_retired();
    assert!(b.ousted().await.contains("retired"));
}

#[test]
fn a_formation_is_its_cluster_and_its_founders() {
    let founders = |ids: &[u64]| -> BTreeSet<NodeId> { ids.iter().copied().map(NodeId).collect() };
    let one = formation_of(ClusterId([1; 16]), &founders(&[1, 2, 3]));
    assert_eq!(one, formation_of(ClusterId([1; 16]), &founders(&[3, 2, 1])));
    assert_ne!(one, formation_of(ClusterId([1; 16]), &founders(&[1, 2, 4])));
    assert_ne!(one, formation_of(ClusterId([2; 16]), &founders(&[1, 2, 3])));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn headers_come_back_and_rubbish_does_not(formation: u64, from: u64, to: u64, rubbish in "[ -~]{0,60}") {
        let said = Said { formation, from, to };
        prop_assert_eq!(Said::parse(said.header().to_str().unwrap()), Some(said));
        prop_assert!(Said::parse(&rubbish).is_none_or(|said| said.header() == rubbish.as_str()));
    }
}
