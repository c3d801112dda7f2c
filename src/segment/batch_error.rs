//! What is wrong with the records of a batch, as an error that says where it is and what to do.

use std::path::Path;

use crate::error::Error;
use crate::record::{BatchError, BatchHeader};

/// The batch stands at this position of a log. `too_large` says what to do about one that takes too much memory.
#[cold]
pub(crate) fn batch_error(
    log: &Path,
    position: u64,
    header: &BatchHeader,
    error: &BatchError,
    too_large: &str,
) -> Error {
    let at = format!("{}, offset {}", log.display(), header.base_offset);
    if error.is_unsupported() {
        return Error::unsupported(format!("{error} ({at})"));
    }
    if let BatchError::DecompressedTooLarge { .. } = error {
        return Error::invalid("batch", format!("{error} ({at}); {too_large}"));
    }
    Error::Corrupt {
        path: log.to_owned(),
        position,
        offsets: Some((header.base_offset.into(), header.next_offset().into())),
        what: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{BatchSpec, BatchView, Compression, RecordRef, encode_batch};

    fn check(error: &BatchError, code: &str, says: &[&str]) {
        let mut bytes = Vec::new();
        encode_batch(&mut bytes, &BatchSpec::new(7), [RecordRef::default(); 2]).unwrap();
        let header = *BatchView::parse(&bytes).unwrap().header();
        let made = batch_error(Path::new("/s/t-0/7.log"), 90, &header, error, "read less of it");
        assert_eq!(made.code(), code);
        let text = made.to_string();
        assert!(says.iter().all(|part| text.contains(part)), "{text}");
        if let Error::Corrupt { position, offsets, .. } = made {
            assert_eq!((position, offsets), (90, Some((7.into(), 9.into()))));
        }
    }

    #[test]
    fn what_is_wrong_with_a_batch_is_told_by_what_there_is_to_do() {
        let place = "/s/t-0/7.log";
        check(&BatchError::CodecNotBuiltIn(Compression::Zstd), "unsupported", &[place, "offset 7"]);
        check(&BatchError::DecompressedTooLarge { limit: 5 }, "invalid", &[place, "offset 7", "read less of it"]);
        check(
            &BatchError::Malformed { at: 3, what: "a length is no number" },
            "corrupt",
            &[place, "a length is no number"],
        );
    }
}
