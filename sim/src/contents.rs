//! What the file of a shard must be by its format alone, whoever wrote it and whatever the catalogue says.

use farshore_core::shard::{SHARD_HEADER_BYTES, ShardHeader, hash_shard};

/// Whether these bytes are a whole shard: header, payload and block sums, all of which the hash vouches for.
pub fn is_whole(bytes: &[u8]) -> bool {
    let Some((head, rest)) = bytes.split_at_checked(SHARD_HEADER_BYTES) else { return false };
    let Ok(header) = ShardHeader::decode(head) else { return false };
    let Some((payload, sums)) = rest.split_at_checked(header.payload_len as usize) else { return false };
    let (hash, right) = hash_shard(header.id, payload);
    hash == header.hash && sums == right.encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::erasure::Scheme;
    use farshore_core::id::{ClusterId, PackId, RepoId};
    use farshore_core::shard::PackInfo;

    #[test]
    fn a_shard_is_whole_and_no_part_or_change_of_it_is() {
        let scheme = Scheme::new(2, 1, 1).unwrap();
        let info = PackInfo {
            cluster: ClusterId([1; 16]),
            repo: RepoId([2; 16]),
            pack: PackId([3; 32]),
            pack_len: 150_000,
            scheme,
        };
        let payload = vec![7; scheme.shard_len(info.pack_len) as usize];
        let (hash, sums) = hash_shard(info.shard(1), &payload);
        let file = [&info.header(1, hash).encode()[..], &payload, &sums.encode()].concat();
        assert!(is_whole(&file));
        for len in [0, 10, SHARD_HEADER_BYTES, 5_000, file.len() - 1] {
            assert!(!is_whole(&file[..len]), "{len}");
        }
        assert!(!is_whole(&[&file[..], &[0]].concat()));
        for at in (0..file.len()).step_by(997).chain([file.len() - 1]) {
            let mut spoilt = file.clone();
            spoilt[at] ^= 1;
            assert!(!is_whole(&spoilt), "{at}");
        }
    }
}
