//! Segment file names: the base offset in 20 decimal digits, then a suffix (Kafka's naming).

/// A file that belongs to the segment of a base offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suffix {
    /// The record batches.
    Log,
    /// The offset index.
    Index,
    /// The time index.
    TimeIndex,
    /// The aborted-transaction index.
    TxnIndex,
    /// Producer state before the base offset.
    Snapshot,
    /// Our checksums over a sealed segment.
    Seal,
}

impl Suffix {
    pub(crate) const ALL: [Suffix; 6] =
        [Suffix::Log, Suffix::Index, Suffix::TimeIndex, Suffix::TxnIndex, Suffix::Snapshot, Suffix::Seal];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Suffix::Log => "log",
            Suffix::Index => "index",
            Suffix::TimeIndex => "timeindex",
            Suffix::TxnIndex => "txnindex",
            Suffix::Snapshot => "snapshot",
            Suffix::Seal => "seal",
        }
    }
}

/// `00000000000000000042.log` and its kin.
pub(crate) fn file_name(base_offset: i64, suffix: Suffix) -> String {
    format!("{base_offset:020}.{}", suffix.as_str())
}

/// Reads a name back; `None` for anything that [`file_name`] would not have made.
pub(crate) fn parse(name: &str) -> Option<(i64, Suffix)> {
    let (digits, suffix) = name.split_once('.')?;
    if digits.len() != 20 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let suffix = Suffix::ALL.into_iter().find(|known| known.as_str() == suffix)?;
    Some((digits.parse().ok()?, suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_nothing_else_is() {
        assert_eq!(file_name(98_765_432_109, Suffix::Log), "00000000098765432109.log");
        for suffix in Suffix::ALL {
            assert_eq!(parse(&file_name(7, suffix)), Some((7, suffix)));
        }
        for name in
            ["7.log", "00000000000000000007.log.deleted", "0000000000000000000x.log", "99999999999999999999.log"]
        {
            assert_eq!(parse(name), None, "{name}");
        }
    }

    #[test]
    fn every_offset_has_a_name_of_its_own() {
        for base in [0, 1, 42, i64::from(i32::MAX), i64::MAX] {
            let name = file_name(base, Suffix::Index);
            assert_eq!((name.len(), parse(&name)), (26, Some((base, Suffix::Index))));
        }
        assert!(file_name(9, Suffix::Log) < file_name(10, Suffix::Log), "names sort as offsets do");
    }

    #[test]
    fn names_that_only_look_like_ours_are_strangers() {
        for name in [
            "",
            ".log",
            "00000000000000000007",
            "00000000000000000007.",
            "00000000000000000007.LOG",
            "00000000000000000007.log ",
            "00000000000000000007.log.cleaned",
            "00000000000000000007.swap",
            "-0000000000000000007.log",
            "+0000000000000000007.log",
            " 0000000000000000007.log",
            "000000000000000000007.log",
            "09223372036854775808.log",
            "٠٠٠٠٠٠٠٠٠٠.log",
        ] {
            assert_eq!(parse(name), None, "{name:?}");
        }
    }
}
