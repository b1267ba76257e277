//! Where the answer to a command goes: to whoever waits for it in this process, or as a finished frame straight into its connection's queue.
//!
//! The second way saves a task and two wake-ups for each request, which is most of what a small request costs.

use bytes::Bytes;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::error::HubError;
use crate::frame::{ERROR, Failure, OK, encode};

/// A frame that waits to be written, and the room it takes among its connection's requests under way.
pub type Outgoing = (Bytes, OwnedSemaphorePermit);

/// The duty to answer one request of a connection. When it is dropped unanswered, the hub is closing, and the client is told so.
#[derive(Debug)]
pub struct Answer {
    id: u64,
    way: Option<(mpsc::Sender<Outgoing>, OwnedSemaphorePermit)>,
}

impl Answer {
    /// Of request `id`, to be written by whoever reads `queue`.
    pub fn new(id: u64, queue: mpsc::Sender<Outgoing>, room: OwnedSemaphorePermit) -> Self {
        Self { id, way: Some((queue, room)) }
    }

    /// The request's id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Sends a finished frame, or the failure.
    pub fn send(mut self, result: Result<Bytes, HubError>) {
        self.put(result);
    }

    fn put(&mut self, result: Result<Bytes, HubError>) {
        if let Some((queue, room)) = self.way.take() {
            let frame = result.unwrap_or_else(|error| encode(self.id, ERROR, &Failure::from(error)));
            // The room taken is room in the queue, so it is never full; the connection may be gone.
            let _ = queue.try_send((frame, room));
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.way.is_some() {
            self.put(Err(HubError::Unavailable("the hub is closing".into())));
        }
    }
}

/// Where an answer goes.
#[derive(Debug)]
pub enum Reply<T> {
    /// Somebody waits for it.
    Waiting(oneshot::Sender<Result<T, HubError>>),
    /// It is written to a connection; the function makes the frame.
    Frame(Answer, fn(u64, &T) -> Bytes),
}

impl<T> Reply<T> {
    /// Whether whoever asked is gone.
    pub fn is_closed(&self) -> bool {
        match self {
            Reply::Waiting(waiting) => waiting.is_closed(),
            Reply::Frame(answer, _) => answer.way.as_ref().is_none_or(|(queue, _)| queue.is_closed()),
        }
    }

    /// Sends the answer; the caller may be gone.
    pub fn send(self, result: Result<T, HubError>) {
        match self {
            Reply::Waiting(waiting) => drop(waiting.send(result)),
            Reply::Frame(answer, frame) => {
                let id = answer.id();
                answer.send(result.map(|value| frame(id, &value)));
            }
        }
    }
}

impl<T: Message> Reply<T> {
    /// Into a connection's queue.
    pub fn frame(answer: Answer) -> Self {
        Reply::Frame(answer, |id, value| encode(id, OK, value))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prost::Message;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::frame::{AppendReply, split};

    fn answer() -> (Answer, mpsc::Receiver<Outgoing>, Arc<Semaphore>) {
        let (queue, frames) = mpsc::channel(1);
        let room = Arc::new(Semaphore::new(1));
        (Answer::new(7, queue, Arc::clone(&room).try_acquire_owned().unwrap()), frames, room)
    }

    #[test]
    fn an_answer_is_a_frame_that_gives_its_room_back_when_it_is_written() {
        let (answer, mut frames, room) = answer();
        Reply::frame(answer).send(Ok(AppendReply { offsets: vec![4] }));
        let (frame, permit) = frames.try_recv().unwrap();
        let (id, op, payload) = split(frame).unwrap();
        assert_eq!((id, op, AppendReply::decode(payload).unwrap().offsets), (7, OK, vec![4]));
        assert_eq!(room.available_permits(), 0);
        drop(permit);
        assert_eq!(room.available_permits(), 1);
    }

    #[test]
    fn a_dropped_answer_says_that_the_hub_is_closing() {
        let (answer, mut frames, _room) = answer();
        drop(Reply::<AppendReply>::frame(answer));
        let (id, op, payload) = split(frames.try_recv().unwrap().0).unwrap();
        assert_eq!((id, op), (7, ERROR));
        assert!(matches!(HubError::from(Failure::decode(payload).unwrap()), HubError::Unavailable(_)));
        assert!(frames.try_recv().is_err());
    }
}
