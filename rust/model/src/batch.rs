//! The carrier of messages on embedded streams: many encoded messages, compressed once by whoever made them.
//!
//! Layout, little-endian: `count: u32`, `raw_len: u32`, `codec: u8` (0 stored, 1 lz4 block), then the payload: the messages one after another,
//! each behind its length as a protobuf varint. The hub stores these bytes as they are and never looks inside.

use std::cell::RefCell;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

const HEADER: usize = 9;
const STORED: u8 = 0;
const LZ4: u8 = 1;
/// A batch that claims to unpack to more than this is damaged or hostile.
pub const MAX_RAW_BYTES: usize = 256 << 20;
/// A thread keeps its buffer for compression up to this size.
const KEPT_BYTES: usize = 1 << 20;

thread_local! {
    /// Where batches are compressed: room for the worst case has to be there, and taking and clearing it anew costs as much as compressing.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Why a batch cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BatchError {
    /// Shorter than its header, or a message runs past the end.
    #[error("the batch is cut short")]
    Truncated,
    /// An unknown codec, a wrong length or data that does not decompress.
    #[error("the batch is damaged: {0}")]
    Damaged(&'static str),
}

/// Collects messages into one batch.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    raw: BytesMut,
    count: u32,
}

impl BatchBuilder {
    /// Adds a message.
    pub fn push<M: Message>(&mut self, message: &M) {
        self.push_with(message.encoded_len(), |raw| message.encode_raw(raw));
    }

    /// Adds a message that is encoded already.
    pub fn push_encoded(&mut self, message: &[u8]) {
        prost::encoding::encode_varint(message.len() as u64, &mut self.raw);
        self.raw.put_slice(message);
        self.count += 1;
    }

    /// Adds a message of so many bytes, which `write` appends.
    pub fn push_with(&mut self, len: usize, write: impl FnOnce(&mut BytesMut)) {
        self.raw.reserve(len + 10);
        prost::encoding::encode_varint(len as u64, &mut self.raw);
        write(&mut self.raw);
        self.count += 1;
    }

    /// Messages added so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes added so far, before compression.
    pub fn raw_len(&self) -> usize {
        self.raw.len()
    }

    /// The finished batch without compression, for what is compressed elsewhere; `None` when it holds no message.
    pub fn finish_stored(self) -> Option<Batch> {
        if self.count == 0 {
            return None;
        }
        Some(self.with_payload(STORED, &self.raw))
    }

    /// The finished batch; `None` when it holds no message.
    pub fn finish(self) -> Option<Batch> {
        if self.count == 0 {
            return None;
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let bound = lz4_flex::block::get_maximum_output_size(self.raw.len());
            if scratch.len() < bound {
                scratch.resize(bound, 0);
            }
            let packed = lz4_flex::block::compress_into(&self.raw, scratch).unwrap_or(usize::MAX);
            let (codec, payload) = if packed < self.raw.len() { (LZ4, &scratch[..packed]) } else { (STORED, &self.raw[..]) };
            let batch = self.with_payload(codec, payload);
            if scratch.len() > KEPT_BYTES {
                *scratch = Vec::new();
            }
            Some(batch)
        })
    }

    fn with_payload(&self, codec: u8, payload: &[u8]) -> Batch {
        let mut out = BytesMut::with_capacity(HEADER + payload.len());
        out.put_u32_le(self.count);
        out.put_u32_le(self.raw.len() as u32);
        out.put_u8(codec);
        out.put_slice(payload);
        Batch { count: self.count, bytes: out.freeze() }
    }
}

/// A finished batch: its encoded bytes and how many messages they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Messages inside.
    pub count: u32,
    /// The encoded form.
    pub bytes: Bytes,
}

/// How many messages a batch says it holds, without unpacking it.
pub fn count(batch: &[u8]) -> Result<u32, BatchError> {
    let head = batch.get(..HEADER).ok_or(BatchError::Truncated)?;
    Ok(u32::from_le_bytes([head[0], head[1], head[2], head[3]]))
}

/// The messages of a batch, each still encoded.
pub fn unpack(batch: &[u8]) -> Result<Vec<Bytes>, BatchError> {
    let expected = count(batch)?;
    let raw_len = u32::from_le_bytes([batch[4], batch[5], batch[6], batch[7]]) as usize;
    if raw_len > MAX_RAW_BYTES {
        return Err(BatchError::Damaged("it claims to be too large"));
    }
    let payload = &batch[HEADER..];
    let raw = match batch[8] {
        STORED => payload.to_vec(),
        LZ4 => lz4_flex::block::decompress(payload, raw_len).map_err(|_| BatchError::Damaged("it does not decompress"))?,
        _ => return Err(BatchError::Damaged("its codec is unknown")),
    };
    if raw.len() != raw_len {
        return Err(BatchError::Damaged("its length is wrong"));
    }
    let mut rest = Bytes::from(raw);
    let mut messages = Vec::with_capacity((expected as usize).min(rest.len()));
    while rest.has_remaining() {
        let len = prost::encoding::decode_varint(&mut rest).map_err(|_| BatchError::Truncated)?;
        if len > rest.len() as u64 {
            return Err(BatchError::Truncated);
        }
        messages.push(rest.split_to(len as usize));
    }
    if messages.len() != expected as usize {
        return Err(BatchError::Damaged("its count is wrong"));
    }
    Ok(messages)
}

/// The messages of a batch, decoded; a message that cannot be decoded is returned as its error beside its place.
pub fn decode<M: Message + Default>(batch: &[u8]) -> Result<Vec<Result<M, prost::DecodeError>>, BatchError> {
    Ok(unpack(batch)?.into_iter().map(M::decode).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::JobLog;

    fn sample(n: u32) -> Batch {
        let mut builder = BatchBuilder::default();
        for i in 0..n {
            builder.push(&JobLog { job_id: "job".into(), resource_id: i.to_string(), ..Default::default() });
        }
        builder.finish().unwrap()
    }

    #[test]
    fn empty_builder_makes_no_batch() {
        assert_eq!(BatchBuilder::default().finish(), None);
    }

    #[test]
    fn round_trip_keeps_order_and_count() {
        for n in [1, 2, 1000] {
            let batch = sample(n);
            assert_eq!(count(&batch.bytes), Ok(n));
            let logs: Vec<JobLog> = decode(&batch.bytes).unwrap().into_iter().map(Result::unwrap).collect();
            assert_eq!(logs.len(), n as usize);
            assert!(logs.iter().enumerate().all(|(i, log)| log.resource_id == i.to_string()));
        }
    }

    #[test]
    fn incompressible_content_is_stored() {
        let noise: Vec<u8> = (0..64u32).flat_map(|i| i.wrapping_mul(2654435761).to_le_bytes()).collect();
        let mut builder = BatchBuilder::default();
        builder.push_encoded(&noise);
        let batch = builder.finish().unwrap();
        assert_eq!(batch.bytes[8], STORED);
        assert_eq!(unpack(&batch.bytes).unwrap(), vec![Bytes::from(noise)]);
        let mut builder = BatchBuilder::default();
        builder.push_encoded(&[0; 500]);
        let batch = builder.finish_stored().unwrap();
        assert_eq!((batch.count, unpack(&batch.bytes).unwrap()), (1, vec![Bytes::from(vec![0; 500])]));
        assert_eq!(BatchBuilder::default().finish_stored(), None);
    }

    #[test]
    fn any_cut_or_flipped_byte_is_an_error_or_the_same_length_never_a_panic() {
        let batch = sample(20).bytes;
        for cut in 0..batch.len() {
            let _ = unpack(&batch[..cut]);
            let mut flipped = batch.to_vec();
            flipped[cut] ^= 0x55;
            let _ = unpack(&flipped);
        }
        assert_eq!(unpack(&batch[..5]), Err(BatchError::Truncated));
    }
}
