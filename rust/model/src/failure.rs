//! Failure codes: one table of names, families and classes. `docs/failures.md` holds the same table; a test compares both.

use std::fmt;
use std::str::FromStr;

/// What a code speaks of; the first word of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// What the caller sent is wrong.
    Validation,
    /// Credentials were refused.
    Auth,
    /// A job type's own Python code failed.
    Handler,
    /// Fetching from the origin, with or without a proxy.
    Download,
    /// Writing one object.
    Upload,
    /// The store as a whole.
    Storage,
    /// FetchBox itself.
    System,
}

impl Family {
    /// The family's name as codes begin with it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validation => "VALIDATION",
            Self::Auth => "AUTH",
            Self::Handler => "HANDLER",
            Self::Download => "DOWNLOAD",
            Self::Upload => "UPLOAD",
            Self::Storage => "STORAGE",
            Self::System => "SYSTEM",
        }
    }
}

macro_rules! codes {
    ($($variant:ident $name:literal $family:ident $class:ident $meaning:literal;)*) => {
        /// Why something failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code { $(#[doc = $meaning] $variant,)* }

        impl Code {
            /// Every code, in the table's order.
            pub const ALL: &[Code] = &[$(Code::$variant,)*];

            /// The code's name as it stands in messages, logs and answers.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What the code speaks of.
            pub fn family(self) -> Family {
                match self { $(Self::$variant => Family::$family,)* }
            }

            /// Whether another attempt may succeed; a permanent failure goes to the dead letters at once.
            pub fn is_retryable(self) -> bool {
                match self { $(Self::$variant => codes!(@$class),)* }
            }

            /// One line for people.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }

        impl FromStr for Code {
            type Err = UnknownCode;

            fn from_str(name: &str) -> Result<Self, UnknownCode> {
                match name {
                    $($name => Ok(Self::$variant),)*
                    _ => Err(UnknownCode),
                }
            }
        }
    };
    (@retryable) => { true };
    (@permanent) => { false };
}

codes! {
    ValidationBadJson "VALIDATION_BAD_JSON" Validation permanent "The body is not one well-formed JSON document in UTF-8.";
    ValidationTooDeep "VALIDATION_TOO_DEEP" Validation permanent "The JSON is nested too deeply.";
    ValidationDuplicateKey "VALIDATION_DUPLICATE_KEY" Validation permanent "An object names the same key twice.";
    ValidationWrongType "VALIDATION_WRONG_TYPE" Validation permanent "A value has another JSON type than the one asked for.";
    ValidationMissing "VALIDATION_MISSING" Validation permanent "A required field is not there.";
    ValidationUnsupportedVersion "VALIDATION_UNSUPPORTED_VERSION" Validation permanent "The manifest_version is not one this service knows.";
    ValidationTooFew "VALIDATION_TOO_FEW" Validation permanent "The manifest names no resource.";
    ValidationTooMany "VALIDATION_TOO_MANY" Validation permanent "There are more resources or headers than allowed.";
    ValidationTooLong "VALIDATION_TOO_LONG" Validation permanent "A value is longer than allowed.";
    ValidationBadUrl "VALIDATION_BAD_URL" Validation permanent "A URL is not an absolute one, or holds what may not stand in a URL.";
    ValidationBadScheme "VALIDATION_BAD_SCHEME" Validation permanent "A URL's scheme is not served for this job type.";
    ValidationUserinfo "VALIDATION_USERINFO" Validation permanent "A URL carries a user name or password.";
    ValidationBadId "VALIDATION_BAD_ID" Validation permanent "A resource id is empty or holds an unprintable character.";
    ValidationDuplicateId "VALIDATION_DUPLICATE_ID" Validation permanent "Two resources have the same id.";
    ValidationBadHeader "VALIDATION_BAD_HEADER" Validation permanent "A header's name or value is not valid HTTP.";
    ValidationForbiddenHeader "VALIDATION_FORBIDDEN_HEADER" Validation permanent "A header that FetchBox sets itself or that speaks of one connection only.";
    ValidationBadKey "VALIDATION_BAD_KEY" Validation permanent "An object key or template has an empty or dot segment or an unknown placeholder.";
    ValidationBadChecksum "VALIDATION_BAD_CHECKSUM" Validation permanent "A checksum_hint is not sha256:, sha1: or md5: with that many hex digits.";
    ValidationBadValue "VALIDATION_BAD_VALUE" Validation permanent "A value of the right type is out of its range or has the wrong form.";
    ValidationUnknownPool "VALIDATION_UNKNOWN_POOL" Validation permanent "A task names a proxy pool that is not configured.";
    ValidationUnknownBucket "VALIDATION_UNKNOWN_BUCKET" Validation permanent "A task names a bucket that is not configured.";
    ValidationBadTask "VALIDATION_BAD_TASK" Validation permanent "A message on jobs.tasks is not a task that can be worked on.";
    AuthOriginRefused "AUTH_ORIGIN_REFUSED" Auth permanent "The origin refused the credentials of the job type.";
    AuthProxyRefused "AUTH_PROXY_REFUSED" Auth retryable "A proxy refused our credentials (407); the next endpoint is asked.";
    HandlerError "HANDLER_ERROR" Handler permanent "A handler raised an error.";
    HandlerTimeout "HANDLER_TIMEOUT" Handler retryable "A handler took longer than handler_timeout.";
    HandlerBadTask "HANDLER_BAD_TASK" Handler permanent "A handler built a task that is not valid.";
    DownloadBlockedAddress "DOWNLOAD_BLOCKED_ADDRESS" Download permanent "The address policy forbids the address the URL leads to.";
    DownloadBadScheme "DOWNLOAD_BAD_SCHEME" Download permanent "The URL or a redirect has a scheme that is not served.";
    DownloadBadUrl "DOWNLOAD_BAD_URL" Download permanent "The URL or a redirect cannot be parsed.";
    DownloadTooManyRedirects "DOWNLOAD_TOO_MANY_REDIRECTS" Download permanent "More redirects than max_redirects, or a loop.";
    DownloadTruncated "DOWNLOAD_TRUNCATED" Download retryable "The body ended before its length or its end mark; nothing was stored.";
    DownloadBadFraming "DOWNLOAD_BAD_FRAMING" Download permanent "The response's lengths contradict each other.";
    DownloadBadResponse "DOWNLOAD_BAD_RESPONSE" Download permanent "The answer is not HTTP, or its head is too large.";
    DownloadTooSlow "DOWNLOAD_TOO_SLOW" Download retryable "The body came slower than min_speed.";
    DownloadTimeout "DOWNLOAD_TIMEOUT" Download retryable "No byte came for read_timeout, or total_timeout passed.";
    DownloadConnectTimeout "DOWNLOAD_CONNECT_TIMEOUT" Download retryable "The connection was not up within connect_timeout.";
    DownloadConnectFailed "DOWNLOAD_CONNECT_FAILED" Download retryable "The connection was refused or no route leads there.";
    DownloadReset "DOWNLOAD_RESET" Download retryable "The connection broke before the response was whole.";
    DownloadTooLarge "DOWNLOAD_TOO_LARGE" Download permanent "The body is larger than max_bytes.";
    DownloadTls "DOWNLOAD_TLS" Download permanent "The certificate or the TLS handshake is bad.";
    DownloadDnsNxdomain "DOWNLOAD_DNS_NXDOMAIN" Download permanent "The host's name does not exist or has no address.";
    DownloadDnsServfail "DOWNLOAD_DNS_SERVFAIL" Download retryable "The name servers failed to answer.";
    DownloadDnsTimeout "DOWNLOAD_DNS_TIMEOUT" Download retryable "The name servers did not answer in time.";
    DownloadProxyFailed "DOWNLOAD_PROXY_FAILED" Download retryable "A proxy endpoint failed; the next endpoint or tier is asked.";
    DownloadProxyExhausted "DOWNLOAD_PROXY_EXHAUSTED" Download permanent "Every endpoint of every proxy tier failed.";
    DownloadChecksumMismatch "DOWNLOAD_CHECKSUM_MISMATCH" Download permanent "A clean transfer has another digest than checksum_hint.";
    DownloadSizeMismatch "DOWNLOAD_SIZE_MISMATCH" Download permanent "A clean transfer has another size than expected.";
    DownloadExpired "DOWNLOAD_EXPIRED" Download permanent "The task's deadline passed.";
    DownloadHostUnavailable "DOWNLOAD_HOST_UNAVAILABLE" Download retryable "The host's circuit is open after many failures in a row.";
    DownloadRobotsDenied "DOWNLOAD_ROBOTS_DENIED" Download permanent "The host's robots.txt or X-Robots-Tag forbids it; the resource is filtered.";
    DownloadFiltered "DOWNLOAD_FILTERED" Download permanent "The job type's filters leave out its type, size or status; the resource is filtered.";
    DownloadHttp3xx "DOWNLOAD_HTTP_3XX" Download permanent "A redirect without a place to go, or a 304 nobody asked for.";
    DownloadHttp408 "DOWNLOAD_HTTP_408" Download retryable "The origin answered 408 Request Timeout.";
    DownloadHttp425 "DOWNLOAD_HTTP_425" Download retryable "The origin answered 425 Too Early.";
    DownloadHttp429 "DOWNLOAD_HTTP_429" Download retryable "The origin answered 429 Too Many Requests.";
    DownloadHttp499 "DOWNLOAD_HTTP_499" Download retryable "The origin answered 499 Client Closed Request.";
    DownloadHttp4xx "DOWNLOAD_HTTP_4XX" Download permanent "The origin answered another 4xx.";
    DownloadHttp501 "DOWNLOAD_HTTP_501" Download permanent "The origin answered 501 Not Implemented.";
    DownloadHttp505 "DOWNLOAD_HTTP_505" Download permanent "The origin answered 505 HTTP Version Not Supported.";
    DownloadHttp5xx "DOWNLOAD_HTTP_5XX" Download retryable "The origin answered another 5xx.";
    UploadAccessDenied "UPLOAD_ACCESS_DENIED" Upload permanent "The store refused our credentials or our right to write there.";
    UploadNoBucket "UPLOAD_NO_BUCKET" Upload permanent "The bucket or root directory does not exist.";
    UploadRejected "UPLOAD_REJECTED" Upload permanent "The store refused the object itself.";
    UploadThrottled "UPLOAD_THROTTLED" Upload retryable "The store asked us to slow down.";
    UploadTimeout "UPLOAD_TIMEOUT" Upload retryable "The store did not answer in time.";
    UploadFailed "UPLOAD_FAILED" Upload retryable "A write failed on the way or with a 5xx of the store.";
    StorageUnavailable "STORAGE_UNAVAILABLE" Storage retryable "The store cannot be reached.";
    StorageFull "STORAGE_FULL" Storage retryable "The disk or the quota of the store is full.";
    SystemPoison "SYSTEM_POISON" System permanent "The task killed its worker when it ran alone.";
    SystemResources "SYSTEM_RESOURCES" System retryable "The worker ran out of file descriptors, memory or threads.";
    SystemInternal "SYSTEM_INTERNAL" System retryable "A defect in FetchBox; please report it.";
}

/// The name is none of the table's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown failure code")]
pub struct UnknownCode;

impl Code {
    /// The code of an HTTP status that cannot be stored; `None` for 2xx, which is no failure by itself.
    pub fn from_http_status(status: u16) -> Option<Self> {
        Some(match status {
            300..=399 => Self::DownloadHttp3xx,
            408 => Self::DownloadHttp408,
            425 => Self::DownloadHttp425,
            429 => Self::DownloadHttp429,
            499 => Self::DownloadHttp499,
            400..=498 => Self::DownloadHttp4xx,
            501 => Self::DownloadHttp501,
            505 => Self::DownloadHttp505,
            500..=599 => Self::DownloadHttp5xx,
            // Interim answers are not ends, and nobody asked for another protocol (101).
            0..=199 | 600.. => Self::DownloadBadResponse,
            _ => return None,
        })
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The rows of docs/failures.md: code → (class, meaning, advice).
    fn documented() -> BTreeMap<String, (String, String, String)> {
        let text = include_str!("../../../docs/failures.md");
        let mut rows = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 4, "{line}");
            let row = (cells[1].to_owned(), cells[2].to_owned(), cells[3].to_owned());
            assert!(rows.insert(cells[0].trim_matches('`').to_owned(), row).is_none(), "twice: {line}");
        }
        rows
    }

    #[test]
    fn the_document_and_the_table_are_the_same() {
        let mut rows = documented();
        for code in Code::ALL {
            let (class, meaning, advice) = rows.remove(code.as_str()).unwrap_or_else(|| panic!("{code} is not in docs/failures.md"));
            assert_eq!(class, if code.is_retryable() { "retryable" } else { "permanent" }, "{code}");
            assert_eq!(meaning, code.meaning(), "{code}");
            assert!(!advice.is_empty(), "{code}");
        }
        assert!(rows.is_empty(), "only in docs/failures.md: {:?}", rows.keys());
    }

    #[test]
    fn names_begin_with_their_family_and_read_back() {
        for code in Code::ALL {
            assert!(code.as_str().starts_with(&format!("{}_", code.family().as_str())), "{code}");
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
        assert_eq!("DOWNLOAD_NO_SUCH".parse::<Code>(), Err(UnknownCode));
    }

    #[test]
    fn statuses_have_the_class_the_design_gives_them() {
        for status in 0..=1000u16 {
            let retryable = Code::from_http_status(status).map(Code::is_retryable);
            let expected = match status {
                200..=299 => None,
                408 | 425 | 429 | 499 => Some(true),
                501 | 505 => Some(false),
                500..=599 => Some(true),
                _ => Some(false),
            };
            assert_eq!(retryable, expected, "{status}");
        }
    }
}
