//! Kafka's primitive types as its message schemas spell them, in the fixed and in the flexible form. PURE.
//!
//! | type | fixed | flexible |
//! |---|---|---|
//! | string | int16 length, UTF-8; -1 null | unsigned varint length + 1, UTF-8; 0 null |
//! | bytes | int32 length; -1 null | unsigned varint length + 1; 0 null |
//! | array | int32 count; -1 null | unsigned varint count + 1; 0 null |
//! | struct end | nothing | tagged fields: unsigned varint number, then each varint tag, varint size, bytes |
//!
//! All numbers are big-endian. No length that is read is believed before the bytes are there.

use std::fmt;

/// Why bytes of a group record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SchemaError {
    /// A newer version wrote it.
    Version { what: &'static str, version: i16 },
    /// The bytes are not what the schema says.
    Malformed(&'static str),
}

impl fmt::Display for SchemaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SchemaError::Version { what, version } => write!(f, "{what} of version {version}"),
            SchemaError::Malformed(what) => f.write_str(what),
        }
    }
}

pub(crate) type Decoded<T> = Result<T, SchemaError>;

/// Longest string, in bytes: Kafka holds to it in the flexible form too.
pub(crate) const STRING_BYTES_MAX: usize = i16::MAX as usize;

fn malformed<T>(what: &'static str) -> Decoded<T> {
    Err(SchemaError::Malformed(what))
}

/// Reads fields one after the other.
#[derive(Clone, Debug)]
pub(crate) struct FieldReader<'a> {
    rest: &'a [u8],
    is_flexible: bool,
}

impl<'a> FieldReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, is_flexible: false }
    }

    /// From here on lengths are varints and structs end in tagged fields.
    pub(crate) fn set_flexible(&mut self, is_flexible: bool) {
        self.is_flexible = is_flexible;
    }

    fn take(&mut self, bytes: usize) -> Decoded<&'a [u8]> {
        match self.rest.split_at_checked(bytes) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => malformed("it ends in the middle of a field"),
        }
    }

    fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| SchemaError::Malformed("it ends in the middle of a field"))
    }

    pub(crate) fn int16(&mut self) -> Decoded<i16> {
        self.array().map(i16::from_be_bytes)
    }

    pub(crate) fn int32(&mut self) -> Decoded<i32> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn int64(&mut self) -> Decoded<i64> {
        self.array().map(i64::from_be_bytes)
    }

    fn unsigned_varint(&mut self) -> Decoded<u32> {
        let mut value = 0_u32;
        for shift in [0, 7, 14, 21, 28] {
            let [byte] = self.array()?;
            let bits = u32::from(byte & 0x7f);
            if shift == 28 && bits > 0x0f {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        malformed("a varint has more than 32 bits")
    }

    /// A length or count; `None` for null.
    fn length(&mut self, fixed: impl FnOnce(&mut Self) -> Decoded<i32>) -> Decoded<Option<usize>> {
        if self.is_flexible {
            return Ok(self.unsigned_varint()?.checked_sub(1).map(|length| length as usize));
        }
        match fixed(self)? {
            -1 => Ok(None),
            length => match usize::try_from(length) {
                Ok(length) => Ok(Some(length)),
                Err(_) => malformed("a length is negative"),
            },
        }
    }

    pub(crate) fn nullable_string(&mut self) -> Decoded<Option<&'a str>> {
        let Some(length) = self.length(|reader| reader.int16().map(i32::from))? else { return Ok(None) };
        if length > STRING_BYTES_MAX {
            return malformed("a string has more than 32,767 bytes");
        }
        match std::str::from_utf8(self.take(length)?) {
            Ok(text) => Ok(Some(text)),
            Err(_) => malformed("a string is not UTF-8"),
        }
    }

    pub(crate) fn string(&mut self) -> Decoded<&'a str> {
        self.nullable_string()?.map_or_else(|| malformed("a string is null"), Ok)
    }

    pub(crate) fn nullable_bytes(&mut self) -> Decoded<Option<&'a [u8]>> {
        let Some(length) = self.length(Self::int32)? else { return Ok(None) };
        self.take(length).map(Some)
    }

    /// The elements of an array, each of which takes at least `least` bytes: a count for which there are not enough is
    /// refused before anything is set aside for it.
    pub(crate) fn elements<T>(
        &mut self,
        least: usize,
        mut element: impl FnMut(&mut Self) -> Decoded<T>,
    ) -> Decoded<Vec<T>> {
        let count = self.length(Self::int32)?.unwrap_or(0);
        if count > self.rest.len() / least.max(1) {
            return malformed("an array has more elements than there are bytes for");
        }
        (0..count).map(|_| element(self)).collect()
    }

    /// The end of a struct. `known` sees each tag with its bytes; those that it does not know are passed over.
    pub(crate) fn tagged_fields(&mut self, mut known: impl FnMut(u32, &'a [u8]) -> Decoded<()>) -> Decoded<()> {
        if !self.is_flexible {
            return Ok(());
        }
        for _ in 0..self.unsigned_varint()? {
            let tag = self.unsigned_varint()?;
            let size = self.unsigned_varint()?;
            known(tag, self.take(size as usize)?)?;
        }
        Ok(())
    }
}

/// Writes fields one after the other, into bytes that grow. What does not fit its length is written as null, and noted: see
/// [`finish`](Self::finish).
#[derive(Debug, Default)]
pub(crate) struct FieldWriter {
    bytes: Vec<u8>,
    is_flexible: bool,
    too_long: Option<&'static str>,
}

impl FieldWriter {
    /// Fields behind a version, which is never flexible.
    pub(crate) fn of_version(version: i16, is_flexible: bool) -> Self {
        Self::behind(Vec::with_capacity(64), version, is_flexible)
    }

    /// The same, behind bytes that are there already.
    pub(crate) fn behind(bytes: Vec<u8>, version: i16, is_flexible: bool) -> Self {
        let mut writer = Self { bytes, is_flexible, too_long: None };
        writer.int16(version);
        writer
    }

    /// The bytes of fields that were checked to fit.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        debug_assert_eq!(self.too_long, None, "it was checked to fit");
        self.bytes
    }

    /// The bytes.
    ///
    /// # Errors
    /// Something does not fit the length that the schema has for it.
    pub(crate) fn finish(self) -> Decoded<Vec<u8>> {
        self.too_long.map_or(Ok(self.bytes), malformed)
    }

    pub(crate) fn int16(&mut self, value: i16) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn int32(&mut self, value: i32) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn int64(&mut self, value: i64) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    pub(crate) fn unsigned_varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn nullable_string(&mut self, text: Option<&str>) {
        let fits = |text: &&str| text.len() <= STRING_BYTES_MAX;
        if !text.iter().all(fits) {
            self.too_long = Some("a string has more than 32,767 bytes");
        }
        let text = text.filter(fits);
        let length = text.and_then(|text| i16::try_from(text.len()).ok()).unwrap_or(-1);
        if self.is_flexible {
            self.unsigned_varint((i32::from(length) + 1) as u32);
        } else {
            self.int16(length);
        }
        self.raw(text.unwrap_or_default().as_bytes());
    }

    pub(crate) fn string(&mut self, text: &str) {
        self.nullable_string(Some(text));
    }

    pub(crate) fn nullable_bytes(&mut self, bytes: Option<&[u8]>) {
        if self.count(bytes.map(<[u8]>::len)) {
            self.raw(bytes.unwrap_or_default());
        }
    }

    /// The count of an array, or the length of bytes. Returns whether it fits; else it is that of null.
    pub(crate) fn count(&mut self, count: Option<usize>) -> bool {
        let fitting = count.and_then(|count| i32::try_from(count).ok());
        let fits = fitting.is_some() == count.is_some();
        if !fits {
            self.too_long = Some("an array or bytes of 2 GiB");
        }
        let length = fitting.unwrap_or(-1);
        if self.is_flexible {
            self.unsigned_varint(length.wrapping_add(1) as u32);
        } else {
            self.int32(length);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader(bytes: &[u8], is_flexible: bool) -> FieldReader<'_> {
        let mut reader = FieldReader::new(bytes);
        reader.set_flexible(is_flexible);
        reader
    }

    #[test]
    fn a_length_is_not_believed_before_the_bytes_are_there() {
        assert!(reader(&[0x7f, 0xff, b'a'], false).string().is_err());
        assert!(reader(&[0xff, 0xff, 0xff, 0xff, 0x0f, b'a'], true).string().is_err());
        assert!(reader(&[0x7f, 0xff, 0xff, 0xff], false).nullable_bytes().is_err());
        assert!(reader(&[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0], false).elements(4, FieldReader::int32).is_err());
        assert!(reader(&[0x80, 0x00, 0x00, 0x00], false).nullable_bytes().is_err(), "a negative length");
        assert!(reader(&[0xff; 6], true).string().is_err(), "a varint of more than 32 bits");
    }

    #[test]
    fn a_string_that_does_not_fit_is_refused_and_not_cut() {
        for is_flexible in [false, true] {
            for (length, fits) in [(STRING_BYTES_MAX, true), (STRING_BYTES_MAX + 1, false)] {
                let text = "x".repeat(length);
                let mut fields = FieldWriter::of_version(0, is_flexible);
                fields.string(&text);
                let written = fields.finish();
                assert_eq!(written.is_ok(), fits, "{length}");
                if let Ok(bytes) = written {
                    assert_eq!(reader(&bytes[2..], is_flexible).string(), Ok(&*text));
                }
            }
        }
        let mut longer = vec![0x81, 0x80, 0x02];
        longer.resize(longer.len() + STRING_BYTES_MAX + 1, b'x');
        assert!(reader(&longer, true).string().is_err(), "Kafka does not read it either");
    }

    #[test]
    fn null_is_told_from_empty() {
        assert_eq!(reader(&[0xff, 0xff], false).nullable_string(), Ok(None));
        assert_eq!(reader(&[0, 0], false).nullable_string(), Ok(Some("")));
        assert_eq!(reader(&[0], true).nullable_string(), Ok(None));
        assert_eq!(reader(&[1], true).nullable_string(), Ok(Some("")));
        assert!(reader(&[0xff, 0xff], false).string().is_err());
        assert!(reader(&[0, 1, 0xff], false).string().is_err(), "not UTF-8");
    }

    #[test]
    fn unknown_tags_are_passed_over() {
        let mut seen = Vec::new();
        let mut fields = reader(&[2, 0, 1, 9, 7, 0, 42], true);
        fields
            .tagged_fields(|tag, bytes| {
                seen.push((tag, bytes.to_vec()));
                Ok(())
            })
            .unwrap();
        assert_eq!((seen, fields.rest), (vec![(0, vec![9]), (7, vec![])], &[42][..]));
        assert!(reader(&[1, 0, 9, 1], true).tagged_fields(|_, _| Ok(())).is_err(), "longer than what is left");
    }
}
