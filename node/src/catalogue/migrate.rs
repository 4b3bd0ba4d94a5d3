//! Rows to bytes and back, old versions included. A version this program does not know is a typed error, never a guess.

use super::error::CatalogueError;
use super::tables::{Key, Rows};
use farshore_core::host::kv::Table;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A row's payload in the format written today.
pub(crate) fn encode<R: Rows>(value: &R::Value) -> Result<Vec<u8>, CatalogueError> {
    to_bytes(R::TABLE, value)
}

/// A row's value from any format ever written. So far there is one.
pub(crate) fn decode<R: Rows>(version: u8, payload: &[u8]) -> Result<R::Value, CatalogueError> {
    match version {
        1 => from_bytes(R::TABLE, payload),
        version => Err(CatalogueError::UnknownVersion { table: R::TABLE, version }),
    }
}

/// A row's key, from the bytes behind its generation.
pub(crate) fn decode_key<R: Rows>(bytes: &[u8]) -> Result<R::Key, CatalogueError> {
    R::Key::read(bytes).ok_or(CatalogueError::BadRow { table: R::TABLE, what: "key of another shape" })
}

fn to_bytes<T: Serialize>(table: Table, value: &T) -> Result<Vec<u8>, CatalogueError> {
    postcard::to_stdvec(value).map_err(|_| CatalogueError::BadRow { table, what: "value cannot be encoded" })
}

fn from_bytes<T: DeserializeOwned>(table: Table, payload: &[u8]) -> Result<T, CatalogueError> {
    match postcard::take_from_bytes(payload) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(CatalogueError::BadRow { table, what: "bytes left over" }),
        Err(_) => Err(CatalogueError::BadRow { table, what: "value of another shape" }),
    }
}

/// Whether a row from outside has a key and a value that this program can read.
pub(crate) fn check_row(table: Table, key: &[u8], version: u8, payload: &[u8]) -> Result<(), CatalogueError> {
    use super::tables::*;
    fn check<R: Rows>(key: &[u8], version: u8, payload: &[u8]) -> Result<(), CatalogueError> {
        decode_key::<R>(key)?;
        decode::<R>(version, payload).map(drop)
    }
    match table {
        1 if HeadKey::read(key).is_some() => check::<Heads>(key, version, payload),
        1 if StateKey::read(key).is_some() => check::<States>(key, version, payload),
        1 => check::<Notes>(key, version, payload),
        2 => check::<Nodes>(key, version, payload),
        3 => check::<Repos>(key, version, payload),
        4 => check::<RepoNames>(key, version, payload),
        5 => check::<Sessions>(key, version, payload),
        6 => check::<Packs>(key, version, payload),
        7 => check::<PackIds>(key, version, payload),
        8 => check::<Stripes>(key, version, payload),
        9 => check::<Chunks>(key, version, payload),
        10 => check::<NextOrdinals>(key, version, payload),
        11 => check::<OrdinalPacks>(key, version, payload),
        12 => check::<Snapshots>(key, version, payload),
        13 => check::<Holders>(key, version, payload),
        14 => check::<UnderTargets>(key, version, payload),
        15 => check::<Condemneds>(key, version, payload),
        32 => check::<LiveSets>(key, version, payload),
        33 => check::<PackChunks>(key, version, payload),
        34 => check::<PackOrdinals>(key, version, payload),
        35 => check::<CondemnedPacks>(key, version, payload),
        36 => check::<Segments>(key, version, payload),
        37 => check::<Trash>(key, version, payload),
        38 => check::<Marks>(key, version, payload),
        39 => check::<Settings>(key, version, payload),
        40 => check::<Ended>(key, version, payload),
        41 => check::<Exports>(key, version, payload),
        42 => check::<Audits>(key, version, payload),
        43 => check::<NodeLevels>(key, version, payload),
        44 => check::<Intents>(key, version, payload),
        45 => check::<Incarnations>(key, version, payload),
        46 => check::<Recodings>(key, version, payload),
        47 => check::<Migrations>(key, version, payload),
        48 => check::<Moveds>(key, version, payload),
        49 => check::<Verifications>(key, version, payload),
        50 => check::<VerifiedStripes>(key, version, payload),
        51 => check::<Upkeeps>(key, version, payload),
        _ => Err(CatalogueError::BadRow { table, what: "no such table" }),
    }
}
