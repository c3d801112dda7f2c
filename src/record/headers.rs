//! The headers of a record, borrowed. Their layout is drawn in `body.rs`.

use std::borrow::Cow;
use std::iter::FusedIterator;

use bytes::Bytes;

use super::append::Header;
use super::varint;

/// Checks `count` headers from `at` on, and returns where they end.
#[inline(never)]
pub(super) fn skip_headers(record: &[u8], mut at: usize, count: i32) -> Option<usize> {
    let count = usize::try_from(count).ok()?;
    // A header has at least its two lengths.
    if count > record.len().saturating_sub(at) / 2 {
        return None;
    }
    for _ in 0..count {
        read_header(record, &mut at)?;
    }
    Some(at)
}

#[inline]
fn read_header<'a>(bytes: &'a [u8], at: &mut usize) -> Option<HeaderRef<'a>> {
    let length = usize::try_from(varint::read_i32(bytes, at)?).ok()?;
    let name = bytes.get(*at..)?.get(..length)?;
    *at = at.wrapping_add(length);
    let length = varint::read_i32(bytes, at)?;
    let value = match usize::try_from(length) {
        Ok(length) => {
            let value = bytes.get(*at..)?.get(..length)?;
            *at = at.wrapping_add(length);
            Some(value)
        }
        Err(_) => None,
    };
    Some(HeaderRef { name, value })
}

/// A header, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderRef<'a> {
    name: &'a [u8],
    value: Option<&'a [u8]>,
}

impl<'a> HeaderRef<'a> {
    /// The name; bytes that are not UTF-8 are shown as replacement characters.
    pub fn name(&self) -> Cow<'a, str> {
        String::from_utf8_lossy(self.name)
    }

    /// The name as it is stored.
    pub fn name_bytes(&self) -> &'a [u8] {
        self.name
    }

    /// The value, `None` if it is null.
    pub fn value(&self) -> Option<&'a [u8]> {
        self.value
    }

    /// A copy that owns its bytes.
    pub fn to_header(&self) -> Header {
        Header::from_bytes(Bytes::copy_from_slice(self.name), self.value.map(Bytes::copy_from_slice))
    }
}

/// The headers of a record, borrowed: a slice of [`Header`]s, or those of a record that was read.
///
/// ```
/// use topiclog::record::{AsRecord, Record};
/// let record = Record::of_value("v").header("a", "1").header("a", "2");
/// let headers = record.as_record().headers;
/// assert_eq!(headers.len(), 2);
/// assert_eq!(headers.last("a").and_then(|header| header.value()), Some(&b"2"[..]));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct HeadersRef<'a>(Headers<'a>);

#[derive(Clone, Copy, Debug)]
enum Headers<'a> {
    Slice(&'a [Header]),
    /// The number of headers and the headers, as they are in a record whose checks held.
    Encoded(&'a [u8]),
}

impl<'a> HeadersRef<'a> {
    /// Those of a record whose checks held: their number, then the headers.
    #[inline(always)]
    pub(super) fn encoded_in_record(bytes: &'a [u8]) -> Self {
        Self(Headers::Encoded(bytes))
    }

    /// How many there are.
    #[inline]
    pub fn len(&self) -> usize {
        match self.0 {
            Headers::Slice(headers) => headers.len(),
            Headers::Encoded(bytes) => {
                varint::read_i32(bytes, &mut 0).and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
            }
        }
    }

    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is plain at once that there are none.
    #[inline(always)]
    pub(super) fn is_none(&self) -> bool {
        matches!(self.0, Headers::Slice([]) | Headers::Encoded([0]))
    }

    /// The headers, in order.
    pub fn iter(&self) -> HeadersIter<'a> {
        match self.0 {
            Headers::Slice(_) => HeadersIter { headers: self.0, at: 0, left: self.len() },
            Headers::Encoded(bytes) => {
                let mut at = 0;
                let count = varint::read_i32(bytes, &mut at).and_then(|count| usize::try_from(count).ok());
                HeadersIter { headers: self.0, at, left: count.unwrap_or(0) }
            }
        }
    }

    /// The last header of this name, which is the one that counts in Kafka's clients.
    pub fn last(&self, name: &str) -> Option<HeaderRef<'a>> {
        self.iter().filter(|header| header.name_bytes() == name.as_bytes()).last()
    }

    /// The bytes that they have in a record, if they are there already, beginning with their number.
    #[inline]
    pub(super) fn encoded(&self) -> Option<&'a [u8]> {
        match self.0 {
            Headers::Slice([]) => Some(&[0]),
            Headers::Slice(_) => None,
            Headers::Encoded(bytes) => Some(bytes),
        }
    }
}

impl Default for HeadersRef<'_> {
    #[inline]
    fn default() -> Self {
        Self(Headers::Slice(&[]))
    }
}

impl<'a> From<&'a [Header]> for HeadersRef<'a> {
    #[inline]
    fn from(headers: &'a [Header]) -> Self {
        Self(Headers::Slice(headers))
    }
}

impl<'a> IntoIterator for HeadersRef<'a> {
    type Item = HeaderRef<'a>;
    type IntoIter = HeadersIter<'a>;
    fn into_iter(self) -> HeadersIter<'a> {
        self.iter()
    }
}

/// Walks the headers of a record, see [`HeadersRef::iter`].
#[derive(Clone, Debug)]
pub struct HeadersIter<'a> {
    headers: Headers<'a>,
    /// An index, or a position in the encoded bytes.
    at: usize,
    left: usize,
}

impl<'a> Iterator for HeadersIter<'a> {
    type Item = HeaderRef<'a>;

    fn next(&mut self) -> Option<HeaderRef<'a>> {
        self.left = self.left.checked_sub(1)?;
        match self.headers {
            Headers::Slice(headers) => {
                let header = headers.get(self.at)?;
                self.at = self.at.wrapping_add(1);
                Some(HeaderRef { name: header.name_bytes(), value: header.value() })
            }
            Headers::Encoded(bytes) => read_header(bytes, &mut self.at),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

impl FusedIterator for HeadersIter<'_> {}
