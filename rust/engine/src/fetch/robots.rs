//! Asks a site for its robots.txt, before the first URL of it is fetched.

use std::time::{Duration, Instant};

use fetchbox_model::failure::Code;
use http::header;
use tokio::time::Instant as TokioInstant;
use url::{Position, Url};

use super::attempt::Attempt;
use super::body;
use super::patience::{Limits, Patience, Timer};
use super::request::Headers;
use crate::core::Core;
use crate::failure::Failure;
use crate::outcome::Learned;
use crate::redirect::{check_scheme, is_redirect, next_hop, same_origin};
use crate::robots::{FAILURE_HOLDS, HOLDS, Known, MAX_BYTES, Rules, product};

/// For the whole file, redirects included.
const LIMIT: Duration = Duration::from_secs(20);
/// RFC 9309 asks for at least five.
const MAX_REDIRECTS: u32 = 5;

/// Whether the site lets this URL be fetched; asks it when that is not known. `slow` is told of a Crawl-delay.
pub async fn check(attempt: &mut Attempt<'_>, url: &Url, slow: impl Fn(Duration)) -> Result<(), Failure> {
    let name = format!("{} {}", &url[..Position::BeforePath], attempt.profile.tag);
    let site = attempt.core.robots.get(&name);
    let mut known = attempt.patience.wait(site.lock()).await?;
    if known.as_ref().is_none_or(|known| known.until <= Instant::now()) {
        let rules = ask(attempt, url).await;
        attempt.patience.excuse(Duration::ZERO);
        let holds = if rules.is_ok() { HOLDS } else { FAILURE_HOLDS };
        *known = Some(Known { until: Instant::now() + holds, rules });
    }
    match known.as_ref().map(|known| &known.rules) {
        Some(Ok(rules)) => {
            if let Some(delay) = rules.delay() {
                slow(delay);
            }
            if rules.allows(&url[Position::BeforePath..Position::AfterQuery]) {
                return Ok(());
            }
            Err(Failure::new(Code::DownloadRobotsDenied, "robots.txt forbids it"))
        }
        // A site that cannot say what it allows is not fetched from.
        Some(Err(failure)) => Err(failure.clone()),
        None => Ok(()),
    }
}

async fn ask(attempt: &Attempt<'_>, url: &Url) -> Result<Rules, Failure> {
    fetch(attempt.core, attempt, url).await.map_err(|failure| Failure { message: format!("robots.txt: {}", failure.message), ..failure })
}

async fn fetch(core: &Core, attempt: &Attempt<'_>, url: &Url) -> Result<Rules, Failure> {
    let profile = attempt.profile.clone();
    let agent = product(&profile.fetch.user_agent).to_owned();
    let mut headers = Headers::without_credentials(&profile);
    let (mut learned, mut timer) = (Learned::default(), Timer::new());
    let limits = Limits { read: LIMIT, end: Some((TokioInstant::now() + LIMIT, false)), min_speed: 0 };
    let patience = Patience::new(limits, &mut timer);
    let mut asking = Attempt { core, profile, learned: &mut learned, patience, route: attempt.route.clone(), expected_size: None };
    let mut first = url.clone();
    first.set_path("/robots.txt");
    first.set_query(None);
    first.set_fragment(None);
    let mut visited = vec![first];
    loop {
        let Some(url) = visited.last() else { return Ok(Rules::none()) };
        check_scheme(url)?;
        let response = asking.exchange(url, &headers, None).await?;
        let status = response.head.status.as_u16();
        if is_redirect(status) {
            let location = response.head.headers.get(header::LOCATION).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            // Too many, in a loop or to nowhere: the site has no such file.
            let Ok(next) = next_hop(&visited, location.as_deref(), MAX_REDIRECTS) else { return Ok(Rules::none()) };
            if !same_origin(url, &next) {
                headers.cross();
            }
            body::discard(&mut asking, response).await;
            visited.push(next);
            continue;
        }
        return match status {
            200..=299 => Ok(Rules::parse(&body::beginning(&mut asking, response, MAX_BYTES).await?, &agent)),
            // 429 says that the site is busy, not that it has no file.
            400..=428 | 430..=499 => {
                body::discard(&mut asking, response).await;
                Ok(Rules::none())
            }
            _ => Err(Failure::new(
                Code::from_http_status(status).unwrap_or(Code::DownloadBadResponse),
                format!("the origin answered {status}"),
            )
            .status(status)),
        };
    }
}
