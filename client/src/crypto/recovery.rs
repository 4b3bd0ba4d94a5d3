//! The recovery key on paper: 13 groups of five letters and digits. The fifth of a group checks the other four and the place
//! of the group, so that a mistake is found before anything is tried, and named.
//!
//! The alphabet is Crockford's base 32: no I, L, O and U, which are read as 1, 1 and 0 or refused. The first four bits are a
//! version, zero today; then come the 256 bits of the key. A group's check symbol is, over GF(2^5) with x^5 + x^2 + 1,
//! the sum of its number (from 0) and a^1·s1 + a^2·s2 + a^3·s3 + a^4·s4: it finds every single wrong symbol, every two that
//! are exchanged, and groups in the wrong order.

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Groups of a key.
const GROUPS: usize = 13;
/// Symbols of a group: four of the key, one that checks.
const GROUP_LEN: usize = 5;
/// Longest text that is looked at: a key with room for separators and a note above it.
const TYPED_BYTES_MAX: usize = 4_096;

/// Why a recovery key was not typed right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecoveryKey {
    /// Too many or too few symbols.
    #[error("a recovery key has 13 groups of 5 letters and digits, and this has {0} symbols")]
    Length(usize),
    /// A group is too long or too short.
    #[error("group {group} of the recovery key has {len} symbols instead of 5")]
    GroupLength {
        /// Which, from 1.
        group: usize,
        /// Its length.
        len: usize,
    },
    /// A symbol that never stands in a key.
    #[error("group {group} of the recovery key has a {symbol:?}, which is not used in it")]
    Symbol {
        /// Which group, from 1.
        group: usize,
        /// What stands there.
        symbol: char,
    },
    /// The check symbols of these groups, counted from 1, are wrong.
    #[error("the recovery key is mistyped in group {}", .0.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))]
    Mistyped(Vec<usize>),
    /// It was made by a later release.
    #[error("this recovery key is of a later form than this program knows; use a newer one")]
    Newer,
}

/// The groups of a key.
pub(super) fn encode(key: &[u8; 32]) -> Vec<String> {
    // The version in front makes 260 bits: 52 symbols.
    let bit = |at: usize| at.checked_sub(4).map_or(0, |at| key[at / 8] >> (7 - at % 8) & 1);
    let symbols: Vec<u8> = (0..GROUPS * 4).map(|n| (0..5).fold(0, |s, i| s << 1 | bit(n * 5 + i))).collect();
    let group = |(number, four): (usize, &[u8])| {
        let five = four.iter().copied().chain([check(number, four)]);
        five.map(|symbol| char::from(ALPHABET[usize::from(symbol)])).collect()
    };
    symbols.chunks(4).enumerate().map(group).collect()
}

/// Reads a key, however it is spaced and whatever the case. Lines that begin with `#` are passed over.
pub(super) fn decode(typed: &str) -> Result<[u8; 32], BadRecoveryKey> {
    if typed.len() > TYPED_BYTES_MAX {
        return Err(BadRecoveryKey::Length(typed.len()));
    }
    let lines = typed.lines().filter(|line| !line.trim_start().starts_with('#'));
    let typed: Vec<Vec<char>> = lines
        .flat_map(|line| line.split(|c: char| c.is_whitespace() || c == '-'))
        .filter(|group| !group.is_empty())
        .map(|group| group.chars().collect())
        .collect();
    let groups = match typed.len() {
        GROUPS => typed,
        // Grouped otherwise, or not at all.
        _ => {
            let all = typed.concat();
            if all.len() != GROUPS * GROUP_LEN {
                return Err(BadRecoveryKey::Length(all.len()));
            }
            all.chunks(GROUP_LEN).map(<[char]>::to_vec).collect()
        }
    };
    let (mut symbols, mut wrong) = (Vec::with_capacity(GROUPS * 4), Vec::new());
    for (number, group) in groups.iter().enumerate() {
        if group.len() != GROUP_LEN {
            return Err(BadRecoveryKey::GroupLength { group: number + 1, len: group.len() });
        }
        let values: Vec<u8> = group
            .iter()
            .map(|c| value(*c).ok_or(BadRecoveryKey::Symbol { group: number + 1, symbol: *c }))
            .collect::<Result<_, _>>()?;
        let (four, last) = values.split_at(GROUP_LEN - 1);
        if last != [check(number, four)] {
            wrong.push(number + 1);
        }
        symbols.extend_from_slice(four);
    }
    if !wrong.is_empty() {
        return Err(BadRecoveryKey::Mistyped(wrong));
    }
    let mut key = [0u8; 32];
    let bits = symbols.iter().flat_map(|symbol| (0..5).rev().map(move |i| symbol >> i & 1));
    for (at, bit) in bits.enumerate() {
        match at.checked_sub(4) {
            Some(at) => key[at / 8] |= bit << (7 - at % 8),
            None if bit == 1 => return Err(BadRecoveryKey::Newer),
            None => {}
        }
    }
    Ok(key)
}

fn value(symbol: char) -> Option<u8> {
    let symbol = match symbol.to_ascii_uppercase() {
        'I' | 'L' => '1',
        'O' => '0',
        other => other,
    };
    ALPHABET.iter().position(|known| char::from(*known) == symbol).map(|at| at as u8)
}

/// The symbol that closes a group.
fn check(number: usize, four: &[u8]) -> u8 {
    // Horner's rule, each step times a.
    let times_a = |x: u8| (x << 1) ^ if x & 0x10 == 0 { 0 } else { 0b10_0101 };
    number as u8 ^ four.iter().rev().fold(0, |sum, symbol| times_a(sum ^ symbol))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: [u8; 32] = *b"\x00\x01\x02\xfd\xfe\xff 26 bytes of a key for tes";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn reads_what_it_writes_in_any_spacing_and_case(key: [u8; 32]) {
            let groups = encode(&key);
            prop_assert_eq!((groups.len(), groups[0].len()), (GROUPS, GROUP_LEN));
            for text in [
                groups.join("-"),
                groups.concat(),
                groups.join(" \n").to_lowercase(),
                format!("# of the office\n{}\n", groups.join(" ").replace('0', "O").replace('1', "l")),
            ] {
                prop_assert_eq!(decode(&text), Ok(key));
            }
        }
    }

    /// Every wrong symbol, every exchange within a group, every exchange of groups.
    #[test]
    fn a_mistake_is_named_by_its_group() {
        let groups = encode(&KEY);
        let mut tried = 0;
        for (number, group) in groups.iter().enumerate() {
            let mut expect = |changed: Vec<u8>| {
                let mut bad = groups.clone();
                bad[number] = String::from_utf8(changed).unwrap();
                assert_eq!(decode(&bad.concat()), Err(BadRecoveryKey::Mistyped(vec![number + 1])), "{bad:?}");
                tried += 1;
            };
            for at in 0..GROUP_LEN {
                for other in ALPHABET.iter().filter(|c| **c != group.as_bytes()[at]) {
                    let mut changed = group.clone().into_bytes();
                    changed[at] = *other;
                    expect(changed);
                }
                for with in at + 1..GROUP_LEN {
                    let mut changed = group.clone().into_bytes();
                    if changed[at] != changed[with] {
                        changed.swap(at, with);
                        expect(changed);
                    }
                }
            }
            for with in number + 1..GROUPS {
                let mut bad = groups.clone();
                bad.swap(number, with);
                assert_eq!(decode(&bad.concat()), Err(BadRecoveryKey::Mistyped(vec![number + 1, with + 1])));
            }
        }
        assert!(tried > 13 * 5 * 31);
    }

    #[test]
    fn what_is_missing_or_strange_is_named_too() {
        let groups = encode(&KEY);
        let with = |number: usize, group: &str| {
            let mut bad = groups.clone();
            bad[number] = group.into();
            decode(&bad.join("-"))
        };
        assert_eq!(with(3, "ABC"), Err(BadRecoveryKey::GroupLength { group: 4, len: 3 }));
        assert_eq!(with(12, "ABCDU"), Err(BadRecoveryKey::Symbol { group: 13, symbol: 'U' }));
        assert_eq!(with(0, "AB\u{e9}DE"), Err(BadRecoveryKey::Symbol { group: 1, symbol: '\u{e9}' }));
        assert_eq!(decode(&groups[1..].join("-")), Err(BadRecoveryKey::Length(60)));
        assert_eq!(decode(""), Err(BadRecoveryKey::Length(0)));
        assert_eq!(decode(&"A".repeat(5_000)), Err(BadRecoveryKey::Length(5_000)));
        let later = [&[16, 0, 0, 0][..], &[check(0, &[16, 0, 0, 0])]].concat();
        let later: String = later.iter().map(|s| char::from(ALPHABET[usize::from(*s)])).collect();
        assert_eq!(with(0, &later), Err(BadRecoveryKey::Newer));
        assert!(decode("x").unwrap_err().to_string().contains("13 groups"));
    }

    #[test]
    fn the_form_on_paper_never_changes() {
        assert_eq!(encode(&[0; 32])[..2], ["00000", "00001"]);
        let groups = encode(&KEY).join("-");
        assert_eq!(decode(&groups), Ok(KEY));
    }
}
