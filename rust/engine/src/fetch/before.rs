//! What is stored already of a URL, and what that spares: the request and its turn at the host, or the body.

use std::sync::Arc;

use fetchbox_model::reuse::Remembered;
use http::header;
use url::Url;

use super::attempt::{Answered, Attempt, destination, expected_size, text};
use super::body;
use super::request::Headers;
use super::transfer::{Kept, Transfer};
use crate::core::{Core, Item};
use crate::failure::Failure;
use crate::outcome::Learned;
use crate::profile::seconds;
use crate::reuse::{Condition, How, Plan, Wish, belongs, confirms, plan};

/// What comes of a look at what is remembered.
pub enum Before {
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

/// What to do with what is remembered.
fn plan_of(item: &Item, known: &Remembered) -> Plan {
    let profile = &item.profile;
    let filter = &profile.filter;
    let unwanted = filter.head(&known.content_type, Some(known.size)).or_else(|| filter.sniffed(&known.content_type, &known.sniffed_type));
    if unwanted.is_some() {
        // What the filters make of it as it is now, the answer itself will show.
        return Plan::Useless;
    }
    let wish =
        Wish { max_age: seconds(profile.fetch.reuse_max_age), max_bytes: profile.sizes.max_bytes, expected_size: expected_size(item) };
    plan(known, wish)
}

/// Whether the task's object can be reused without asking.
pub fn is_unasked(item: &Item) -> bool {
    known(item).is_some_and(|known| plan_of(item, known) == Plan::Trust)
}

/// Reuses the object without asking; `None` when it is not there any more, and then nothing is remembered of it either.
pub async fn unasked(core: &Core, item: &mut Item, learned: &mut Learned) -> Result<Option<Kept>, Failure> {
    let Some(known) = known(item).cloned() else { return Ok(None) };
    let mut transfer = destination(&core.settings().stores, item)?;
    let kept = transfer.adopt(&known, How::Trusted).await;
    if kept.is_some() {
        learned.final_url.clone_from(&known.final_url);
        recall(learned, &known);
    } else {
        forget(item, &mut transfer);
    }
    Ok(kept)
}

/// Looks at what is remembered, before anything is sent.
pub fn look(item: &mut Item, transfer: &mut Transfer) -> Before {
    transfer.reusable = item.reuse.is_some();
    let Some(known) = known(item).cloned() else { return Before::Fetch };
    match plan_of(item, &known) {
        Plan::Ask(condition) => {
            transfer.known = Some(known);
            Before::Ask(condition)
        }
        Plan::Compare => {
            transfer.known = Some(known);
            Before::Fetch
        }
        // What can be trusted does not come here.
        Plan::Trust | Plan::Useless => {
            forget(item, transfer);
            Before::Fetch
        }
    }
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
    recall(attempt.learned, &known);
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
fn recall(learned: &mut Learned, known: &Remembered) {
    learned.etag.clone_from(&known.etag);
    learned.last_modified.clone_from(&known.last_modified);
    learned.content_type.clone_from(&known.content_type);
    if !known.content_encoding.is_empty() {
        learned.context.push(("content_encoding", known.content_encoding.clone()));
    }
}
