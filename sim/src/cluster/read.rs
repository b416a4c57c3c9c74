//! GET: one object, or a list of them, whole or in pages.
//!
//! A list is a snapshot: its objects never change, so a page may be fetched minutes later and still
//! belongs to the same revision. Only a few unfinished lists are kept; the oldest expires with 410,
//! as it does when etcd has been compacted.

use std::collections::VecDeque;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::route::Query;
use super::status::ApiError;
use super::store::{Object, Store};
use super::view::View;
use crate::listen::{Body, whole};

/// Unfinished lists that are remembered. Few, because each keeps old versions of its objects alive.
const UNFINISHED_MAX: usize = 16;
/// A list is sent in pieces of about this size.
const PIECE_BYTES: usize = 64 * 1024;

/// A list that a client reads page by page.
#[derive(Debug, Clone)]
struct Unfinished {
    id: u64,
    revision: u64,
    objects: Arc<[Arc<Object>]>,
}

/// The lists that have more pages to be asked for.
#[derive(Debug, Default)]
pub(crate) struct Unfinisheds {
    lists: VecDeque<Unfinished>,
    last: u64,
}

impl Unfinisheds {
    /// Forgets them all, so that every continue token is answered with 410.
    pub(crate) fn expire(&mut self) {
        self.lists.clear();
    }

    fn keep(&mut self, revision: u64, objects: Arc<[Arc<Object>]>) -> Unfinished {
        self.last += 1;
        let list = Unfinished {
            id: self.last,
            revision,
            objects,
        };
        if self.lists.len() >= UNFINISHED_MAX {
            self.lists.pop_front();
        }
        self.lists.push_back(list.clone());
        list
    }

    fn find(&self, id: u64) -> Option<&Unfinished> {
        self.lists.iter().find(|list| list.id == id)
    }
}

/// A page of a list, ready to be sent without any lock.
#[derive(Debug)]
pub(crate) struct Page {
    objects: Arc<[Arc<Object>]>,
    from: usize,
    until: usize,
    metadata: Value,
}

/// Where the next page starts, as the client carries it.
fn token(id: u64, from: usize) -> String {
    URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "list": id, "from": from}).to_string())
}

fn parse_token(token: &str) -> Option<(u64, usize)> {
    let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let from = value.get("from")?.as_u64()?;
    Some((value.get("list")?.as_u64()?, usize::try_from(from).ok()?))
}

/// Cuts the page that the query asks for.
pub(crate) fn page(
    store: &Store,
    unfinished: &mut Unfinisheds,
    view: View,
    namespace: Option<&str>,
    query: &Query,
) -> Result<Page, ApiError> {
    let limit = query
        .number("limit")?
        .and_then(|limit| usize::try_from(limit).ok());
    let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let wanted = query.number("resourceVersion")?.unwrap_or_default();
    let (list, from) = match query.text("continue") {
        "" => {
            if wanted > store.revision() {
                return Err(ApiError::from_the_future(wanted, store.revision()));
            }
            if query.text("resourceVersionMatch") == "Exact" && wanted != store.revision() {
                // No old state is kept, which is what a compacted etcd says too.
                return Err(ApiError::compacted(wanted, store.revision()));
            }
            let selector = query.selector(view.kind)?;
            let objects: Arc<[_]> = store
                .range(view.kind, namespace)
                .filter(|object| selector.is_empty() || selector.matches(object))
                .map(Arc::clone)
                .collect();
            let list = if objects.len() > limit {
                unfinished.keep(store.revision(), objects)
            } else {
                Unfinished {
                    id: 0,
                    revision: store.revision(),
                    objects,
                }
            };
            (list, 0)
        }
        given => {
            let (id, from) = parse_token(given)
                .ok_or_else(|| ApiError::bad_request("continue key is not valid"))?;
            (
                unfinished
                    .find(id)
                    .cloned()
                    .ok_or_else(ApiError::continue_expired)?,
                from,
            )
        }
    };
    let until = from.saturating_add(limit).min(list.objects.len());
    let mut metadata = json!({"resourceVersion": list.revision.to_string()});
    let left = list.objects.len().saturating_sub(until);
    if left > 0 {
        super::json::put(&mut metadata, &["continue"], token(list.id, until));
        // A selecting list does not know what it has not looked at; the real one stays silent too.
        if query.text("labelSelector").is_empty() && query.text("fieldSelector").is_empty() {
            super::json::put(&mut metadata, &["remainingItemCount"], left);
        }
    }
    Ok(Page {
        objects: list.objects,
        from,
        until,
        metadata,
    })
}

impl Page {
    /// The page as a body that is produced while it is sent.
    pub(crate) fn into_body(self, view: View, now: Timestamp) -> Body {
        let opening = view.list_opening(&self.metadata);
        let state = (self, Some(opening), false);
        let pieces = stream::unfold(state, move |(mut page, mut opening, done)| async move {
            if done {
                return None;
            }
            let mut piece = BytesMut::with_capacity(PIECE_BYTES);
            let first = opening.is_some();
            piece.extend_from_slice(opening.take().unwrap_or_default().as_bytes());
            let start = page.from;
            while piece.len() < PIECE_BYTES && page.from < page.until {
                if !(first && page.from == start) {
                    piece.extend_from_slice(b",");
                }
                if let Some(object) = page.objects.get(page.from) {
                    piece.extend_from_slice(&view.list_item(object, now));
                }
                page.from += 1;
            }
            let done = page.from >= page.until;
            if done {
                piece.extend_from_slice(b"]}");
            }
            let frame: Result<_, std::convert::Infallible> = Ok(Frame::data(piece.freeze()));
            Some((frame, (page, opening, done)))
        });
        StreamBody::new(pieces).boxed_unsync()
    }
}

/// One object as a body.
pub(crate) fn object(view: View, object: &Object, now: Timestamp) -> Body {
    let bytes: Bytes = view.object(object, now);
    whole(bytes)
}

#[cfg(test)]
mod tests {
    use super::{parse_token, token};

    #[test]
    fn continue_tokens() {
        assert_eq!(parse_token(&token(7, 500)), Some((7, 500)));
        assert_eq!(parse_token("nonsense"), None);
    }
}
