//! Reading the audit chain, and checking it here rather than there: whoever serves it may be the one who altered it.

use super::topology::Operator;
use crate::error::{Error, Result};
use farshore_core::catalogue::{AuditCheck, AuditFault, AuditHead, AuditRecord};
use farshore_core::id::AuditHash;
use farshore_proto::channel::admin;
use farshore_proto::wire;

/// Some records, as they are stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AuditPage {
    /// Number and stored bytes of each.
    pub rows: Vec<(u64, Vec<u8>)>,
    /// Where the chain ends, by the word of who answered.
    pub head: AuditHead,
    /// Catalogue time, Unix milliseconds.
    pub catalogue_ms: u64,
    /// Feature level that the cluster uses: below [`farshore_core::level::LEVEL_AUDIT`] nothing is recorded.
    pub feature_level: u32,
}

impl Operator {
    /// Records from number `from` on, as many as fit an answer, but at most `limit` unless that is 0.
    pub async fn audit(&self, from: u64, limit: u32) -> Result<AuditPage> {
        let reply = self.conversation.call(move |channel| async move {
            admin(channel).list_audit(wire::ListAuditRequest { from, limit }).await
        });
        let reply = reply.await?;
        let hash = AuditHash::from_slice(&reply.head_hash).map_err(|e| Error::Protocol(e.to_string()))?;
        Ok(AuditPage {
            rows: reply.rows.into_iter().map(|row| (row.seq, row.record.into())).collect(),
            head: AuditHead { seq: reply.head_seq, hash },
            catalogue_ms: reply.catalogue_ms,
            feature_level: reply.feature_level,
        })
    }

    /// Reads the whole chain from its first record, recomputes every hash, and hands each good record to `each`. The inner
    /// error is the first record at which the chain is broken; `noted` is a head that it must still go through.
    pub async fn check_audit(
        &self,
        noted: Option<AuditHead>,
        mut each: impl FnMut(AuditRecord),
    ) -> Result<std::result::Result<AuditHead, AuditFault>> {
        let mut check = AuditCheck::through(noted);
        loop {
            let page = self.audit(check.head().seq + 1, 0).await?;
            for (seq, stored) in &page.rows {
                match check.take(*seq, stored) {
                    Ok(record) => each(record),
                    Err(fault) => return Ok(Err(fault)),
                }
            }
            // Records may have come while we read, so the page that ends it is the one that brings nothing more.
            if page.rows.is_empty() || check.head().seq >= page.head.seq {
                return Ok(check.end(page.head));
            }
        }
    }
}
