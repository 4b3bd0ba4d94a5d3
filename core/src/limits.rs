//! Every bound in the system as a named constant, with compile-time checks between them.
//!
//! A number that protects memory, time or a peer belongs here, with its unit in its name and its reason beside it.

/// Most shards one stripe may have. Wider stripes make repair read more and gain little overhead.
pub const STRIPE_SHARDS_MAX: usize = 32;
/// Width the policy compiler does not exceed on its own, so that one repair stays cheap.
pub const STRIPE_WIDTH_DEFAULT: usize = 20;

/// Size at which a data pack is closed.
pub const PACK_BYTES_DEFAULT: usize = 32 << 20;
/// Hard limit on a pack, padding and chunk table included.
pub const PACK_BYTES_MAX: usize = 64 << 20;
/// Most chunks in one pack; bounds the chunk table and the commit command.
pub const PACK_CHUNKS_MAX: usize = 32_768;

/// Shards are verified and served in blocks of this size.
pub const SHARD_BLOCK_BYTES: usize = 64 << 10;
/// Largest shard payload accepted by a node.
pub const SHARD_BYTES_MAX: usize = 64 << 20;
/// Most ranges one `Get` may ask of a shard.
pub const SHARD_RANGES_MAX: usize = 4_096;

/// Largest plaintext of a chunk.
pub const CHUNK_BYTES_MAX: usize = 8 << 20;
/// Most chunk ids in one lookup or locate call.
pub const LOOKUP_CHUNKS_MAX: usize = 4_096;
/// Most packs in one commit call.
pub const COMMIT_PACKS_MAX: usize = 64;

/// Largest gRPC message either side decodes.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;
/// Payload of one frame of a shard stream or a Raft snapshot stream.
pub const FRAME_BYTES: usize = 256 << 10;
/// Largest catalogue command accepted for the Raft log.
pub const COMMAND_BYTES_MAX: usize = 6 << 20;
/// Most rows returned by one page of any listing.
pub const PAGE_ROWS_MAX: usize = 1_000;
/// Most nodes a cluster lists.
pub const NODES_LISTED_MAX: usize = 10_000;

/// Longest name of a repository, node, region or zone, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest name of a file in a directory, in bytes; file systems allow 255, some network ones a little more.
pub const ENTRY_NAME_BYTES_MAX: usize = 4_096;
/// Largest sealed snapshot description, in bytes.
pub const SNAPSHOT_SEALED_BYTES_MAX: usize = 1 << 20;
/// Largest live bitmap of a snapshot, serialised, in bytes.
pub const SNAPSHOT_BITMAP_BYTES_MAX: usize = 4 << 20;
/// Largest sealed client-side configuration of a repository.
pub const REPO_CONFIG_BYTES_MAX: usize = 64 << 10;
/// Largest key slot.
pub const KEY_SLOT_BYTES_MAX: usize = 4 << 10;
/// Longest `host:port`: a DNS name has at most 253 bytes.
pub const ADDR_BYTES_MAX: usize = 260;
/// Largest row of the catalogue, key and value: a snapshot with its bitmap is the greatest.
pub const ROW_BYTES_MAX: usize = COMMAND_BYTES_MAX;
/// Most key slots of a repository.
pub const KEY_SLOTS_MAX: usize = 32;
/// Longest `host:port` of a node, in bytes.
pub const NODE_ADDR_BYTES_MAX: usize = 280;
/// A page of rows that may be large, such as snapshots, ends after this many bytes.
pub const PAGE_BYTES_MAX: usize = 4 << 20;
/// Rows of packs under target that one snapshot commit looks at; beyond it the reply is a lower bound.
pub const UNDER_TARGET_LOOKS_MAX: usize = 16_384;
/// Forgotten snapshots stay in the trash this long unless the repository says otherwise: a week is enough to come back
/// from a holiday weekend and notice.
pub const TRASH_MS_DEFAULT: u64 = 7 * 24 * 3_600_000;
/// Most packs in one command of garbage collection.
pub const GARBAGE_PACKS_MAX: usize = 256;
/// Chunks of the packs dropped by one command; each is a row to be removed while nothing else is applied.
pub const GARBAGE_CHUNKS_MAX: usize = 2_048;
/// Packs that a round of garbage collection makes of others at most.
pub const COMPACTIONS_PER_ROUND: usize = 4;
/// Packs of which less than this is needed are worth copying, in percent of their chunks.
pub const SPARSE_PERCENT_DEFAULT: u64 = 60;
/// A long backup names what it has stored so far this often, so that it need not be sent again after a crash.
pub const CHECKPOINT_MS: u64 = 180_000;
/// A checkpoint that no later run has replaced goes after this long, milliseconds of catalogue time.
pub const CHECKPOINT_KEEP_MS: u64 = 30 * 24 * 3_600_000;
/// Most snapshots in one command.
pub const SNAPSHOTS_PER_COMMAND_MAX: usize = 1_024;
/// Snapshots that one audit record names; of more it tells number and hash.
pub const AUDIT_SNAPSHOTS_MAX: usize = 16;
/// Longest audit record: a retention policy, or the changes of a topology, and some names.
pub const AUDIT_RECORD_BYTES_MAX: usize = 4 << 10;
/// A call that collects garbage begins nothing new after this long, well within the deadline of a call; its client calls
/// again if there is more.
pub const COLLECT_CALL_MS: u64 = CATALOGUE_CALL_MS / 3;
/// Most orphans in one command.
pub const ORPHANS_MAX: usize = 256;
/// Longest retention policy in its readable form, in bytes.
pub const RETENTION_BYTES_MAX: usize = 1_024;
/// Most tags of a snapshot that retention knows.
pub const SNAPSHOT_TAGS_MAX: usize = 64;
/// Most packs in one recheck.
pub const RECHECK_PACKS_MAX: usize = 1_024;
/// A page of a catalogue image ends after this many bytes.
pub const IMAGE_PAGE_BYTES: usize = 512 << 10;
/// Rows read at a time for an image, and removed at a time from a dead catalogue.
pub const IMAGE_ROWS_READ: usize = 256;

/// Most bytes of a pack that a reader asks for and holds at a time. A usual pack fits: where it is cut in two, what is decoded
/// at the edge is read twice.
pub const FETCH_BATCH_BYTES: u64 = 40 << 20;
/// Bytes nobody wants between two chunks are read along when there are no more than this.
pub const FETCH_GAP_BYTES: u64 = SHARD_BLOCK_BYTES as u64;
/// Batches a reader has under way at a time, if they are small.
pub const FETCHES_IN_FLIGHT: usize = 8;
/// Bytes of batches that a reader has under way at a time: most of the memory of a restore.
pub const FETCHING_BYTES_MAX: u64 = 80 << 20;
/// Most chunk uses a restore plans at a time.
pub const WINDOW_USES_MAX: usize = 32_768;
/// Most bytes of files a restore plans at a time.
pub const WINDOW_BYTES_MAX: u64 = 256 << 20;
/// Files up to this size are put together in memory and written in batches; larger ones go straight to disk.
pub const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of small files a restore plans at a time, since they may all wait in memory for their last chunk.
pub const WINDOW_SMALL_BYTES_MAX: u64 = 48 << 20;
/// Small files written in one go.
pub const SMALL_FILES_BATCH: usize = 128;
/// Bytes of files in one window of a dump: what comes early waits in memory for what was to come before it.
pub const DUMP_WINDOW_BYTES: u64 = 64 << 20;
/// Plaintext of chunks, of files and of directories, that a view of a repository keeps.
pub const VIEW_CACHE_BYTES: usize = 64 << 20;
/// Bytes that a view fetches ahead of whoever reads a file from front to back.
pub const VIEW_AHEAD_BYTES: u64 = 8 << 20;
/// A view asks which snapshots there are no more often than this, and only when somebody looks.
pub const VIEW_RELIST_MS: u64 = 3_000;
/// A pack of tree chunks is read in blocks of this size, since neighbours are wanted next.
pub const TREE_BLOCK_BYTES: u64 = 2 << 20;
/// Sealed tree chunks a reader keeps.
pub const TREE_CACHE_BYTES: u64 = 32 << 20;
/// Packs a deep check holds at a time, each whole in memory.
pub const CHECK_PACKS_IN_FLIGHT: usize = 2;
/// Deepest directory a walk follows.
pub const TREE_DEPTH_MAX: usize = 2_048;

/// Deadline of a catalogue call, leader search included, per attempt.
pub const CATALOGUE_CALL_MS: u64 = 10_000;
/// Deadline to open a connection, handshake included.
pub const CONNECT_MS: u64 = 3_000;
/// Piece of a sum of shards: read from each of them, added up and sent in one go. Whole blocks.
pub const SUM_PIECE_BYTES: usize = 1 << 20;
/// Pieces of a sum that are made ahead of the one that is sent.
pub const SUM_PIECES_AHEAD: usize = 2;
/// Shards that a node rebuilds, and sums that it makes for others, at a time; more wait.
pub const BUILDS_IN_FLIGHT_MAX: usize = 8;
/// Deadline for one frame of a shard stream to make progress.
pub const SHARD_STALL_MS: u64 = 10_000;
/// An upload slower than this many bytes a millisecond gives its place to another, so that none holds it for ever.
pub const PUT_BYTES_PER_MS_MIN: u64 = 2;
/// Deadline for a node to re-read one whole shard.
pub const SHARD_VERIFY_MS: u64 = 60_000;
/// A node that was unreachable or full is left alone for this long, so that it costs one timeout and not one per pack.
pub const NODE_SHUN_MS: u64 = 20_000;
/// Each time that it is asked again and is still away this doubles, so often.
pub const NODE_SHUN_DOUBLINGS: u32 = 3;
/// Pause before a put is tried a second time on an unreachable node.
pub const PUT_RETRY_MS: u64 = 200;
/// A shard read that takes longer than this plus its transfer time is hedged by decoding from other shards.
pub const HEDGE_MS: u64 = 500;
/// Bytes a healthy link is expected to carry in a millisecond at most, for the hedge.
pub const HEDGE_BYTES_PER_MS: u64 = 16 << 10;
/// The same of a link nobody has read over yet. A hedge too many is felt most on a thin line.
pub const HEDGE_BYTES_PER_MS_FIRST: u64 = 2 << 10;
/// A read of less than this tells how far away a node is and not what the line carries.
pub const PACE_BYTES_MIN: u64 = 1 << 20;
/// Reads of which the pace is remembered.
pub const PACES_KEPT: usize = 16;
/// A node that kept a reader waiting is not asked first for this long.
pub const NODE_SLOW_MS: u64 = 5_000;
/// A node that the cluster calls slow is not asked first for this long.
pub const NODE_SLOW_TOLD_MS: u64 = 30_000;
/// Heartbeats of which the quickest counts, in judging how fast a node is.
pub const RTTS_KEPT: usize = 10;
/// Calls to a disk of which the one in the middle counts.
pub const DISK_PACES_KEPT: usize = 16;
/// Fewer say nothing.
pub const DISK_PACES_MIN: usize = 8;
/// Older ones are forgotten.
pub const DISK_PACE_MS: u64 = 60_000;
/// A node is slow if it takes so many times as long as others of its region...
pub const SLOW_TIMES: u32 = 10;
/// ...and at least this long for a heartbeat, there and back...
pub const RTT_SLOW_MS: u64 = 50;
/// ...or this long for a call to its disk, for a MiB or less;
pub const DISK_SLOW_MS: u64 = 250;
/// or if either takes this long, whatever others take.
pub const SLOW_ALWAYS_MS: u64 = 1_000;
/// A node that fell silent and came back more often than this, within [`FLAP_WINDOW_MS`], is not trusted at once.
pub const FLAPS_FREE: usize = 2;
/// Of how long silences are counted.
pub const FLAP_WINDOW_MS: u64 = 600_000;
/// How many of them are.
pub const FLAPS_KEPT: usize = 16;
/// Nobody is mistrusted for longer than this.
pub const FLAP_HOLD_MAX_MS: u64 = 300_000;
/// Deadline of one request to a bucket, its body included.
pub const BUCKET_REQUEST_MS: u64 = 20_000;
/// Deadline to open a connection to a bucket's server.
pub const BUCKET_CONNECT_MS: u64 = 3_000;
/// A request to a bucket is not made again once this much time has passed: whoever waits for a shard has turned elsewhere.
pub const BUCKET_RETRY_MS: u64 = SHARD_STALL_MS;
/// Times a request to a bucket is made again at most.
pub const BUCKET_RETRIES_MAX: usize = 5;
/// Longest pause between two of them.
pub const BUCKET_BACKOFF_MS_MAX: u64 = 2_000;
/// Objects of at least this size are uploaded in parts of this size; an ordinary shard is smaller and takes one request.
pub const BUCKET_PART_BYTES: usize = 16 << 20;
/// Parts of one object on their way at a time.
pub const BUCKET_PARTS_IN_FLIGHT: usize = 2;
/// Objects being uploaded at a time; with the two above, the memory that uploads take.
pub const BUCKET_UPLOADS_MAX: usize = 8;
/// A shard in a bucket is read this much at a time where more of it is wanted, since each request costs money and a round
/// trip.
pub const BUCKET_READ_BYTES: usize = 4 << 20;
/// Largest slot in a bucket, which is read and written whole.
pub const BUCKET_SLOT_BYTES_MAX: u64 = 4 << 10;
/// What a bucket says it has room for; a sum over all nodes still fits.
pub const BUCKET_SPACE_BYTES: u64 = 1 << 52;
/// Free bytes of the local disk from which on it can never run full of shards on their way into a bucket.
pub const SPOOL_BYTES: u64 = DISK_RESERVE_BYTES + (PUTS_IN_FLIGHT_MAX * SHARD_BYTES_MAX) as u64;
/// A client that has never had an answer gives up after this long: the addresses are wrong, or nobody is there.
pub const FIRST_CONTACT_MS: u64 = 10_000;
/// A client that has never had an answer asks the next address too after this long.
pub const CONTACT_STEP_MS: u64 = 500;
/// A client gives up on the whole cluster after retrying this long without one success.
pub const RETRY_BUDGET_MS: u64 = 60_000;
/// A node that scrubs itself reports at least this often.
pub const SCRUB_SILENCE_MS: u64 = 120_000;
/// A session that is not renewed for this long is expired by the leader.
pub const SESSION_LEASE_MS: u64 = 120_000;
/// Clients renew their session this often.
pub const SESSION_RENEW_MS: u64 = 20_000;

/// Longest key in a Kv store.
pub const KV_KEY_BYTES_MAX: usize = 512;
/// Least cache of an engine: below it every read goes to the disk.
pub const KV_CACHE_BYTES_MIN: u64 = 1 << 20;
/// Cache of the engine that holds Raft log and catalogue, unless the node's configuration says otherwise.
pub const KV_CATALOGUE_CACHE_BYTES: u64 = 64 << 20;
/// Torn journal ends of that engine that are kept for the operator.
pub const KV_JOURNAL_TAILS_KEPT: usize = 4;
/// Cache of the engine that holds the shard index, unless the node's configuration says otherwise.
pub const KV_INDEX_CACHE_BYTES: u64 = 8 << 20;

/// Open connections one node accepts.
pub const CONNECTIONS_MAX: usize = 1_024;
/// Streams one connection may have open at a time.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// Most addresses a profile names.
pub const ENDPOINTS_MAX: usize = 64;
/// Longest profile, in bytes.
pub const PROFILE_BYTES_MAX: usize = 256 << 10;
/// HTTP/2 flow control of one stream: a shard keeps a long fat line full.
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 flow control of one connection, over all its streams.
pub const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A connection is asked for a sign of life this often, in both directions.
pub const KEEPALIVE_INTERVAL_MS: u64 = 5_000;
/// A connection that gives none for this long is closed.
pub const KEEPALIVE_TIMEOUT_MS: u64 = 5_000;
/// A stopping node lets running calls end for this long.
pub const SERVE_STOP_MS: u64 = 2_000;
/// Most ordinals in an error's trailer; with the text it must fit into a header list of 16 KiB.
pub const ERROR_ORDINALS_MAX: usize = 512;
/// Longest error text on the wire, before percent-encoding.
pub const ERROR_TEXT_BYTES_MAX: usize = 1_024;
/// Shard uploads a node works on at a time; more wait.
pub const PUTS_IN_FLIGHT_MAX: usize = 64;
/// Most nodes of one cluster; bounds the address book, the health table and the topology answer.
pub const NODES_MAX: usize = 1_024;
/// Most changes of the topology in one plan.
pub const TOPOLOGY_CHANGES_MAX: usize = 64;
/// Bad and missing shards that one node's scrub names.
pub const SCRUB_NAMED_MAX: usize = 1_000;
/// A shard that is to be read again whole is given up after this.
pub const READ_AGAIN_MS: u64 = 300_000;
/// Regions that may be moved at the same time.
pub const MIGRATIONS_MAX: usize = 8;
/// Verification records kept; the stripes of older ones are forgotten.
pub const VERIFICATIONS_MAX: usize = 64;
/// Stripes recorded as read again in one command, and stripes of old records forgotten with it.
pub const VERIFIED_STRIPES_MAX: usize = 256;
/// Links between regions that a budget can name.
pub const LINK_BUDGETS_MAX: usize = 1_024;
/// Packs looked at in one go for an operator who waits.
pub const ASKED_PACKS_AT_ONCE: usize = 256;
/// Repositories that the answer to a what-if names.
pub const WHAT_IF_REPOS_MAX: usize = 64;
/// Snapshots that it names.
pub const WHAT_IF_SNAPSHOTS_MAX: usize = 64;
/// A look at all packs for an operator reports that it is still at work at least this often.
pub const ASKED_SILENCE_MS: u64 = 60_000;
/// Tasks of repair that a status names.
pub const REPAIRS_SHOWN_MAX: usize = 8;
/// Stripes that an ambiguous beginning of an id names.
pub const STRIPES_NAMED_MAX: usize = 8;
/// Audit records looked through for the last change of a node's state.
pub const AUDIT_LOOKED_MAX: u64 = 20_000;
/// Bad shards waiting to be reported to the catalogue; more are found again by the next scrub.
pub const REPORTS_QUEUED_MAX: usize = 4_096;
/// Shards rebuilt at a time by the leader.
pub const REBUILDS_IN_FLIGHT_MAX: usize = 4;
/// Rebuild tasks the leader plans ahead.
pub const REBUILDS_QUEUED_MAX: usize = 1_024;
/// Queued rebuilds are weighed anew this often: a thousand of them can take hours.
pub const REPAIR_REPLAN_MS: u64 = 15_000;
/// Copies one sweep deletes before it tells the catalogue.
pub const SWEEP_COPIES_MAX: usize = 256;

/// Most states of a reliability model: reducing so many takes seconds.
pub const CHAIN_STATES_MAX: usize = 2_048;
/// Most steps of time a reliability model is followed for.
pub const CHAIN_STEPS_MAX: f64 = 1e7;

/// A client's clock ahead of catalogue time by more than this makes its snapshot suspect. A clock that runs on local time
/// is up to 14 hours off, which is a nuisance and no sign of anything.
pub const SUSPECT_AHEAD_MS: u64 = 24 * 3_600_000;
/// The same for a clock that is behind. The label is from the beginning of a run, and the first backup of a large tree
/// over a slow line takes weeks.
pub const SUSPECT_BEHIND_MS: u64 = 30 * 86_400_000;
/// A snapshot smaller than this part of the usual size is suspect: half of the tree is gone.
pub const SUSPECT_SHRUNK: u64 = 2;
/// A snapshot larger than this multiple of the usual size is suspect. A tree copied beside itself is not.
pub const SUSPECT_GROWN: u64 = 4;
/// Changes smaller than this are never suspect, unless nothing is left at all.
pub const SUSPECT_BYTES_MIN: u64 = 1 << 20;
/// The usual size is the median of so many trusted snapshots before.
pub const SUSPECT_LEVEL_SNAPSHOTS: usize = 5;
/// The usual size is forgotten when no snapshot has had it for this long: so long an operator has to notice.
pub const SUSPECT_LEVEL_MS: u64 = 30 * 86_400_000;

/// A repository's own retention policy is looked at again after this long, news or not: locks end by time alone.
pub const RETAIN_AGAIN_MS: u64 = 3_600_000;

/// Bytes of a node's disk that shards never take, so that catalogue, index and logs can go on when it is full.
pub const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// Catalogues up to this many packs are looked at afresh for each status; larger ones in the background.
pub const STATUS_PACKS_AT_ONCE_MAX: u64 = 10_000;

/// A leader that cannot confirm itself within this time answers a status as unconfirmed.
pub const STATUS_CONFIRM_MS: u64 = 2_000;
/// First pause before a failed rebuild is planned again.
pub const REBUILD_PAUSE_MIN_MS: u64 = 1_000;
/// Longest such pause.
pub const REBUILD_PAUSE_MAX_MS: u64 = 60_000;

/// First pause of a failing background worker.
pub const WORKER_PAUSE_MIN_MS: u64 = 100;
/// Longest pause of a failing background worker.
pub const WORKER_PAUSE_MAX_MS: u64 = 10_000;
/// A stopping node gives its workers this long to finish the unit they are in.
pub const WORKER_STOP_MS: u64 = 5_000;

/// Deadline of one append of log entries to another replica; a large command over a slow link takes its time.
pub const RAFT_APPEND_MS: u64 = 30_000;
/// A catalogue image that makes no progress for this long is given up, on either side.
pub const RAFT_IMAGE_STALL_MS: u64 = 60_000;
/// A purge waits this long for the image that replaces what goes; installing one is a single batch.
pub const RAFT_INSTALL_MS: u64 = 30_000;
/// Open sessions of a cluster; each is a row, and all are looked at each second.
pub const SESSIONS_OPEN_MAX: u64 = 4_096;
/// Ended sessions that are remembered; beyond it the older half is forgotten.
pub const SESSIONS_ENDED_MAX: u64 = 8_192;
/// A part of a catalogue export is closed at this size, so that whoever makes or reads one holds little.
pub const EXPORT_PART_BYTES: usize = 8 << 20;
/// Most parts of one export.
pub const EXPORT_PARTS_MAX: usize = 2_048;
/// No increment is recorded beyond so many exports, old ones included. A whole one is: it makes room.
pub const EXPORTS_MAX: u64 = 1_024;
/// Rows that exports can have.
pub const EXPORT_ROWS_MAX: usize = EXPORTS_MAX as usize + EXPORT_BASES_KEPT + 1;
/// Whole exports that are kept; with the older go the increments that only it needs.
pub const EXPORT_BASES_KEPT: usize = 2;
/// After this many increments the catalogue is exported whole.
pub const EXPORT_INCREMENTS_MAX: usize = 200;
/// A catalogue is exported whole at least this often, whether it changed or not.
pub const EXPORT_BASE_AGE_MS: u64 = 24 * 3_600 * 1_000;
/// Increments may grow to this size, however small the catalogue, before it is exported whole.
pub const EXPORT_INCREMENT_BYTES_MIN: u64 = 16 << 20;
/// Making an export is given up after this time.
pub const EXPORT_MAKE_MS: u64 = 30 * 60 * 1_000;
/// An operator waits this long for an export: one may be under way, and then comes his.
pub const EXPORT_CALL_MS: u64 = 2 * EXPORT_MAKE_MS + 60_000;
/// After a whole export that failed, increments have their turn for so long.
pub const EXPORT_BASE_REST_MS: u64 = 10 * 60 * 1_000;
/// A whole export that few nodes took from the start is not made again sooner than after this: the others are away, or full.
pub const EXPORT_WEAK_AGE_MS: u64 = 3_600 * 1_000;
/// A part of an export that is not recorded for this long never will be: longer than an export may take.
pub const EXPORT_LEFT_OVER_MS: u64 = 2 * EXPORT_MAKE_MS;
/// Shards listed in one answer of a node under recovery; each is about a hundred bytes.
pub const LISTED_SHARDS_MAX: usize = 4_096;
/// Listed shards that a rebuild holds at a time, of all nodes together.
pub const LISTED_HELD_MAX: usize = 1 << 20;
/// Shard headers read in one call from a node under recovery: each is a file to open.
pub const HEADERS_READ_MAX: usize = 256;
/// Placements of shards that a rebuild carries out in one go.
pub const PLACED_AT_ONCE_MAX: usize = 256;
/// What can be had at all is asked for this often during a recovery.
pub const RECOVERY_TRIES: u32 = 4;
/// Pause after the first failure; each pause is twice as long as the one before.
pub const RECOVERY_PAUSE_MS: u64 = 2_000;
/// Stripes of exports that a rebuild looks at.
pub const EXPORT_STRIPES_MAX: usize = 65_536;
/// A node asked about its state during a recovery answers within this time.
pub const RECOVERY_CALL_MS: u64 = 5_000;
/// For so long after a recovery nothing is deleted by itself: packs that were taken in from their chunk tables wait for the
/// next backup, and an operator who has chosen the wrong replica can choose again.
pub const RECOVERY_REST_MS: u64 = 24 * 3_600 * 1_000;
/// A rebuild of the catalogue reports that it is still at work at least this often.
pub const REBUILD_SILENCE_MS: u64 = 60_000;
/// Commands one node has under way at a time; more wait.
pub const PROPOSALS_IN_FLIGHT_MAX: usize = 64;

const _: () = assert!(STRIPE_WIDTH_DEFAULT <= STRIPE_SHARDS_MAX);
const _: () = assert!(STRIPE_SHARDS_MAX <= 255, "shard indexes are one byte and the code has 255 points");
const _: () = assert!(PACK_BYTES_DEFAULT + CHUNK_BYTES_MAX + (1 << 20) <= PACK_BYTES_MAX);
const _: () = assert!((PACK_BYTES_DEFAULT + CHUNK_BYTES_MAX) as u64 <= FETCH_BATCH_BYTES);
const _: () = assert!(2 * FETCH_BATCH_BYTES <= FETCHING_BYTES_MAX, "one is read while another is opened");
const _: () = assert!(PACK_BYTES_MAX <= SHARD_BYTES_MAX, "k = 1 makes a shard as long as its pack");
const _: () = assert!(
    VIEW_AHEAD_BYTES as usize + CHUNK_BYTES_MAX < VIEW_CACHE_BYTES / 2,
    "what is ahead stays until it is read"
);
const _: () = assert!(FRAME_BYTES < MESSAGE_BYTES_MAX);
const _: () =
    assert!(SUM_PIECE_BYTES < MESSAGE_BYTES_MAX && SUM_PIECE_BYTES.is_multiple_of(SHARD_BLOCK_BYTES));
const _: () = assert!(SNAPSHOT_SEALED_BYTES_MAX + SNAPSHOT_BITMAP_BYTES_MAX < COMMAND_BYTES_MAX);
const _: () = assert!(COMMAND_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () =
    assert!(SMALL_FILE_BYTES_MAX < WINDOW_SMALL_BYTES_MAX && WINDOW_SMALL_BYTES_MAX < WINDOW_BYTES_MAX);
const _: () =
    assert!(WINDOW_BYTES_MAX / SMALL_FILE_BYTES_MAX <= 512, "larger files are open while being written");
const _: () = assert!(PAGE_BYTES_MAX + SNAPSHOT_SEALED_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(PAGE_ROWS_MAX * (AUDIT_RECORD_BYTES_MAX + 32) < MESSAGE_BYTES_MAX);
const _: () = assert!(
    RETENTION_BYTES_MAX + TOPOLOGY_CHANGES_MAX * 11 + AUDIT_SNAPSHOTS_MAX * 32 < AUDIT_RECORD_BYTES_MAX
);
const _: () = assert!(IMAGE_PAGE_BYTES + SNAPSHOT_BITMAP_BYTES_MAX < MESSAGE_BYTES_MAX);
const _: () = assert!(EXPORT_PART_BYTES + ROW_BYTES_MAX + (1 << 20) <= PACK_BYTES_MAX);
const _: () = assert!(EXPORT_PARTS_MAX * STRIPE_SHARDS_MAX * 48 < COMMAND_BYTES_MAX);
const _: () = assert!(EXPORTS_MAX as usize > 3 * EXPORT_INCREMENTS_MAX);
const _: () = assert!(SESSION_RENEW_MS * 3 < SESSION_LEASE_MS);
const _: () = assert!(WORKER_PAUSE_MIN_MS < WORKER_PAUSE_MAX_MS);
