//! Hides what in a URL is a secret.

const HIDDEN: &str = "REDACTED";
/// Query parameters whose values are secrets, lower case. The logs' list in python/fetchbox/telemetry.py is the same; a test compares them.
const SECRET: [&str; 43] = [
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "x-goog-signature",
    "x-goog-credential",
    "awsaccesskeyid",
    "signature",
    "sig",
    "token",
    "access_token",
    "auth_token",
    "id_token",
    "auth",
    "authorization",
    "key",
    "api_key",
    "apikey",
    "api-key",
    "password",
    "passwd",
    "pwd",
    "secret",
    "client_secret",
    "jwt",
    "policy",
    "key-pair-id",
    "credential",
    "googleaccessid",
    "ossaccesskeyid",
    "x-oss-signature",
    "x-oss-credential",
    "x-oss-security-token",
    "x-cos-security-token",
    "q-signature",
    "q-ak",
    "sign",
    "hmac",
    "hdnea",
    "hdnts",
    "refresh_token",
    "session",
    "sessionid",
    "session_id",
];

/// The URL with the values of secret parameters and any user information replaced.
pub fn redact(url: &str) -> String {
    let (rest, fragment) = match url.split_once('#') {
        Some((rest, fragment)) => (rest, Some(fragment)),
        None => (url, None),
    };
    let (base, query) = match rest.split_once('?') {
        Some((base, query)) => (base, Some(query)),
        None => (rest, None),
    };
    let mut out = without_userinfo(base);
    if let Some(query) = query {
        out.push('?');
        let pairs: Vec<String> = query.split('&').map(pair).collect();
        out.push_str(&pairs.join("&"));
    }
    if let Some(fragment) = fragment {
        out.push('#');
        out.push_str(fragment);
    }
    out
}

/// Parts of header names whose values are secrets.
const SECRET_HEADERS: [&str; 8] = ["auth", "cookie", "token", "secret", "passw", "session", "signature", "key"];

/// The value of a request's header, unless its name says that it is a secret; URLs lose theirs.
pub fn redact_header(name: &str, value: &str) -> String {
    let name = name.to_ascii_lowercase();
    if SECRET_HEADERS.iter().any(|part| name.contains(part)) { HIDDEN.to_owned() } else { redact(value) }
}

fn pair(pair: &str) -> String {
    match pair.split_once('=') {
        Some((name, _)) if is_secret(name) => format!("{name}={HIDDEN}"),
        _ => pair.to_owned(),
    }
}

fn is_secret(name: &str) -> bool {
    // Names may be percent-encoded to look like others.
    let decoded = url::form_urlencoded::parse(name.as_bytes()).next().map(|(name, _)| name.to_lowercase()).unwrap_or_default();
    SECRET.contains(&decoded.as_str())
}

fn without_userinfo(base: &str) -> String {
    let Some((scheme, rest)) = base.split_once("://") else { return base.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    match rest[..end].rfind('@') {
        Some(at) => format!("{scheme}://{HIDDEN}{}", &rest[at..]),
        None => base.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_carry_secrets_are_hidden() {
        for name in ["Authorization", "cookie", "x-api-key", "X-Auth-Token", "x-amz-signature"] {
            assert_eq!(redact_header(name, "v"), "REDACTED");
        }
        assert_eq!(redact_header("referer", "http://h/?sig=1"), "http://h/?sig=REDACTED");
        assert_eq!(redact_header("accept", "*/*"), "*/*");
    }

    #[test]
    fn secrets_are_hidden_and_the_rest_stays() {
        for (url, redacted) in [
            ("http://h/a?b=1#c", "http://h/a?b=1#c"),
            ("http://h/a?X-Amz-Signature=abc&b=2", "http://h/a?X-Amz-Signature=REDACTED&b=2"),
            ("http://h/a?b=2&s%69g=x#f", "http://h/a?b=2&s%69g=REDACTED#f"),
            ("http://u:p@h/a@b", "http://REDACTED@h/a@b"),
            ("http://h/?monkey=1&key=&token", "http://h/?monkey=1&key=REDACTED&token"),
            ("", ""),
        ] {
            assert_eq!(redact(url), redacted);
        }
    }
}
