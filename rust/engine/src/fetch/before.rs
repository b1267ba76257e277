//! What is stored already of a URL, and what that spares: the request, or the body.

use std::sync::Arc;

use fetchbox_model::reuse::Remembered;
use http::header;
use url::Url;

use super::attempt::{Answered, Attempt, text};
use super::body;
use super::request::Headers;
use super::transfer::{Kept, Transfer};
use crate::core::Item;
use crate::profile::seconds;
use crate::reuse::{Condition, How, Plan, Wish, belongs, confirms, plan};

/// What comes of a look at what is remembered.
pub enum Before {
    /// The object is in its place; there is nothing to ask.
    Kept(Kept),
    /// The request says what is here.
    Ask(Condition),
    /// The body is fetched, whatever is here.
    Fetch,
}

/// What is remembered of the task's URL.
fn known(item: &Item) -> Option<&Arc<Remembered>> {
    item.reuse.as_ref()?.known.as_ref()
}

/// From now on nothing is remembered of it.
pub fn forget(item: &mut Item, transfer: &mut Transfer) {
    if let Some(reuse) = &mut item.reuse {
        reuse.known = None;
    }
    transfer.known = None;
}

/// Looks at what is remembered, before anything is sent.
pub async fn look(attempt: &mut Attempt<'_>, item: &mut Item, transfer: &mut Transfer) -> Before {
    transfer.reusable = item.reuse.is_some();
    let Some(known) = known(item).cloned() else { return Before::Fetch };
    let wish = Wish {
        max_age: seconds(attempt.profile.fetch.reuse_max_age),
        max_bytes: attempt.profile.sizes.max_bytes,
        expected_size: attempt.expected_size,
    };
    let filter = &attempt.profile.filter;
    let unwanted = filter.head(&known.content_type, Some(known.size)).or_else(|| filter.sniffed(&known.content_type, &known.sniffed_type));
    // What the filters make of it as it is now, the answer itself will show.
    let plan = if unwanted.is_some() { Plan::Useless } else { plan(&known, wish) };
    match plan {
        Plan::Trust => {
            if let Some(kept) = transfer.adopt(&known, How::Trusted).await {
                attempt.learned.final_url.clone_from(&known.final_url);
                recall(attempt, &known);
                return Before::Kept(kept);
            }
            forget(item, transfer);
            return Before::Fetch;
        }
        Plan::Useless => {
            forget(item, transfer);
            return Before::Fetch;
        }
        Plan::Compare => {}
        Plan::Ask(condition) => {
            transfer.known = Some(known);
            return Before::Ask(condition);
        }
    }
    transfer.known = Some(known);
    Before::Fetch
}

/// The headers of a request with the condition, if it may go along to this URL.
pub fn conditional(condition: &Condition, headers: &Headers, item: &Item, url: &Url, is_first: bool) -> Option<Headers> {
    let known = known(item)?;
    belongs(known, url.as_str(), is_first.then_some(item.task.url.as_str())).then(|| headers.with(condition)).flatten()
}

/// Takes the remembered object, after a 304 that speaks of it.
pub async fn confirmed(attempt: &mut Attempt<'_>, item: &mut Item, transfer: &mut Transfer, response: Answered) -> Option<Kept> {
    let etag = text(&response.head.headers, header::ETAG);
    let last_modified = text(&response.head.headers, header::LAST_MODIFIED);
    body::discard(attempt, response).await;
    let known = known(item).filter(|known| confirms(known, &etag))?.clone();
    let kept = transfer.adopt(&known, How::NotModified).await?;
    recall(attempt, &known);
    // What the origin says now goes before what it said then.
    let learned = &mut *attempt.learned;
    for (now, says) in [(&mut learned.etag, etag), (&mut learned.last_modified, last_modified)] {
        if !says.is_empty() {
            *now = says;
        }
    }
    Some(kept)
}

/// An answer that never came would have said this.
fn recall(attempt: &mut Attempt<'_>, known: &Remembered) {
    let learned = &mut *attempt.learned;
    learned.etag.clone_from(&known.etag);
    learned.last_modified.clone_from(&known.last_modified);
    learned.content_type.clone_from(&known.content_type);
    if !known.content_encoding.is_empty() {
        learned.context.push(("content_encoding", known.content_encoding.clone()));
    }
}
