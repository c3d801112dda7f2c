//! Bugs on purpose, under `--cfg topiclog_planted` alone: the tests have to find each of them.
//!
//! Without the cfg [`is`] is `false` at compile time, and nothing of this is left.

/// A bug that can be switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, unreachable_pub, reason = "the names say it, and no user sees them")]
pub enum Bug {
    NoSyncBeforeAck = 1,
    NoSyncAtRoll,
    NoDirectorySync,
    SyncErrorIgnored,
    FailedSyncIsDefinite,
    CleanFlagStands,
    TailNotSynced,
    ShortWriteIgnored,
    FailedAppendStays,
    FloorIgnored,
    ScanSkipsCrc,
    OrderUnchecked,
    EpochUnchecked,
    IndexTrusted,
    TimeIndexTrusted,
    ManifestChecksumSkipped,
    SealUnchecked,
    ReadSkipsCrc,
    LockNotTaken,
    RollPutOffWhenCommitted,
    RenameBeforeSync,
    ReplacedInPlace,
    FloorBeforeData,
    SyncRetried,
    CleanBeforeRepairs,
    TailNotRewritten,
    OffsetReused,
    CutBelowFloor,
    LaterSegmentsDeleted,
    RecoveryNotIdempotent,
    QuarantineSkipped,
    CrcRangeWrong,
    UnsupportedIsTorn,
    IndexOffByOne,
    StaleIndexKept,
    RepairInPlaceUnderMaps,
    MarkedBeforeCheck,
    CountPreallocates,
    DecompressUnlimited,
    SourcesGoBeforeTheSwap,
    TombstoneDroppedEarly,
    OlderRecordWins,
    KeyHashTrusted,
    ActiveSegmentCounted,
    ClockJumpTrusted,
    HoldIgnored,
    SupersededByUnsynced,
}

impl Bug {
    /// All of them.
    #[cfg(topiclog_planted)]
    pub const ALL: [Bug; 47] = [
        Bug::NoSyncBeforeAck,
        Bug::NoSyncAtRoll,
        Bug::NoDirectorySync,
        Bug::SyncErrorIgnored,
        Bug::FailedSyncIsDefinite,
        Bug::CleanFlagStands,
        Bug::TailNotSynced,
        Bug::ShortWriteIgnored,
        Bug::FailedAppendStays,
        Bug::FloorIgnored,
        Bug::ScanSkipsCrc,
        Bug::OrderUnchecked,
        Bug::EpochUnchecked,
        Bug::IndexTrusted,
        Bug::TimeIndexTrusted,
        Bug::ManifestChecksumSkipped,
        Bug::SealUnchecked,
        Bug::ReadSkipsCrc,
        Bug::LockNotTaken,
        Bug::RollPutOffWhenCommitted,
        Bug::RenameBeforeSync,
        Bug::ReplacedInPlace,
        Bug::FloorBeforeData,
        Bug::SyncRetried,
        Bug::CleanBeforeRepairs,
        Bug::TailNotRewritten,
        Bug::OffsetReused,
        Bug::CutBelowFloor,
        Bug::LaterSegmentsDeleted,
        Bug::RecoveryNotIdempotent,
        Bug::QuarantineSkipped,
        Bug::CrcRangeWrong,
        Bug::UnsupportedIsTorn,
        Bug::IndexOffByOne,
        Bug::StaleIndexKept,
        Bug::RepairInPlaceUnderMaps,
        Bug::MarkedBeforeCheck,
        Bug::CountPreallocates,
        Bug::DecompressUnlimited,
        Bug::SourcesGoBeforeTheSwap,
        Bug::TombstoneDroppedEarly,
        Bug::OlderRecordWins,
        Bug::KeyHashTrusted,
        Bug::ActiveSegmentCounted,
        Bug::ClockJumpTrusted,
        Bug::HoldIgnored,
        Bug::SupersededByUnsynced,
    ];
}

#[cfg(topiclog_planted)]
static PLANTED: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(0);

/// Plants one bug, or none.
#[cfg(topiclog_planted)]
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |bug| bug as u8), std::sync::atomic::Ordering::SeqCst);
}

/// Whether this bug is planted.
#[inline(always)]
pub(crate) fn is(bug: Bug) -> bool {
    #[cfg(topiclog_planted)]
    return PLANTED.load(std::sync::atomic::Ordering::Relaxed) == bug as u8;
    #[cfg(not(topiclog_planted))]
    {
        let _: Bug = bug;
        false
    }
}
