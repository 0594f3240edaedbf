//! Bytes of a body that wait here, in the pieces they came in as far as that wastes no memory.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// What is smaller is copied together into pieces of this size: else a line of text could keep the
/// whole buffer it was read into. What is not may keep four times its size.
const PAGE: usize = 16 * 1024;

#[derive(Clone, Debug, Default)]
pub struct Pieces {
    whole: VecDeque<Bytes>,
    /// What came last, and has room.
    page: BytesMut,
    bytes: u64,
}

impl Pieces {
    pub fn len(&self) -> u64 {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// One more behind the others. One that is alone stays as it came.
    pub fn push(&mut self, mut piece: Bytes) {
        if piece.is_empty() {
            return;
        }
        let alone = self.is_empty();
        self.bytes += piece.len() as u64;
        if alone || piece.len() >= PAGE {
            self.end_page();
            self.whole.push_back(piece);
            return;
        }
        while !piece.is_empty() {
            if self.page.is_empty() {
                self.page = BytesMut::with_capacity(PAGE);
            }
            let room = PAGE - self.page.len();
            self.page
                .extend_from_slice(&piece.split_to(room.min(piece.len())));
            if self.page.len() == PAGE {
                self.end_page();
            }
        }
    }

    /// The first of them.
    pub fn pop(&mut self) -> Option<Bytes> {
        let page = || Some(std::mem::take(&mut self.page).freeze());
        let next = self.whole.pop_front().or_else(page);
        let next = next.filter(|next| !next.is_empty())?;
        self.bytes -= next.len() as u64;
        Some(next)
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let page = Some(&*self.page).filter(|page| !page.is_empty());
        self.whole.iter().map(Bytes::as_ref).chain(page)
    }

    /// What was popped last is the first again.
    pub fn put_back(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len() as u64;
            self.whole.push_front(piece);
        }
    }

    fn end_page(&mut self) {
        if !self.page.is_empty() {
            let page = std::mem::take(&mut self.page);
            self.whole.push_back(page.freeze());
        }
    }
}

impl From<Bytes> for Pieces {
    fn from(piece: Bytes) -> Self {
        let mut pieces = Self::default();
        pieces.push(piece);
        pieces
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_byte_comes_out_once_and_in_its_place(
            sizes in proptest::collection::vec(0..3 * PAGE, 0..12),
            pops in proptest::collection::vec(any::<bool>(), 0..12),
        ) {
            let mut pieces = Pieces::default();
            let (mut given, mut taken) = (Vec::new(), Vec::new());
            let mut pops = pops.into_iter();
            for (nth, size) in (0u8..).zip(sizes) {
                given.extend(vec![nth; size]);
                pieces.push(vec![nth; size].into());
                if pops.next() == Some(true)
                    && let Some(piece) = pieces.pop()
                {
                    pieces.put_back(piece.clone());
                    prop_assert_eq!(pieces.pop(), Some(piece.clone()));
                    taken.extend_from_slice(&piece);
                }
                prop_assert_eq!(pieces.len(), (given.len() - taken.len()) as u64);
            }
            prop_assert!(pieces.iter().all(|piece| !piece.is_empty()));
            let left: Vec<u8> = pieces.iter().flatten().copied().collect();
            prop_assert_eq!(&left[..], &given[taken.len()..]);
            while let Some(piece) = pieces.pop() {
                taken.extend_from_slice(&piece);
            }
            prop_assert!(pieces.is_empty());
            prop_assert_eq!(taken, given);
        }
    }

    #[test]
    fn small_ones_are_copied_together_and_large_ones_are_not() {
        let mut pieces = Pieces::default();
        let large = Bytes::from(vec![1; PAGE]);
        for piece in [&b"alone"[..], b"a", b"b", &large, b"c"] {
            match piece.len() {
                PAGE => pieces.push(large.clone()),
                _ => pieces.push(Bytes::copy_from_slice(piece)),
            }
        }
        assert_eq!(pieces.pop().unwrap(), "alone");
        assert_eq!(pieces.pop().unwrap(), "ab");
        assert_eq!(pieces.pop().unwrap().as_ptr(), large.as_ptr());
        assert_eq!(pieces.pop().unwrap(), "c");
        assert_eq!(pieces.pop(), None);
    }

    /// A line of text keeps the buffer it was read into for as long as it waits.
    #[test]
    fn many_small_ones_keep_little_more_than_they_are() {
        let mut pieces = Pieces::default();
        let big = Bytes::from(vec![1; 1 << 20]);
        for at in 0..10_000 {
            pieces.push(big.slice(at..at + 10));
        }
        assert!(
            pieces.whole.len() <= 1 + 100_000 / PAGE,
            "{}",
            pieces.whole.len()
        );
        let of_big = |piece: &&Bytes| big.as_ptr_range().contains(&piece.as_ptr());
        assert_eq!(pieces.whole.iter().filter(of_big).count(), 1, "the first");
        assert!(pieces.page.capacity() <= PAGE);
    }
}
