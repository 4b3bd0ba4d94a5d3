//! Encoding, decoding and partial sums of one scheme.
//!
//! The public crate builds every matrix; the kernels beside this file only multiply by them. Nothing here knows what
//! the bytes mean, and nothing here waits: callers run it through the Compute seam when it is long.

use super::Scheme;
use super::kernel::{Matrix, Path, combine};
use crate::host::task::splitmix;
use crate::limits::STRIPE_SHARDS_MAX;
use bytes::{Bytes, BytesMut};
use reed_solomon_erasure::galois_8::ReedSolomon;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Bytes that [`Codec::verify_by_decoding`] decodes and compares at a time, so that a check needs little memory.
const CHECK_BYTES: usize = 64 << 10;

/// Shards that cannot be coded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ErasureError {
    /// Not enough shards to decode, or not as many as the call needs.
    #[error("{have} shards given where {need} are needed")]
    Count {
        /// How many there are.
        have: usize,
        /// How many it takes.
        need: usize,
    },
    /// All shards of a stripe have one length.
    #[error("shards differ in length")]
    Lengths,
    /// An index that is not below n, or that appears twice.
    #[error("shard index {0} is out of range or given twice")]
    Index(u8),
}

/// The code of one (k, m). Cheap to clone; made once per scheme and process.
#[derive(Clone)]
pub struct Codec(Arc<Inner>);

struct Inner {
    k: usize,
    m: usize,
    /// m rows of k.
    parity: Matrix,
    /// Keeper of the matrices, and the decoder that inverts them.
    oracle: ReedSolomon,
}

static CODECS: Mutex<BTreeMap<(usize, usize), Codec>> = Mutex::new(BTreeMap::new());

impl Codec {
    /// The code of this scheme (spread does not matter to it).
    pub fn new(scheme: Scheme) -> Self {
        let mut codecs = CODECS.lock().expect("no holder of this lock panics");
        codecs.entry((scheme.k(), scheme.m())).or_insert_with(|| Codec::build(scheme.k(), scheme.m())).clone()
    }

    fn build(k: usize, m: usize) -> Self {
        let oracle =
            ReedSolomon::new(k, m).expect("a Scheme has k and m of at least 1 and few enough shards");
        // Coding the unit vectors reads the crate's matrix out of it: byte i of parity shard r is coefficient (r, i).
        let mut shards = unit_shards(k, &(0..k as u8).collect::<Vec<_>>());
        shards.resize(k + m, vec![0; k]);
        oracle.encode(&mut shards).expect("n equally long shards can be encoded");
        let parity = Matrix::new(m, k, shards[k..].concat());
        Codec(Arc::new(Inner { k, m, parity, oracle }))
    }

    /// Data shards.
    pub fn k(&self) -> usize {
        self.0.k
    }
    /// Parity shards.
    pub fn m(&self) -> usize {
        self.0.m
    }

    /// Computes the m parity shards of k equally long data shards.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<(), ErasureError> {
        expect_count(data.len(), self.0.k)?;
        expect_count(parity.len(), self.0.m)?;
        let len = data[0].len();
        if data.iter().any(|d| d.len() != len) || parity.iter().any(|p| p.len() != len) {
            return Err(ErasureError::Lengths);
        }
        combine(Path::best(), &self.0.parity, data, parity, false);
        Ok(())
    }

    /// The n payloads of a pack. Data shards share the pack's memory, but for those that reach into the padding.
    pub fn encode_pack(&self, pack: Bytes) -> Vec<Bytes> {
        let len = self.shard_len(pack.len());
        let mut shards: Vec<Bytes> = (0..self.0.k).map(|i| padded(&pack, i * len, len)).collect();
        let mut parity = BytesMut::zeroed(len * self.0.m);
        if len > 0 {
            let data: Vec<&[u8]> = shards.iter().map(|s| &s[..]).collect();
            let mut rows: Vec<&mut [u8]> = parity.chunks_exact_mut(len).collect();
            combine(Path::best(), &self.0.parity, &data, &mut rows, false);
        }
        let parity = parity.freeze();
        shards.extend((0..self.0.m).map(|i| parity.slice(i * len..(i + 1) * len)));
        shards
    }

    fn shard_len(&self, pack_len: usize) -> usize {
        pack_len.div_ceil(self.0.k).next_multiple_of(64)
    }

    /// Computes the shards `want` from any k (or more) others, given with their indexes.
    pub fn reconstruct(&self, present: &[(u8, Bytes)], want: &[u8]) -> Result<Vec<Bytes>, ErasureError> {
        let present = present.get(..self.0.k).unwrap_or(present);
        let indexes: Vec<u8> = present.iter().map(|(index, _)| *index).collect();
        let matrix = self.decode_matrix(&indexes, want)?;
        let len = present[0].1.len();
        if present.iter().any(|(_, shard)| shard.len() != len) {
            return Err(ErasureError::Lengths);
        }
        let mut out = BytesMut::zeroed(len * want.len());
        if len > 0 {
            let input: Vec<&[u8]> = present.iter().map(|(_, shard)| &shard[..]).collect();
            let mut rows: Vec<&mut [u8]> = out.chunks_exact_mut(len).collect();
            combine(Path::best(), &matrix, &input, &mut rows, false);
        }
        let out = out.freeze();
        Ok((0..want.len()).map(|i| out.slice(i * len..(i + 1) * len)).collect())
    }

    /// The k factors c with `want = Σ c[i] · shard present[i]`, so that each relay can send one partial sum instead of
    /// its shards.
    pub fn coefficients(&self, present: &[u8], want: u8) -> Result<Vec<u8>, ErasureError> {
        Ok(self.decode_matrix(present, &[want])?.row(0).to_vec())
    }

    /// One row per wanted shard, one column per present shard.
    fn decode_matrix(&self, present: &[u8], want: &[u8]) -> Result<Matrix, ErasureError> {
        expect_count(present.len(), self.0.k)?;
        let n = self.0.k + self.0.m;
        let mut seen = [false; STRIPE_SHARDS_MAX];
        for index in present {
            if usize::from(*index) >= n || std::mem::replace(&mut seen[usize::from(*index)], true) {
                return Err(ErasureError::Index(*index));
            }
        }
        if let Some(index) = want.iter().find(|index| usize::from(**index) >= n) {
            return Err(ErasureError::Index(*index));
        }
        // Decoding the unit vectors reads the inverse out of the crate, as encoding them read the matrix.
        let mut shards: Vec<Option<Vec<u8>>> = vec![None; n];
        for (index, unit) in present.iter().zip(unit_shards(self.0.k, present)) {
            shards[usize::from(*index)] = Some(unit);
        }
        self.0.oracle.reconstruct(&mut shards).expect("any k distinct shards of equal length decode");
        let rows =
            want.iter().flat_map(|index| shards[usize::from(*index)].clone().unwrap_or_default()).collect();
        Ok(Matrix::new(want.len(), self.0.k, rows))
    }

    /// Decodes the stripe once from as many parity shards as possible and compares the result with the shards that
    /// were left out: bad memory or a wrong encoder shows before anything is uploaded. All n shards take part, as
    /// source or as comparison. `seed` varies which ones do which.
    pub fn verify_by_decoding(&self, shards: &[Bytes], seed: u64) -> bool {
        let (k, m) = (self.0.k, self.0.m);
        if shards.len() != k + m || shards.iter().any(|s| s.len() != shards[0].len()) {
            return false;
        }
        // Parity first, then data; each group turned by the seed so that over many packs every choice occurs.
        let turn = splitmix(seed, 1) as usize;
        let parity = (0..m).map(|i| k + (i + turn) % m);
        let data = (0..k).map(|i| (i + turn) % k);
        let order: Vec<u8> = parity.chain(data).map(|i| i as u8).collect();
        let (sources, compared) = order.split_at(k);
        let Ok(matrix) = self.decode_matrix(sources, compared) else { return false };
        let len = shards[0].len();
        let mut scratch = vec![0u8; CHECK_BYTES.min(len) * matrix.rows()];
        (0..len).step_by(CHECK_BYTES).all(|from| {
            let to = len.min(from + CHECK_BYTES);
            let input: Vec<&[u8]> = sources.iter().map(|i| &shards[usize::from(*i)][from..to]).collect();
            let mut rows: Vec<&mut [u8]> = scratch.chunks_exact_mut(to - from).take(matrix.rows()).collect();
            combine(Path::best(), &matrix, &input, &mut rows, false);
            rows.iter().zip(compared).all(|(row, i)| row[..] == shards[usize::from(*i)][from..to])
        })
    }
}

/// Adds `coefficient · input` to `acc`: one step of a partial sum.
pub fn mul_add(coefficient: u8, input: &[u8], acc: &mut [u8]) -> Result<(), ErasureError> {
    if input.len() != acc.len() {
        return Err(ErasureError::Lengths);
    }
    combine(Path::best(), &Matrix::new(1, 1, vec![coefficient]), &[input], &mut [acc], true);
    Ok(())
}

fn expect_count(have: usize, need: usize) -> Result<(), ErasureError> {
    if have == need { Ok(()) } else { Err(ErasureError::Count { have, need }) }
}

/// One shard per index, the p-th holding the p-th unit vector of length k.
fn unit_shards(k: usize, indexes: &[u8]) -> Vec<Vec<u8>> {
    (0..indexes.len()).map(|p| (0..k).map(|i| u8::from(i == p)).collect()).collect()
}

/// `len` bytes of the pack at `at`, with zeros where the pack has ended.
fn padded(pack: &Bytes, at: usize, len: usize) -> Bytes {
    if at + len <= pack.len() {
        return pack.slice(at..at + len);
    }
    let mut shard = BytesMut::zeroed(len);
    let rest = &pack[at.min(pack.len())..];
    shard[..rest.len()].copy_from_slice(rest);
    shard.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noise(len: usize, seed: u64) -> Bytes {
        (0..len as u64)
            .map(|i| (splitmix(seed, i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 24) as u8)
            .collect::<Vec<_>>()
            .into()
    }
    fn codec(k: u8, m: u8) -> Codec {
        Codec::new(Scheme::new(k, m, 1).unwrap())
    }
    /// All n shards as the public crate makes them.
    fn by_crate(k: usize, m: usize, data: &[Bytes]) -> Vec<Vec<u8>> {
        let mut shards: Vec<Vec<u8>> = data.iter().map(|d| d.to_vec()).collect();
        shards.resize(k + m, vec![0; data[0].len()]);
        ReedSolomon::new(k, m).unwrap().encode(&mut shards).unwrap();
        shards
    }
    fn pick(indexes: impl Iterator<Item = usize>, shards: &[Bytes]) -> Vec<(u8, Bytes)> {
        indexes.map(|i| (i as u8, shards[i].clone())).collect()
    }

    #[test]
    fn every_pattern_of_small_codes_decodes() {
        for (k, m) in [(1usize, 1usize), (1, 3), (2, 1), (4, 2), (3, 3), (5, 4)] {
            let n = k + m;
            let codec = codec(k as u8, m as u8);
            let shards = codec.encode_pack(noise(k * 192 - 7, 5));
            for mask in 0u32..1 << n {
                if mask.count_ones() as usize != k {
                    continue;
                }
                // Backwards, so that the order of the present shards is not the order of their indexes.
                let present = pick((0..n).rev().filter(|i| mask >> i & 1 == 1), &shards);
                let want: Vec<u8> = (0..n as u8).collect();
                assert_eq!(codec.reconstruct(&present, &want).unwrap(), shards, "{k}+{m} from {mask:b}");
            }
        }
    }

    /// Shards of this code lie on disks: these factors never change.
    #[test]
    fn the_code_is_the_one_in_the_documentation() {
        let codec = codec(4, 2);
        assert_eq!(codec.coefficients(&[0, 1, 2, 3], 4), Ok(vec![0x1b, 0x1c, 0x12, 0x14]));
        assert_eq!(codec.coefficients(&[0, 1, 2, 3], 5), Ok(vec![0x1c, 0x1b, 0x14, 0x12]));
    }

    #[test]
    fn data_shards_share_the_memory_of_the_pack() {
        let pack = noise(1000, 1);
        let shards = codec(4, 2).encode_pack(pack.clone());
        assert_eq!(shards[0].as_ptr(), pack.as_ptr());
        assert_eq!(shards[2].as_ptr(), pack[512..].as_ptr());
        assert_eq!(shards[3][..1000 - 768], pack[768..]);
        assert!(shards[3][1000 - 768..].iter().all(|b| *b == 0));
        // A pack shorter than k steps of 64 leaves shards that are nothing but padding.
        let tiny = codec(4, 2).encode_pack(Bytes::from_static(b"x"));
        assert!(tiny.iter().all(|s| s.len() == 64) && tiny[1] == vec![0u8; 64]);
    }

    #[test]
    fn nonsense_is_refused() {
        let codec = codec(2, 2);
        let s = noise(64, 0);
        let short = s.slice(..63);
        let count = Err(ErasureError::Count { have: 1, need: 2 });
        assert_eq!(codec.reconstruct(&[(0, s.clone())], &[1]), count);
        assert_eq!(codec.reconstruct(&[(0, s.clone()), (0, s.clone())], &[1]), Err(ErasureError::Index(0)));
        assert_eq!(codec.reconstruct(&[(0, s.clone()), (9, s.clone())], &[1]), Err(ErasureError::Index(9)));
        assert_eq!(codec.reconstruct(&[(0, s.clone()), (1, s.clone())], &[4]), Err(ErasureError::Index(4)));
        assert_eq!(codec.reconstruct(&[(0, s.clone()), (1, short)], &[2]), Err(ErasureError::Lengths));
        assert!(mul_add(3, &[1, 2], &mut [0]).is_err());
        assert!(codec.encode(&[&[0]], &mut [&mut [0], &mut [0]]).is_err());
        assert!(!codec.verify_by_decoding(&[s], 0));
    }

    #[test]
    fn decoding_finds_a_flipped_bit_in_any_shard() {
        for (k, m) in [(4u8, 2u8), (2, 5), (1, 1), (3, 3)] {
            let codec = codec(k, m);
            let shards = codec.encode_pack(noise(usize::from(k) * CHECK_BYTES + 100, 3));
            for seed in 0..4 {
                assert!(codec.verify_by_decoding(&shards, seed));
                for bad in 0..shards.len() {
                    let mut spoilt = shards.clone();
                    let mut bytes = spoilt[bad].to_vec();
                    *bytes.last_mut().unwrap() ^= 0x10;
                    spoilt[bad] = bytes.into();
                    assert!(!codec.verify_by_decoding(&spoilt, seed), "{k}+{m} shard {bad} seed {seed}");
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn encoding_is_the_public_crates(k in 1usize..21, m in 1usize..12, len in 1usize..3_000, seed: u64) {
            let codec = codec(k as u8, m as u8);
            let shards = codec.encode_pack(noise(len, seed));
            prop_assert_eq!(
                shards[0].len() as u64,
                Scheme::new(k as u8, m as u8, 1).unwrap().shard_len(len as u64)
            );
            let expected = by_crate(k, m, &shards[..k]);
            prop_assert_eq!(&shards, &expected);
            let mut parity = vec![vec![0u8; shards[0].len()]; m];
            let data: Vec<&[u8]> = shards[..k].iter().map(|d| &d[..]).collect();
            codec.encode(&data, &mut parity.iter_mut().map(|p| &mut p[..]).collect::<Vec<_>>()).unwrap();
            prop_assert_eq!(&parity[..], &expected[k..]);
        }

        #[test]
        fn partial_sums_add_up(k in 1usize..16, m in 1usize..10, seed: u64) {
            let n = k + m;
            let codec = codec(k as u8, m as u8);
            let shards = codec.encode_pack(noise(k * 130, seed));
            let mut order: Vec<u8> = (0..n as u8).collect();
            order.sort_by_key(|i| splitmix(seed, u64::from(*i)));
            let (present, rest) = order.split_at(k);
            for want in [rest[0], present[0]] {
                let factors = codec.coefficients(present, want).unwrap();
                let mut sum = vec![0u8; shards[0].len()];
                for (index, factor) in present.iter().zip(factors) {
                    mul_add(factor, &shards[usize::from(*index)], &mut sum).unwrap();
                }
                prop_assert_eq!(&sum[..], &shards[usize::from(want)][..]);
            }
        }
    }
}
