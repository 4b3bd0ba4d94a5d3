//! Who is let in, and who is told apart: real handshakes over streams in memory.

use crate::pki::{Authority, PkiError, Validity};
use crate::testing::{FixedClock, NOW_MS, World};
use crate::tls::{Caller, Credentials, Expect, Tls, TlsError};
use farshore_core::id::{ClusterId, NodeId};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// Shakes hands; the accepting side speaks first, as an HTTP/2 server does.
async fn shake(
    dialler: &Tls,
    listener: &Tls,
    expect: Expect,
) -> (Result<NodeId, TlsError>, Result<Caller, TlsError>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let accept = async {
        let (mut stream, who) = listener.accept(Box::new(far)).await?;
        let _ = stream.write_all(b"hello").await;
        let _ = stream.flush().await;
        Ok((stream, who))
    };
    let (dialled, accepted) = tokio::join!(dialler.connect(Box::new(near), expect), accept);
    (dialled.map(|(_, id)| id), accepted.map(|(_, who)| who))
}

fn is_stranger<T>(result: Result<T, TlsError>) -> bool {
    matches!(result, Err(TlsError::Stranger(_)))
}

#[tokio::test]
async fn members_know_each_other() {
    let world = World::new(1);
    let ((a_id, a), (b_id, b)) = (world.node(), world.node());
    assert_ne!(a_id, b_id);
    assert_eq!((a.own_id(), b.own_id()), (Some(a_id), Some(b_id)));
    let laptop = world.client("laptop");
    assert_eq!(laptop.own_id(), None);

    assert_eq!(shake(&a, &b, Expect::Node(b_id)).await, (Ok(b_id), Ok(Caller::Node(a_id))));
    assert_eq!(shake(&laptop, &b, Expect::AnyNode).await, (Ok(b_id), Ok(Caller::Client("laptop".into()))));
    assert_eq!(shake(&laptop, &a, Expect::Node(a_id)).await.0, Ok(a_id));
}

#[tokio::test]
async fn another_cluster_is_refused_by_both_sides() {
    let (ours, theirs) = (World::new(1), World::new(2));
    let ((id, node), stranger) = (ours.node(), theirs.client("laptop"));
    assert!(is_stranger(shake(&stranger, &node, Expect::Node(id)).await.0));
    let (_, their_node) = theirs.node();
    assert!(is_stranger(shake(&ours.client("laptop"), &their_node, Expect::AnyNode).await.0));

    // Same cluster id, other authority: a forger knows our id but not our key. He trusts everybody.
    let forger = World::new(1);
    let forged = forger.authority.issue_node(Validity::ten_years(NOW_MS)).unwrap();
    let gullible = Tls::new(
        &Credentials {
            cluster: ours.authority.cluster(),
            ca_pem: ours.authority.ca_cert_pem().into(),
            cert_pem: forged.cert_pem,
            key_pem: forged.key_pem,
        },
        Arc::new(FixedClock(NOW_MS)),
    )
    .unwrap();
    let (dialled, accepted) = shake(&gullible, &node, Expect::Node(id)).await;
    assert!(is_stranger(accepted), "the node must refuse him");
    assert!(is_stranger(dialled), "and he must be told before he believes to be connected");
}

#[tokio::test]
async fn another_node_at_the_address_is_refused_but_may_move_away() {
    let world = World::new(1);
    let ((_, a), (b_id, b), (c_id, _)) = (world.node(), world.node(), world.node());
    assert!(matches!(shake(&a, &b, Expect::Node(c_id)).await.0, Err(TlsError::Handshake(_))));
    assert_eq!(shake(&a, &b, Expect::Node(b_id)).await.0, Ok(b_id));
}

#[tokio::test]
async fn a_client_cannot_pose_as_a_node() {
    let world = World::new(1);
    let ((id, node), client) = (world.node(), world.client("laptop"));
    assert!(shake(&node, &client, Expect::AnyNode).await.0.is_err());
    assert!(shake(&node, &client, Expect::Node(id)).await.0.is_err());
}

#[tokio::test]
async fn certificates_end_by_the_clock_of_the_seam() {
    let world = World::new(1);
    let issued =
        world.authority.issue_client(&"laptop".parse().unwrap(), Validity::days(NOW_MS, 30)).unwrap();
    let node = world.authority.issue_node(Validity::ten_years(NOW_MS)).unwrap();
    let laptop = world.tls(&issued.cert_pem, &issued.key_pem, NOW_MS);
    for (days, accepted) in [(29, true), (31, false)] {
        let later = world.tls(&node.cert_pem, &node.key_pem, NOW_MS + days * 86_400_000);
        assert_eq!(
            shake(&laptop, &later, Expect::Node(node.id)).await.0.is_ok(),
            accepted,
            "after {days} days"
        );
    }
}

#[test]
fn an_authority_lives_on_in_its_files() {
    let created = Authority::create(ClusterId([3; 16]), Validity::ten_years(NOW_MS)).unwrap();
    let (cert, key) = (created.ca_cert_pem().to_string(), created.ca_key_pem());
    let loaded = Authority::load(&cert, &key).unwrap();
    assert_eq!(loaded.cluster(), created.cluster());

    let other = Authority::create(ClusterId([3; 16]), Validity::ten_years(NOW_MS)).unwrap();
    assert!(matches!(Authority::load(&cert, &other.ca_key_pem()), Err(PkiError::Authority(_))));
    let node = created.issue_node(Validity::ten_years(NOW_MS)).unwrap();
    assert!(Authority::load(&node.cert_pem, &node.key_pem).is_err(), "a member is no authority");
    for end in (0..cert.len() - 30).step_by(29) {
        assert!(Authority::load(&cert[..end], &key).is_err(), "cut at {end}");
    }
}

#[tokio::test]
async fn what_a_loaded_authority_signs_is_accepted() {
    let world = World::new(4);
    let (id, node) = world.node();
    let loaded = Authority::load(world.authority.ca_cert_pem(), &world.authority.ca_key_pem()).unwrap();
    let late = loaded.issue_node(Validity::ten_years(NOW_MS)).unwrap();
    let tls = world.tls(&late.cert_pem, &late.key_pem, NOW_MS);
    assert_eq!(shake(&tls, &node, Expect::Node(id)).await, (Ok(id), Ok(Caller::Node(late.id))));
}

#[test]
fn unusable_credentials_are_named() {
    let (world, other) = (World::new(1), World::new(2));
    let issued = world.authority.issue_node(Validity::ten_years(NOW_MS)).unwrap();
    let second = world.authority.issue_node(Validity::ten_years(NOW_MS)).unwrap();
    let good = Credentials {
        cluster: world.authority.cluster(),
        ca_pem: world.authority.ca_cert_pem().into(),
        cert_pem: issued.cert_pem.clone(),
        key_pem: issued.key_pem.clone(),
    };
    let refused = |credentials: Credentials| {
        let error = Tls::new(&credentials, Arc::new(FixedClock(NOW_MS))).err().expect("must be refused");
        assert!(matches!(error, TlsError::Credentials(_)), "{error}");
    };
    assert!(Tls::new(&good, Arc::new(FixedClock(NOW_MS))).is_ok());
    refused(Credentials { key_pem: second.key_pem, ..good.clone() });
    refused(Credentials { cluster: other.authority.cluster(), ..good.clone() });
    refused(Credentials { cert_pem: world.authority.ca_cert_pem().into(), ..good.clone() });
    refused(Credentials { ca_pem: String::new(), ..good.clone() });
    refused(Credentials { cert_pem: good.cert_pem[..200].into(), ..good.clone() });
    refused(Credentials { key_pem: "rubbish".into(), ..good });
}
