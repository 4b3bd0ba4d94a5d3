//! Wrapping for somebody whose secret is not known, only a public key that follows from it: X25519 with a fresh key on the
//! sender's side. The home of x25519-dalek.

use super::keys::wipe;
use x25519_dalek::{X25519_BASEPOINT_BYTES, x25519};

/// The public key that belongs to the key of a slot.
pub(super) fn public_of(slot_key: &[u8; 32]) -> [u8; 32] {
    let mut own = private_of(slot_key);
    let public = x25519(own, X25519_BASEPOINT_BYTES);
    wipe(&mut own);
    public
}

fn private_of(slot_key: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key("farshore 2026 key slot exchange", slot_key)
}

/// The key under which something is wrapped for `public`. `fresh` must be fresh randomness; returned with its public half,
/// which the receiver needs. `None` if `public` is none that an honest slot has.
pub(super) fn wrap(fresh: [u8; 32], public: &[u8; 32]) -> Option<([u8; 32], [u8; 32])> {
    let ours = x25519(fresh, X25519_BASEPOINT_BYTES);
    Some((agreed(x25519(fresh, *public), &ours, public)?, ours))
}

/// The same key on the side of the slot.
pub(super) fn open(slot_key: &[u8; 32], theirs: &[u8; 32], public: &[u8; 32]) -> Option<[u8; 32]> {
    let mut own = private_of(slot_key);
    let shared = x25519(own, *theirs);
    wipe(&mut own);
    agreed(shared, theirs, public)
}

/// Both public keys go into the key, so that it belongs to this exchange only. A point of small order agrees on zero with
/// everybody and is refused.
fn agreed(mut shared: [u8; 32], sender: &[u8; 32], receiver: &[u8; 32]) -> Option<[u8; 32]> {
    if shared == [0; 32] {
        return None;
    }
    let mut hasher = blake3::Hasher::new_derive_key("farshore 2026 key slot exchanged");
    hasher.update(&shared).update(sender).update(receiver);
    wipe(&mut shared);
    Some(*hasher.finalize().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree_and_nobody_else_does() {
        let (slot, other) = ([1; 32], [2; 32]);
        let public = public_of(&slot);
        let (key, ours) = wrap([3; 32], &public).unwrap();
        assert_eq!(open(&slot, &ours, &public), Some(key));
        assert_ne!(open(&other, &ours, &public), Some(key));
        assert_ne!(open(&slot, &public_of(&other), &public), Some(key));
        assert_ne!(wrap([4; 32], &public).unwrap().0, key);
    }

    #[test]
    fn points_that_agree_with_everybody_are_refused() {
        let one = std::array::from_fn(|at| u8::from(at == 0));
        for small in [[0; 32], one] {
            assert!(wrap([3; 32], &small).is_none());
            assert!(open(&[1; 32], &small, &public_of(&[1; 32])).is_none());
        }
    }
}
