//! What a stream says, as the frames of a gRPC response.
//!
//! gRPC puts five bytes before each message and its status behind the last; that is all of it here.
//! tonic's own encoder keeps a buffer for each stream that has grown with its largest message, and
//! every stream's first message is its largest: with 5,000 agents that is most of the server's
//! memory. Here each message has a buffer of its own, which goes when it has been sent.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
use http_body::Frame;
use kiam_wire::Update;
use kiam_wire::limits::MESSAGE_BYTES_MAX;
use kiam_wire::proto::ServerMessage;
use tokio::sync::mpsc;
use tonic::Status;
use tonic::metadata::GRPC_CONTENT_TYPE;

/// One byte says that the message is not compressed, four how long it is.
const PREFIX_BYTES: usize = 5;

/// A message with its prefix, ready to be sent. It holds secrets, so its bytes are never shown.
pub(super) struct Message(Bytes);

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({} bytes)", self.0.len())
    }
}

impl Message {
    /// Refuses an update larger than an agent accepts.
    pub(super) fn of(update: &Update) -> Result<Self, Status> {
        let message = ServerMessage::from(update);
        let bytes = prost::Message::encoded_len(&message);
        let length = u32::try_from(bytes)
            .ok()
            .filter(|_length| bytes <= MESSAGE_BYTES_MAX)
            .ok_or_else(|| {
                let text = format!("an update of {bytes} bytes; at most {MESSAGE_BYTES_MAX}");
                Status::out_of_range(text)
            })?;
        let mut buffer = Vec::with_capacity(PREFIX_BYTES + bytes);
        buffer.put_u8(0);
        buffer.put_u32(length);
        prost::Message::encode(&message, &mut buffer)
            .map_err(|error| Status::internal(format!("an update cannot be encoded: {error}")))?;
        Ok(Self(buffer.into()))
    }
}

/// The body of a response: messages until the sender is dropped, then the status.
#[derive(Debug)]
pub(super) struct Frames {
    /// `None` once the status has been given.
    messages: Option<mpsc::Receiver<Result<Message, Status>>>,
}

impl Frames {
    /// A response that goes on for as long as there are messages.
    pub(super) fn response(
        messages: mpsc::Receiver<Result<Message, Status>>,
    ) -> http::Response<tonic::body::Body> {
        let messages = Some(messages);
        let mut response = http::Response::new(tonic::body::Body::new(Self { messages }));
        response
            .headers_mut()
            .insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
        response
    }
}

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(messages) = &mut self.messages else {
            return Poll::Ready(None);
        };
        let status = match messages.poll_recv(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Some(Ok(Message(bytes)))) => {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Poll::Ready(Some(Err(status))) => status,
            Poll::Ready(None) => Status::ok(""),
        };
        self.messages = None;
        let mut trailers = http::HeaderMap::new();
        Poll::Ready(Some(
            status
                .add_header(&mut trailers)
                .map(|()| Frame::trailers(trailers)),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.messages.is_none()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use kiam_wire::{Delta, Revision};
    use tonic::Code;

    use super::*;

    fn update(removed: usize) -> Update {
        let revision = Revision {
            epoch: 1,
            number: 2,
        };
        let uid = kiam_wire::PodUid::try_new(&"u".repeat(200)).unwrap();
        Update::Delta(Delta {
            from: revision,
            to: revision,
            pods: vec![],
            removed_pods: vec![uid; removed],
            credentials: vec![],
            keys: None,
        })
    }

    #[tokio::test]
    async fn messages_go_before_the_status() {
        let (sender, messages) = mpsc::channel(2);
        sender.send(Message::of(&update(1))).await.unwrap();
        let end = Err(Status::deadline_exceeded("stuck"));
        sender.send(end).await.unwrap();
        let response = Frames::response(messages);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let collected = response.into_body().collect().await.unwrap();
        let trailers = collected.trailers().unwrap().clone();
        assert_eq!(
            Status::from_header_map(&trailers).unwrap().code(),
            Code::DeadlineExceeded
        );
        let bytes = collected.to_bytes();
        let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap());
        assert_eq!(bytes[0], 0);
        assert_eq!(usize::try_from(length).unwrap(), bytes.len() - 5);
        let decoded: ServerMessage = prost::Message::decode(&bytes[5..]).unwrap();
        assert!(decoded == ServerMessage::from(&update(1)));
    }

    #[tokio::test]
    async fn a_stream_that_just_ends_ends_well() {
        let (sender, messages) = mpsc::channel(1);
        drop(sender);
        let collected = Frames::response(messages).into_body().collect().await;
        let trailers = collected.unwrap().trailers().unwrap().clone();
        assert_eq!(Status::from_header_map(&trailers).unwrap().code(), Code::Ok);
    }

    #[test]
    fn an_update_that_no_agent_would_accept_is_not_sent() {
        let refused = Message::of(&update(MESSAGE_BYTES_MAX / 200)).unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange);
    }
}
