//! Key slots of both versions and all kinds: what opens them, and what does not.

use super::super::secret::{KDF_LANES_MAX, KDF_MEMORY_KIB_MAX, KDF_PASSES_MAX};
use super::*;
use farshore_core::host::real::OsEntropy;

const REPO: RepoId = RepoId([9; 16]);

fn note() -> SlotNote {
    SlotNote { user: "me".into(), host: "here".into(), created_ms: 1_700_000_000_000 }
}
fn slot(root: &MasterKey, secret: &Secret) -> Vec<u8> {
    wrap(REPO, root, secret, KdfParams::CHEAPEST, &note(), &OsEntropy).unwrap()
}
fn secrets() -> [Secret; 3] {
    [Secret::passphrase("one"), Secret::new_key_file(&OsEntropy).0, Secret::new_recovery_key(&OsEntropy).0]
}

#[test]
fn every_secret_opens_its_own_slot_wherever_it_is() {
    let root = MasterKey::new(&OsEntropy);
    let (own, others) = (secrets(), [Secret::passphrase("two"), secrets()[1].clone(), secrets()[2].clone()]);
    let mut slots = vec![vec![1, 2, 3], vec![], wrap_1(&root, b"old", KdfParams::CHEAPEST, &OsEntropy)];
    slots.extend(own.iter().map(|secret| slot(&root, secret)));
    for (at, secret) in own.iter().enumerate() {
        let opened = open_slots(REPO, &slots, secret).unwrap();
        assert!(opened.root == root);
        assert_eq!(opened.slot, slot_id(&slots[3 + at]));
        assert!(!format!("{opened:?}").contains('['));
    }
    assert!(open_slots(REPO, &slots, &Secret::passphrase("old")).unwrap().root == root);
    for wrong in &others {
        assert!(open_slots(REPO, &slots, wrong).is_err());
    }
    assert!(open_slots(REPO, &[], &own[0]).is_err());
    // A slot of this repository says nothing in another.
    assert!(open_slots(RepoId([8; 16]), &slots[3..], &own[0]).is_err());
}

#[test]
fn a_slot_says_who_made_it_to_those_who_have_the_keys() {
    let (root, secrets) = (MasterKey::new(&OsEntropy), secrets());
    let mut slots: Vec<_> = secrets.iter().map(|secret| slot(&root, secret)).collect();
    slots.push(wrap_1(&root, b"old", KdfParams::CHEAPEST, &OsEntropy));
    slots.push(vec![9; 40]);
    let forged = slot(&MasterKey::new(&OsEntropy), &Secret::passphrase("mine"));
    slots.push(forged);
    let known = describe(REPO, &root, &slots);
    let kinds = [SlotKind::Passphrase, SlotKind::KeyFile, SlotKind::Recovery];
    for (info, kind) in known.iter().zip(kinds) {
        assert_eq!((info.kind, &info.note, info.vouched), (Some(kind), &Some(note()), Some(true)));
        assert_eq!(info.id.to_string().len(), 8);
    }
    assert_eq!((known[3].kind, &known[3].note, known[3].vouched), (Some(SlotKind::Passphrase), &None, None));
    assert_eq!((known[4].kind, &known[4].note, known[4].vouched), (None, &None, None));
    assert_eq!((&known[5].note, known[5].vouched), (&None, Some(false)));
    let ids: std::collections::BTreeSet<_> = known.iter().map(|info| info.id).collect();
    assert_eq!(ids.len(), known.len());
}

#[test]
fn names_of_any_allowed_length_fit_a_slot() {
    let root = MasterKey::new(&OsEntropy);
    let of = |len: usize| {
        let note = SlotNote { user: "u".repeat(len), host: "h".repeat(len), created_ms: u64::MAX };
        wrap(REPO, &root, &secrets()[2], KdfParams::CHEAPEST, &note, &OsEntropy)
    };
    assert!(of(NOTE_NAME_BYTES_MAX).unwrap().len() <= KEY_SLOT_BYTES_MAX);
    assert!(of(NOTE_NAME_BYTES_MAX + 1).is_none());
}

#[test]
fn every_flipped_bit_is_refused_or_seen() {
    let root = MasterKey::new(&OsEntropy);
    for secret in secrets() {
        let good = slot(&root, &secret);
        let note_at = HEAD_BYTES + 1 + WRAPPED_BYTES;
        for at in (0..good.len()).filter(|at| !(2..14).contains(at)) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            let opens = open_slots(REPO, &[bad.clone()], &secret).is_ok();
            assert_eq!(opens, at >= note_at, "byte {at}");
            // One bit makes an entry for the key ring of it, which is no slot.
            let known = describe(REPO, &root, &[bad]);
            assert!(known.first().is_none_or(|slot| slot.vouched != Some(true)), "byte {at}");
        }
        for len in 0..good.len() {
            assert_ne!(describe(REPO, &root, &[good[..len].to_vec()])[0].vouched, Some(true));
        }
    }
    let old = wrap_1(&root, b"one", KdfParams::CHEAPEST, &OsEntropy);
    for at in (0..old.len()).filter(|at| !(2..14).contains(at)) {
        let mut bad = old.clone();
        bad[at] ^= 1 << (at % 8);
        assert!(open_slots(REPO, &[bad], &Secret::passphrase("one")).is_err(), "byte {at}");
    }
    // In the costs a low bit is flipped, so that the slot stays cheap and is refused by its seal.
    for good in [old, slot(&root, &Secret::passphrase("one"))] {
        for at in [2, 6, 10] {
            let mut bad = good.clone();
            bad[at] ^= 2;
            assert!(open_slots(REPO, &[bad], &Secret::passphrase("one")).is_err(), "byte {at}");
        }
    }
}

#[test]
fn hostile_costs_are_refused_before_any_work() {
    let root = MasterKey::new(&OsEntropy);
    let good = slot(&root, &Secret::passphrase("one"));
    let big = [(2, KDF_MEMORY_KIB_MAX + 1), (6, KDF_PASSES_MAX + 1), (10, KDF_LANES_MAX + 1)];
    let huge = [(2, u32::MAX), (6, u32::MAX), (10, 0xff_ffff), (2, 0), (6, 0)];
    for (at, value) in big.into_iter().chain(huge) {
        let mut bad = good.clone();
        bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert!(decode(&bad).is_none(), "{value} at {at}");
    }
    let mut costly = good.clone();
    costly[2..6].copy_from_slice(&(1u32 << 20).to_le_bytes());
    costly[6..10].copy_from_slice(&16u32.to_le_bytes());
    assert!(decode(&costly).is_none(), "each is in bounds, but not their product");
    let mut file = slot(&root, &secrets()[1]);
    file[2] = 8;
    assert!(decode(&file).is_none(), "a key file costs nothing");
    let kdf = KdfParams { passes: 99, ..KdfParams::default() };
    assert!(wrap(REPO, &root, &Secret::passphrase("x"), kdf, &note(), &OsEntropy).is_none());
}

#[test]
fn another_root_key_is_wrapped_for_all_who_had_the_one_before() {
    let (first, second) = (MasterKey::new(&OsEntropy), MasterKey::new(&OsEntropy));
    let secrets = secrets();
    let slots: Vec<_> = secrets.iter().map(|secret| slot(&first, secret)).collect();
    let open = |slots: &[Vec<u8>], secret: &Secret| open_slots(REPO, slots, secret);
    let by = open(&slots, &secrets[1]).unwrap();
    let unused = SlotNote { user: "unused".into(), ..note() };
    let again = |slots: &[Vec<u8>]| rewrap(REPO, slots, &by, &second, &unused, &OsEntropy);
    let renewed = again(&slots).unwrap();
    for (at, secret) in secrets.iter().enumerate() {
        let opened = open(&renewed, secret).unwrap();
        assert!(opened.root == second && opened.slot == slot_id(&slots[at]), "{at}");
        assert!(reopen(REPO, &renewed, &opened).unwrap().root == second);
        assert!(reopen(REPO, &renewed[..at], &opened).is_err());
    }
    assert!(reopen(REPO, &renewed, &by).unwrap().root == second);
    assert_eq!(describe(REPO, &second, &renewed), describe(REPO, &first, &slots));
    assert_ne!(describe(REPO, &first, &renewed)[0].vouched, Some(true));
    // Once more, by somebody for whom it was wrapped.
    let by = open(&renewed, &secrets[0]).unwrap();
    let third = MasterKey::new(&OsEntropy);
    let renewed = rewrap(REPO, &renewed, &by, &third, &unused, &OsEntropy).unwrap();
    for secret in &secrets {
        assert!(open(&renewed, secret).unwrap().root == third);
    }
    // A bit of what was wrapped for another.
    for at in 14..renewed[2].len() {
        let mut bad = renewed[2].clone();
        bad[at] ^= 1 << (at % 8);
        let opened = open(&[bad.clone()], &secrets[2]).is_ok();
        assert_eq!(opened, at >= HEAD_BYTES + 1 + 32 + WRAPPED_BYTES, "byte {at}");
        assert_ne!(describe(REPO, &third, &[bad])[0].vouched, Some(true), "byte {at}");
    }
}

#[test]
fn nothing_is_wrapped_for_whom_the_keys_do_not_vouch() {
    let (root, next) = (MasterKey::new(&OsEntropy), MasterKey::new(&OsEntropy));
    let mine = Secret::passphrase("mine");
    let own = slot(&root, &mine);
    let by = open_slots(REPO, std::slice::from_ref(&own), &mine).unwrap();
    let with = |other: Vec<u8>| {
        let id = slot_id(&other);
        (id, rewrap(REPO, &[other, own.clone()], &by, &next, &note(), &OsEntropy).unwrap_err())
    };
    let (id, why) = with(slot(&MasterKey::new(&OsEntropy), &Secret::passphrase("thief")));
    assert_eq!(why, Unwrappable::Foreign(id));
    // The public key of somebody else put into a good slot.
    let (mut taken, thief) =
        (slot(&root, &Secret::passphrase("two")), slot(&next, &Secret::passphrase("thief")));
    taken[HEAD_1_BYTES..HEAD_BYTES].copy_from_slice(&thief[HEAD_1_BYTES..HEAD_BYTES]);
    let (id, why) = with(taken);
    assert_eq!(why, Unwrappable::Foreign(id));
    let (id, why) = with(wrap_1(&root, b"two", KdfParams::CHEAPEST, &OsEntropy));
    assert_eq!(why, Unwrappable::Old(id));
    let (id, why) = with(vec![9; 99]);
    assert_eq!(why, Unwrappable::Newer(id));
    let gone = rewrap(REPO, &[slot(&root, &Secret::passphrase("two"))], &by, &next, &note(), &OsEntropy);
    assert_eq!(gone.unwrap_err(), Unwrappable::Gone);

    // Whoever rotates with an old slot renews it, salt and name included.
    let old = wrap_1(&root, b"old", KdfParams::CHEAPEST, &OsEntropy);
    let by = open_slots(REPO, std::slice::from_ref(&old), &Secret::passphrase("old")).unwrap();
    let renewed = rewrap(REPO, &[old.clone(), own], &by, &next, &note(), &OsEntropy).unwrap();
    assert_eq!(slot_id(&renewed[0]), slot_id(&old));
    assert_eq!(describe(REPO, &next, &renewed)[0].note, Some(note()));
    assert!(open_slots(REPO, &renewed, &Secret::passphrase("old")).unwrap().root == next);
    assert!(reopen(REPO, &renewed, &by).unwrap().root == next);
}
