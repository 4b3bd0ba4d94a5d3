//! Errors on the wire: one enum, carried as a gRPC status with a machine-readable trailer. A status without the
//! trailer comes from the transport or from tonic itself, never from our handlers.

use crate::tls::TlsError;
use crate::wire::ErrorDetail;
use farshore_core::catalogue::Refusal;
use farshore_core::id::Ordinal;
use farshore_core::limits::{ERROR_ORDINALS_MAX, ERROR_TEXT_BYTES_MAX};
use farshore_core::retry::Retry;
use prost::Message;
use std::error::Error;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

/// Trailer that holds an encoded `ErrorDetail`.
pub const ERROR_TRAILER: &str = "farshore-error-bin";

/// Metadata of a request for whatever the asked replica knows, confirmed by nobody.
pub const STALE_HEADER: &str = "farshore-stale";

/// Whether a request is content with that.
pub fn takes_stale<T>(request: &tonic::Request<T>) -> bool {
    request.metadata().contains_key(STALE_HEADER)
}

/// Why a call failed, as callers can act on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// What was asked for is not there.
    #[error("{0}")]
    NotFound(String),
    /// What was to be made is there already, and differs.
    #[error("{0}")]
    Exists(String),
    /// The session is unknown or has ended: open a new one and send again what is missing.
    #[error("{0}")]
    NoSession(String),
    /// These chunks must be sent again. The list may be cut short.
    #[error("{} or more chunks of the snapshot are gone and must be sent again", .0.len())]
    ChunksGone(Vec<Ordinal>),
    /// Too few shards are held for the policy's floor.
    #[error("{0}")]
    BelowFloor(String),
    /// No leader with a majority was found in time.
    #[error("{0}")]
    NoQuorum(String),
    /// The caller may not do this.
    #[error("{0}")]
    Denied(String),
    /// A retention lock forbids it.
    #[error("{0}")]
    Locked(String),
    /// The request itself is wrong, too large or unknown to this node.
    #[error("{0}")]
    Invalid(String),
    /// The stripe is at this generation, not at the expected one.
    #[error("the stripe has moved on to generation {0}")]
    Stale(u64),
    /// The caller's replica belongs to an era of the catalogue that has ended; this is the present one.
    #[error("the catalogue was recovered without the caller's replica and is in era {0} now")]
    LeftBehind(u32),
    /// Try again after a pause.
    #[error("{0}")]
    TooBusy(String),
    /// The node does not hold the shard.
    #[error("{0}")]
    Missing(String),
    /// Stored bytes are not what was written.
    #[error("{0}")]
    Corrupt(String),
    /// No room left.
    #[error("{0}")]
    Full(String),
    /// No connection, or it broke, or the deadline passed.
    #[error("{0}")]
    Unreachable(String),
    /// The node itself is broken.
    #[error("{0}")]
    Internal(String),
}

impl ApiError {
    /// Whether to ask again, and where.
    pub fn retry(&self) -> Retry {
        use ApiError::*;
        match self {
            NotFound(_) | Exists(_) | NoSession(_) | ChunksGone(_) | BelowFloor(_) | Denied(_)
            | Locked(_) | Invalid(_) | Stale(_) | LeftBehind(_) => Retry::Never,
            TooBusy(_) => Retry::Later,
            NoQuorum(_) | Missing(_) | Corrupt(_) | Full(_) | Unreachable(_) | Internal(_) => {
                Retry::Elsewhere
            }
        }
    }

    /// Stable word in the trailer and in JSON; never renamed.
    pub fn word(&self) -> &'static str {
        use ApiError::*;
        match self {
            NotFound(_) => "not-found",
            Exists(_) => "exists",
            NoSession(_) => "no-session",
            ChunksGone(_) => "chunks-gone",
            BelowFloor(_) => "below-floor",
            NoQuorum(_) => "no-quorum",
            Denied(_) => "denied",
            Locked(_) => "locked",
            Invalid(_) => "invalid",
            Stale(_) => "stale",
            LeftBehind(_) => "left-behind",
            TooBusy(_) => "too-busy",
            Missing(_) => "missing",
            Corrupt(_) => "corrupt",
            Full(_) => "full",
            Unreachable(_) => "unreachable",
            Internal(_) => "internal",
        }
    }

    /// Reads any status, ours or the transport's.
    pub fn from_status(status: Status) -> Self {
        let detail = detail_of(&status).and_then(|detail| from_detail(&detail, status.message()));
        detail.or_else(|| stranger(&status)).unwrap_or_else(|| from_code(status.code(), &full_text(&status)))
    }

    fn code(&self) -> Code {
        use ApiError::*;
        match self {
            NotFound(_) | Missing(_) => Code::NotFound,
            Exists(_) => Code::AlreadyExists,
            NoSession(_) | ChunksGone(_) | BelowFloor(_) => Code::FailedPrecondition,
            NoQuorum(_) | Unreachable(_) => Code::Unavailable,
            Denied(_) | Locked(_) => Code::PermissionDenied,
            Invalid(_) => Code::InvalidArgument,
            Stale(_) | LeftBehind(_) => Code::Aborted,
            TooBusy(_) | Full(_) => Code::ResourceExhausted,
            Corrupt(_) => Code::DataLoss,
            Internal(_) => Code::Internal,
        }
    }

    fn detail(&self) -> ErrorDetail {
        let mut detail = ErrorDetail { code: self.word().into(), ..Default::default() };
        match self {
            // Trailers have a size limit; what is left out is found by the next attempt.
            ApiError::ChunksGone(gone) => {
                detail.ordinals = gone.iter().take(ERROR_ORDINALS_MAX).map(|o| o.0).collect();
            }
            ApiError::Stale(generation) => detail.number = *generation,
            ApiError::LeftBehind(era) => detail.number = (*era).into(),
            _ => {}
        }
        detail
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Status {
        let mut trailer = MetadataMap::new();
        trailer.insert_bin(ERROR_TRAILER, MetadataValue::from_bytes(&error.detail().encode_to_vec()));
        Status::with_metadata(error.code(), cut(error.to_string()), trailer)
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        ApiError::from_status(status)
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::AlreadyFormed | Refusal::RepoExists(_) | Refusal::SnapshotExists(_) => {
                ApiError::Exists(text)
            }
            Refusal::NoNode(_)
            | Refusal::NoRepo
            | Refusal::NoPack
            | Refusal::NoChunk(_)
            | Refusal::NoSnapshot(_) => ApiError::NotFound(text),
            Refusal::Locked(..) | Refusal::LockShortened(_) | Refusal::Frozen(..) => ApiError::Locked(text),
            Refusal::BadTransition(..) | Refusal::Malformed(_) => ApiError::Invalid(text),
            Refusal::LevelHeld(..) | Refusal::LevelNeeded(..) => ApiError::Invalid(text),
            Refusal::Emptied(_) | Refusal::LevelBehind { .. } => ApiError::Denied(text),
            Refusal::StaleTopology(_) | Refusal::StaleKeys | Refusal::StaleSnapshot(_) => {
                ApiError::Exists(text)
            }
            Refusal::NoSession(_) => ApiError::NoSession(text),
            Refusal::ChunksGone(gone) => ApiError::ChunksGone(gone),
            Refusal::BelowFloor(..) => ApiError::BelowFloor(text),
            Refusal::Stale(generation) => ApiError::Stale(generation),
            // The node sweeps, or is emptied, by itself; then the same call succeeds.
            Refusal::StillCondemned | Refusal::NotEmpty(_) => ApiError::TooBusy(text),
        }
    }
}

/// A header list has a limit, so a long message is cut at a character's edge.
fn cut(mut text: String) -> String {
    if text.len() > ERROR_TEXT_BYTES_MAX {
        let end = (0..=ERROR_TEXT_BYTES_MAX).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

fn detail_of(status: &Status) -> Option<ErrorDetail> {
    let bytes = status.metadata().get_bin(ERROR_TRAILER)?.to_bytes().ok()?;
    ErrorDetail::decode(bytes).ok()
}

/// `None` for a word from a newer version: the gRPC code must do then.
fn from_detail(detail: &ErrorDetail, message: &str) -> Option<ApiError> {
    let text = message.to_string();
    Some(match detail.code.as_str() {
        "not-found" => ApiError::NotFound(text),
        "exists" => ApiError::Exists(text),
        "no-session" => ApiError::NoSession(text),
        "chunks-gone" => ApiError::ChunksGone(detail.ordinals.iter().copied().map(Ordinal).collect()),
        "below-floor" => ApiError::BelowFloor(text),
        "no-quorum" => ApiError::NoQuorum(text),
        "denied" => ApiError::Denied(text),
        "locked" => ApiError::Locked(text),
        "invalid" => ApiError::Invalid(text),
        "stale" => ApiError::Stale(detail.number),
        "left-behind" => ApiError::LeftBehind(detail.number.try_into().ok()?),
        "too-busy" => ApiError::TooBusy(text),
        "missing" => ApiError::Missing(text),
        "corrupt" => ApiError::Corrupt(text),
        "full" => ApiError::Full(text),
        "unreachable" => ApiError::Unreachable(text),
        "internal" => ApiError::Internal(text),
        _ => return None,
    })
}

/// A certificate that one side does not accept.
fn stranger(status: &Status) -> Option<ApiError> {
    let refused = causes(status).find_map(|cause| match cause.downcast_ref() {
        Some(TlsError::Stranger(_)) => Some(cause.to_string()),
        _ => None,
    })?;
    Some(ApiError::Denied(refused))
}

/// The transport's own message says little ("transport error"); its innermost cause says what happened.
fn full_text(status: &Status) -> String {
    match causes(status).last() {
        Some(cause) => cause.to_string(),
        None => format!("{}: {}", status.code().description(), status.message()),
    }
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    let mut next = status.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

/// What a status without our trailer means. Tonic says "out of range" of a message above the size limit, and reports
/// a broken connection under several codes, "internal" among them.
fn from_code(code: Code, text: &str) -> ApiError {
    let text = text.to_string();
    match code {
        Code::NotFound => ApiError::NotFound(text),
        Code::AlreadyExists => ApiError::Exists(text),
        Code::PermissionDenied | Code::Unauthenticated => ApiError::Denied(text),
        Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted | Code::FailedPrecondition => {
            ApiError::Invalid(text)
        }
        // It serves its shards alone for a while, or is of another release.
        Code::Unimplemented => ApiError::Unreachable("this node does not answer such calls now".into()),
        Code::Ok
        | Code::Aborted
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unavailable
        | Code::Internal
        | Code::DataLoss => ApiError::Unreachable(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::id::{PackId, SessionId};
    use proptest::prelude::*;

    fn error() -> impl Strategy<Value = ApiError> {
        let text = "[ -~äß€]{0,60}";
        prop_oneof![
            text.prop_map(ApiError::NotFound),
            text.prop_map(ApiError::Exists),
            text.prop_map(ApiError::NoSession),
            proptest::collection::vec(any::<u64>().prop_map(Ordinal), 0..40).prop_map(ApiError::ChunksGone),
            text.prop_map(ApiError::BelowFloor),
            text.prop_map(ApiError::NoQuorum),
            text.prop_map(ApiError::Denied),
            text.prop_map(ApiError::Invalid),
            any::<u64>().prop_map(ApiError::Stale),
            text.prop_map(ApiError::TooBusy),
            text.prop_map(ApiError::Missing),
            text.prop_map(ApiError::Corrupt),
            text.prop_map(ApiError::Full),
            text.prop_map(ApiError::Unreachable),
            text.prop_map(ApiError::Internal),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn errors_survive_a_status_and_its_headers(error in error()) {
            let status = Status::from(error.clone());
            let headers = status.clone().into_http::<()>().into_parts().0.headers;
            prop_assert_eq!(ApiError::from_status(status), error.clone());
            let read = Status::from_header_map(&headers).unwrap();
            prop_assert_eq!(ApiError::from_status(read), error);
        }

        #[test]
        fn a_rubbish_trailer_falls_back_to_the_code(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut trailer = MetadataMap::new();
            trailer.insert_bin(ERROR_TRAILER, MetadataValue::from_bytes(&bytes));
            let status = Status::with_metadata(Code::PermissionDenied, "no", trailer);
            prop_assert!(matches!(ApiError::from_status(status), ApiError::Denied(_)));
        }
    }

    #[test]
    fn a_status_without_trailer_is_read_by_its_code() {
        let read = |code| ApiError::from_status(Status::new(code, "x"));
        // Unimplemented: a node that learns its replica anew serves shards alone; its clients gave up.
        for code in [
            Code::Unavailable,
            Code::DeadlineExceeded,
            Code::Cancelled,
            Code::Unknown,
            Code::Internal,
            Code::Unimplemented,
        ] {
            assert!(matches!(read(code), ApiError::Unreachable(_)), "{code:?}");
        }
        for code in [Code::OutOfRange, Code::ResourceExhausted] {
            assert!(matches!(read(code), ApiError::Invalid(_)), "{code:?}");
        }
    }

    #[test]
    fn refusals_keep_what_callers_act_on() {
        assert_eq!(ApiError::from(Refusal::Stale(4)), ApiError::Stale(4));
        assert_eq!(
            ApiError::from(Refusal::ChunksGone(vec![Ordinal(1)])),
            ApiError::ChunksGone(vec![Ordinal(1)])
        );
        assert!(matches!(ApiError::from(Refusal::NoSession(SessionId([0; 16]))), ApiError::NoSession(_)));
        assert!(matches!(
            ApiError::from(Refusal::BelowFloor(PackId([0; 32]), "3 of 4".into())),
            ApiError::BelowFloor(_)
        ));
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let text = "€".repeat(ERROR_TEXT_BYTES_MAX);
        let status = Status::from(ApiError::Invalid(text));
        assert!(status.message().len() <= ERROR_TEXT_BYTES_MAX && status.message().ends_with('€'));
    }
}
