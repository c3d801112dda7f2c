//! Where a batch is written: a vector that may be longer than what counts of it.
//!
//! A record is then written into a slice whose length was looked at once, instead of being pushed part by part onto a
//! vector that looks whether it has to grow each time.

/// The end of a vector, where bytes are written.
#[derive(Debug)]
pub(super) struct Room<'a> {
    bytes: &'a mut Vec<u8>,
    /// Where the next byte goes. What the vector has behind it does not count.
    end: usize,
}

/// How far a vector that has the capacity is made longer at once. Little: what is long is cut off again behind each record
/// that takes a vector to be written.
const GROW_BYTES: usize = 1 << 10;

impl<'a> Room<'a> {
    /// Behind what the vector holds.
    #[inline(always)]
    pub(super) fn behind(bytes: &'a mut Vec<u8>) -> Self {
        let end = bytes.len();
        Self { bytes, end }
    }

    /// Over what the vector holds.
    #[inline(always)]
    pub(super) fn over(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes, end: 0 }
    }

    /// How much counts.
    #[inline(always)]
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// As many bytes as this behind the end, with whatever is in them.
    #[inline(always)]
    pub(super) fn next(&mut self, bytes: usize) -> &mut [u8] {
        let end = self.end.wrapping_add(bytes);
        if end > self.bytes.len() {
            self.grow(end);
        }
        self.bytes.get_mut(self.end..end).unwrap_or_default()
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, end: usize) {
        self.bytes.reserve(end.saturating_sub(self.bytes.len()));
        self.bytes.resize(self.bytes.capacity().min(end.saturating_add(GROW_BYTES)), 0);
    }

    /// So many of the bytes that [`next`](Self::next) gave count now.
    #[inline(always)]
    pub(super) fn take(&mut self, bytes: usize) {
        self.end = self.end.wrapping_add(bytes);
    }

    /// What counts, from here on.
    #[inline(always)]
    pub(super) fn written(&mut self, from: usize) -> &mut [u8] {
        self.bytes.get_mut(from..self.end).unwrap_or_default()
    }

    /// Lets a call go on with a vector that ends where the room does.
    pub(super) fn with_vec<R>(&mut self, call: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        self.bytes.truncate(self.end);
        let result = call(self.bytes);
        self.end = self.bytes.len();
        result
    }

    /// Cuts off what does not count, and with it what was written from here on.
    pub(super) fn cut(self, end: usize) {
        self.bytes.truncate(end.min(self.end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_taken_does_not_count() {
        let mut bytes = b"ab".to_vec();
        let mut room = Room::behind(&mut bytes);
        room.next(5).copy_from_slice(b"cdxyz");
        room.take(2);
        room.with_vec(|bytes| bytes.push(b'e'));
        room.next(1).copy_from_slice(b"f");
        room.take(1);
        assert_eq!(room.written(1), b"bcdef");
        room.cut(usize::MAX);
        assert_eq!(bytes, b"abcdef");
    }

    #[test]
    fn bytes_are_written_over_others_without_another_allocation() {
        let mut bytes = vec![7; 100];
        let before = bytes.as_ptr();
        let mut room = Room::over(&mut bytes);
        room.next(3).copy_from_slice(b"new");
        room.take(3);
        assert_eq!(room.written(0), b"new");
        assert_eq!((bytes.len(), bytes.as_ptr()), (100, before));
    }

    #[test]
    fn a_vector_grows_when_it_has_to() {
        let mut bytes = Vec::new();
        let mut room = Room::behind(&mut bytes);
        for (byte, step) in [(1, 1), (2, 100), (3, 40_000)] {
            room.next(step).fill(byte);
            room.take(step);
        }
        let end = room.end();
        room.cut(end.saturating_sub(1));
        assert_eq!(bytes, [vec![1; 1], vec![2; 100], vec![3; 39_999]].concat());
    }
}
