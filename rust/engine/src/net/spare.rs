//! Read buffers that are used again at once: they are in the processor's cache, and fresh ones are not.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// Bytes of a first read: a head and a small body.
pub const FIRST_READ: usize = 16 << 10;
/// Buffers that a thread keeps. Between one read and the next most lanes need just one.
const MOST: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with room for that much.
pub fn buffer(room: usize) -> BytesMut {
    let spare = if room <= FIRST_READ { SPARE.try_with(|spare| spare.borrow_mut().pop()).ok().flatten() } else { None };
    spare.unwrap_or_else(|| BytesMut::with_capacity(room))
}

/// Keeps a buffer for the next read, if it is such a one.
pub fn keep(mut buffer: BytesMut) {
    buffer.clear();
    if buffer.try_reclaim(FIRST_READ) && buffer.capacity() < 2 * FIRST_READ {
        // A thread that ends keeps nothing.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < MOST {
                spare.push(buffer);
            }
        });
    }
}

/// The same for the buffer of what was read, unless somebody else still holds a part of it.
pub fn give_back(read: Bytes) {
    if let Ok(buffer) = read.try_into_mut() {
        keep(buffer);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;

    #[test]
    fn a_buffer_comes_back_whole_once_nobody_holds_a_part_of_it() {
        let mut read = buffer(FIRST_READ);
        let place = read.as_ptr();
        read.extend_from_slice(&[7; 12_000]);
        read.advance(300);
        let mut body = read.freeze();
        body.truncate(10_000);
        let part = body.slice(..512);
        give_back(body.clone());
        drop(part);
        give_back(body);
        let again = buffer(FIRST_READ);
        assert_eq!((again.as_ptr(), again.len()), (place, 0));
        assert!(again.capacity() >= FIRST_READ);
    }

    #[test]
    fn others_are_not_kept() {
        keep(BytesMut::with_capacity(512));
        keep(BytesMut::with_capacity(64 << 10));
        give_back(Bytes::from_static(b"a page of the program"));
        SPARE.with_borrow(|spare| assert!(spare.is_empty()));
        (0..9).for_each(|_| keep(BytesMut::with_capacity(FIRST_READ)));
        SPARE.with_borrow(|spare| assert_eq!(spare.len(), MOST));
        assert!(buffer(FIRST_READ + 1).capacity() > FIRST_READ);
        SPARE.with_borrow(|spare| assert_eq!(spare.len(), MOST));
    }
}
