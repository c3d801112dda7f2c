//! Record batches: Kafka's record batch format, magic 2 (KIP-98), as pure functions over bytes.
//!
//! [`Record`] and [`RecordRef`] are what is appended; [`encode_batch`] and [`BatchBuilder`] make batches of them.
//! [`BatchView`] exists only over bytes whose header, size and checksum hold; [`RecordsIter`] walks the records of a
//! body, borrowed as [`RecordView`]s, and [`StoredRecord`] is one that owns its bytes; a [`RecordList`] holds many of
//! them. This module knows nothing of files, locks, clocks or topics, and trusts no length that it reads.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::panic, clippy::expect_used)
)]

mod append;
mod batch;
mod body;
mod builder;
mod checksum;
mod compress;
mod control;
mod decode;
mod headers;
mod legacy;
mod list;
mod room;
mod short_form;
mod stored;
mod varint;

pub use append::{AsRecord, Header, Record, RecordRef};
pub(crate) use batch::CRC_FROM;
pub use batch::{BATCH_HEADER_BYTES, BatchError, BatchHeader, BatchView, PEEK_BYTES, Peek, TimestampType, peek};
pub(crate) use body::{RecordPlace, RecordsState};
pub use body::{RecordView, RecordsIter};
pub use builder::{
    BatchBuilder, BatchSpec, BatchSummary, encode_batch, next_sequence, set_base_offset, set_leader_epoch,
};
pub(crate) use builder::{encode_batch_over, rewrite_batch};
pub use compress::Compression;
pub use control::{ControlRecord, EndMarker, encode_end_marker};
pub use decode::{DecodeLimits, Decompressor, decode_body};
pub(crate) use decode::{decode_shared, decode_slice, decode_taking};
pub use headers::{HeaderRef, HeadersIter, HeadersRef};
pub use legacy::LegacyEntry;
pub use list::{RecordList, RecordListIntoIter, RecordListIter};
pub(crate) use stored::SharedBytes;
pub use stored::{StoredRecord, StoredRecords, StoredRef, stored_records};

pub(crate) use checksum::{Crc32c, crc_holds, crc32c, crc32c_behind};
